//! A session: a file system served on a connection by this process, from [`Session::start`] to [`Session::stop`].
//!
//! ```text
//! start ─► INIT, unless it was agreed before ─► what is left in the slots ─► readers ─► stop: readers leave, requests in
//!                                                                              │       flight end, the parts come back
//!                                                                              └─► unmounted: `destroy`, ended
//! ```

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fuse3::raw::{Filesystem, Request};
use parking_lot::Mutex;
use tarbox_types::{KernelCache, Unanswered};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::abi::init as flag;
use crate::device::Device;
use crate::flight::InFlight;
use crate::handshake::shake_hands;
use crate::init::{InitWishes, SavedInit};
use crate::link::Link;
use crate::notify::Caches;
use crate::recovery::{Net, Recovered, collect_left, recover};
use crate::serve::{Left, Server};
use crate::slots::Slots;
use crate::statistics::OperationStatistics;

/// Everything a connection lives in. Whoever has these can serve it; whoever holds duplicates keeps it alive.
#[derive(Debug)]
pub struct SessionParts {
    /// The descriptor that was mounted, then its clones; in the same order in every process.
    pub devices: Vec<OwnedFd>,
    /// The slots file ([`crate::slots::create_slots`]).
    pub slots: OwnedFd,
    /// What was agreed at INIT; None for a new mount, or to take what the slots file says.
    pub init: Option<SavedInit>,
}

/// How a session is to run.
#[derive(Clone, Copy, Debug)]
pub struct SessionConfig {
    /// Reading threads; default: one per core, at least 2, at most 4.
    pub readers: usize,
    /// Wishes for INIT, if it comes to that.
    pub wishes: InitWishes,
    /// After recovery, ask the kernel for what the slots did not hold. Only where a process died; after a stop there is nothing.
    /// Default on.
    pub resend: bool,
    /// Where the kernel cannot (before 6.9), or is not to be asked: look for requests that no slot holds, and answer them
    /// with EIO, as nobody else ever would. Default on.
    pub sweep: bool,
}

impl Default for SessionConfig {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        Self { readers: cores.clamp(2, 4), wishes: InitWishes::default(), resend: true, sweep: true }
    }
}

/// How a session ended.
#[derive(Clone, Debug)]
pub enum Ended {
    /// The file system was unmounted, or its connection aborted. `destroy` has been called.
    Unmounted,
    /// [`Session::stop`] was called.
    Stopped,
    /// It could not start, or the device failed.
    Failed(Arc<io::Error>),
}

impl Ended {
    /// Of what several threads say, the heavier counts.
    fn weight(&self) -> u8 {
        match self {
            Self::Stopped => 0,
            Self::Unmounted => 1,
            Self::Failed(_) => 2,
        }
    }
}

#[derive(Clone, Debug)]
enum Progress {
    Starting,
    Serving(SavedInit, Recovered),
    Ended(Ended),
}

/// A running session. Dropping it stops the reading threads without waiting for anything.
#[derive(Debug)]
pub struct Session {
    link: Arc<Link>,
    progress: Arc<watch::Sender<Progress>>,
}

impl Session {
    /// Begins to serve `fs` on the connection; INIT, recovery and reading happen in threads of their own.
    /// Where `parts` come from a process that was killed, the caller has made sure that it is dead.
    ///
    /// `fs.init` is called only if INIT has not been answered yet, `fs.destroy` once the file system is unmounted.
    ///
    /// # Errors
    /// Where the slots cannot be mapped or no thread started. Later failures are told by [`Session::wait`].
    pub fn start<F>(
        fs: Arc<F>,
        parts: SessionParts,
        config: SessionConfig,
        runtime: Handle,
    ) -> io::Result<Self>
    where
        F: Filesystem + Send + Sync + 'static,
    {
        if parts.devices.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a session needs a descriptor"));
        }
        let readers = config.readers.max(1);
        let slots = Slots::open(parts.slots, readers + 1)?;
        let devices = parts.devices.into_iter().map(|device| Arc::new(Device::new(device))).collect();
        let link = Arc::new(Link::new(devices, slots));
        let progress = Arc::new(watch::Sender::new(Progress::Starting));
        let starter = Starter {
            fs,
            link: Arc::clone(&link),
            init: parts.init,
            config: SessionConfig { readers, ..config },
            runtime,
            progress: Arc::clone(&progress),
        };
        spawn(0, move || starter.run())?;
        Ok(Self { link, progress })
    }

    /// Waits until requests are served; returns what was agreed and what recovery found.
    ///
    /// # Errors
    /// Where the session ended before it came to that.
    pub async fn serving(&self) -> io::Result<(SavedInit, Recovered)> {
        let mut progress = self.progress.subscribe();
        let seen = progress.wait_for(|progress| !matches!(progress, Progress::Starting)).await;
        match seen.as_deref() {
            Ok(Progress::Serving(init, recovered)) => Ok((*init, *recovered)),
            Ok(Progress::Ended(Ended::Failed(error))) => Err(io::Error::new(error.kind(), Arc::clone(error))),
            _ => Err(io::Error::from_raw_os_error(libc::ENODEV)),
        }
    }

    /// Waits for the end.
    ///
    /// # Cancel safety
    /// May be dropped and called again.
    pub async fn wait(&self) -> Ended {
        let mut progress = self.progress.subscribe();
        let seen = progress.wait_for(|progress| matches!(progress, Progress::Ended(_))).await;
        match seen.as_deref() {
            Ok(Progress::Ended(ended)) => ended.clone(),
            _ => Ended::Stopped,
        }
    }

    /// Lets the readers leave. What is in flight goes on; requests that come from now on wait in the kernel.
    pub async fn pause(&self) {
        self.send_away();
        let _ = self.wait().await;
    }

    /// Lets the readers leave, waits for what is in flight, and gives the parts back; a new session can go on with them.
    /// Requests that come meanwhile wait in the kernel.
    ///
    /// # Errors
    /// Where a descriptor cannot be duplicated.
    ///
    /// # Cancel safety
    /// Dropped, it leaves a session that reads nothing more and loses nothing: what is in flight stays in its slots, and
    /// ends as long as the runtime lives.
    pub async fn stop(self) -> io::Result<SessionParts> {
        self.pause().await;
        self.link.flights.drained().await;
        Ok(SessionParts {
            devices: self.devices()?,
            slots: self.link.slots.descriptor()?,
            init: self.link.slots.saved_init(),
        })
    }

    /// Duplicates of the descriptors and of the slots file, for whoever keeps them in case this process dies.
    ///
    /// # Errors
    /// Those of `dup(2)`.
    pub fn duplicate_parts(&self) -> io::Result<SessionParts> {
        let slots = self.link.slots.descriptor()?;
        Ok(SessionParts { devices: self.devices()?, slots, init: self.link.slots.saved_init() })
    }

    fn devices(&self) -> io::Result<Vec<OwnedFd>> {
        self.link.devices.iter().map(|device| device.duplicate()).collect()
    }

    /// The kernel's caches of this connection. May be used after the session.
    #[must_use]
    pub fn kernel_cache(&self) -> Arc<dyn KernelCache> {
        Arc::new(self.caches())
    }

    /// As [`Session::kernel_cache`], with what only this engine can do.
    #[must_use]
    pub fn caches(&self) -> Caches {
        Caches::new(Arc::clone(&self.link.devices[0]))
    }

    /// The requests whose result is not in their slot yet. May be used after the session.
    #[must_use]
    pub fn unanswered(&self) -> Arc<dyn Unanswered> {
        Arc::clone(&self.link) as Arc<dyn Unanswered>
    }

    /// A look at the session, for whoever reports on it.
    #[must_use]
    pub fn observer(&self) -> Observer {
        Observer { link: Arc::clone(&self.link) }
    }

    /// What has been answered, by operation.
    #[must_use]
    pub fn statistics(&self) -> Vec<OperationStatistics> {
        self.observer().statistics()
    }

    /// What has been read and not yet answered.
    #[must_use]
    pub fn in_flight(&self) -> Vec<InFlight> {
        self.observer().in_flight()
    }

    fn send_away(&self) {
        send_readers_away(&self.link);
    }
}

/// See [`Session::observer`]. May be kept after the session.
#[derive(Clone, Debug)]
pub struct Observer {
    link: Arc<Link>,
}

impl Observer {
    /// [`Session::statistics`].
    #[must_use]
    pub fn statistics(&self) -> Vec<OperationStatistics> {
        self.link.statistics.snapshot()
    }

    /// [`Session::in_flight`].
    #[must_use]
    pub fn in_flight(&self) -> Vec<InFlight> {
        self.link.flights.snapshot()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !matches!(&*self.progress.borrow(), Progress::Ended(_)) {
            self.send_away();
        }
    }
}

/// Readers look at `stopping` before they read; those that are reading are interrupted.
fn send_readers_away(link: &Arc<Link>) {
    link.stopping.store(true, Ordering::Release);
    let away = Arc::clone(link);
    if let Err(error) = spawn("stop", move || away.readers.send_away()) {
        tracing::error!(%error, "no thread to stop the session with");
        link.readers.send_away();
    }
}

/// What the thread logs belongs to where it was started.
fn spawn(name: impl std::fmt::Display, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let span = tracing::Span::current();
    let thread = std::thread::Builder::new().name(format!("fuse-{name}"));
    thread.spawn(move || span.in_scope(body)).map(drop)
}

/// What the first thread needs.
struct Starter<F> {
    fs: Arc<F>,
    link: Arc<Link>,
    init: Option<SavedInit>,
    config: SessionConfig,
    runtime: Handle,
    progress: Arc<watch::Sender<Progress>>,
}

impl<F> Starter<F>
where
    F: Filesystem + Send + Sync + 'static,
{
    /// Starts, then becomes a reader.
    fn run(self) {
        let runtime = self.runtime.clone();
        let (server, recovered) = match self.prepare() {
            Ok(prepared) => prepared,
            Err(error) => {
                self.progress.send_replace(Progress::Ended(self.early_end(error)));
                return;
            }
        };
        self.progress.send_replace(Progress::Serving(server.agreed, recovered));
        let crew = Arc::new(Crew {
            server,
            progress: self.progress,
            present: Mutex::new(Present { count: self.config.readers, ended: Ended::Stopped }),
        });
        for number in 1..self.config.readers {
            let (member, runtime) = (Arc::clone(&crew), runtime.clone());
            if let Err(error) = spawn(number, move || member.read(number, &runtime)) {
                crew.leave(Left::Failed(error));
            }
        }
        crew.read(0, &runtime);
    }

    fn prepare(&self) -> io::Result<(Arc<Server<F>>, Recovered)> {
        // Futures polled on these threads may use timers and sockets.
        let _runtime = self.runtime.enter();
        let mut left = collect_left(&self.link)?;
        let taken_over = self.init.or_else(|| self.link.slots.saved_init());
        let agreed = match taken_over {
            Some(init) => {
                self.link.slots.save_init(&init);
                init
            }
            None => shake_hands(&*self.fs, &self.link, &mut left.slots, &self.config.wishes, &self.runtime)?,
        };
        let server = Arc::new(Server {
            fs: Arc::clone(&self.fs),
            link: Arc::clone(&self.link),
            agreed,
            runtime: self.runtime.clone(),
        });
        let net = match taken_over {
            None => Net::None,
            Some(_) if self.config.resend && agreed.offered & flag::HAS_RESEND != 0 => Net::Resend,
            Some(_) if self.config.sweep => Net::Sweep,
            Some(_) => Net::None,
        };
        let recovered = recover(&server, left, net)?;
        Ok((server, recovered))
    }

    fn early_end(&self, error: io::Error) -> Ended {
        match error.raw_os_error() {
            Some(libc::ENODEV) => Ended::Unmounted,
            _ if self.link.is_stopping() => Ended::Stopped,
            _ => Ended::Failed(Arc::new(error)),
        }
    }
}

/// The reading threads. The last one to leave says how it ended.
struct Crew<F> {
    server: Arc<Server<F>>,
    progress: Arc<watch::Sender<Progress>>,
    present: Mutex<Present>,
}

struct Present {
    count: usize,
    ended: Ended,
}

/// How long `destroy` waits for requests that are still being worked on after the unmount.
const LAST_WORDS: Duration = Duration::from_secs(10);

impl<F> Crew<F>
where
    F: Filesystem + Send + Sync + 'static,
{
    fn read(&self, number: usize, runtime: &Handle) {
        let _runtime = runtime.enter();
        let left = {
            let reading = self.server.link.readers.enter();
            self.server.read_requests(number % self.server.link.devices.len(), &reading)
        };
        self.leave(left);
    }

    fn leave(&self, left: Left) {
        let ended = match left {
            Left::Stopped => Ended::Stopped,
            Left::Gone => Ended::Unmounted,
            Left::Failed(error) => {
                tracing::error!(%error, "reading from the FUSE device failed");
                send_readers_away(&self.server.link);
                Ended::Failed(Arc::new(error))
            }
        };
        let last = {
            let mut present = self.present.lock();
            present.count -= 1;
            if ended.weight() > present.ended.weight() {
                present.ended = ended;
            }
            (present.count == 0).then(|| present.ended.clone())
        };
        if let Some(ended) = last {
            if matches!(ended, Ended::Unmounted) {
                self.server.runtime.block_on(self.destroy());
            }
            self.progress.send_replace(Progress::Ended(ended));
        }
    }

    async fn destroy(&self) {
        let drained = self.server.link.flights.drained();
        if tokio::time::timeout(LAST_WORDS, drained).await.is_err() {
            tracing::warn!("requests are still being worked on although the file system is unmounted");
        }
        self.server.fs.destroy(Request::default()).await;
    }
}
