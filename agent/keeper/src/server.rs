//! One thread and one `poll(2)`: clients, children, connections that are answered with EIO, and the clock.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, socket_with,
};
use tarbox_handover::ProcessId;
use tarbox_handover::protocol::{Reply, Request};

use crate::KeeperError;
use crate::clients::Client;
use crate::keeper::{ClientId, Keeper};

/// Clients at a time; more wait to be accepted. An agent needs two or three.
const MOST_CLIENTS: usize = 64;
/// How long nobody is accepted after that has failed, for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// The keeper, its listening socket and its clients.
#[derive(Debug)]
pub struct Server {
    listener: OwnedFd,
    keeper: Keeper,
    clients: BTreeMap<ClientId, Client>,
    next: ClientId,
    accepts_from: Instant,
    terminate: Option<SignalFd>,
}

/// What a descriptor that has become readable belongs to.
#[derive(Clone, Debug)]
enum Source {
    Listener,
    Terminate,
    Client(ClientId),
    Child(ProcessId),
    Responder(String),
}

/// Whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Continue,
    End,
}

impl Server {
    /// Listens at `path`. A socket that a dead keeper has left there is taken away.
    ///
    /// # Errors
    /// Where a keeper listens there, or the directory cannot be written.
    pub fn listen(path: &Path, keeper: Keeper) -> Result<Self, KeeperError> {
        let doing = || format!("listen at {}", path.display());
        let failed = |errno: Errno| KeeperError::io(doing())(errno.into());
        let address = SocketAddrUnix::new(path).map_err(failed)?;
        let socket = || socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        if connect(socket().map_err(failed)?, &address).is_ok() {
            let listens = io::Error::new(io::ErrorKind::AddrInUse, "another keeper listens there");
            return Err(KeeperError::io(doing())(listens));
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(KeeperError::io(doing())(error));
            }
            _ => {}
        }
        let listener = socket().map_err(failed)?;
        bind(&listener, &address).map_err(failed)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
            .map_err(KeeperError::io(doing()))?;
        listen(&listener, 16).map_err(failed)?;
        Ok(Self::new(listener, keeper))
    }

    /// Serves a listening `SOCK_SEQPACKET` socket.
    #[must_use]
    pub fn new(listener: OwnedFd, keeper: Keeper) -> Self {
        let accepts_from = Instant::now();
        Self { listener, keeper, clients: BTreeMap::new(), next: 1, accepts_from, terminate: None }
    }

    /// From now on SIGTERM is passed on to the children (commit now), and ends the keeper only if it has none: it stays
    /// their parent as long as it is let.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn heed_sigterm(&mut self) -> Result<(), KeeperError> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGTERM);
        let listen = || {
            signals.thread_block()?;
            SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        };
        self.terminate = Some(listen().map_err(|errno| KeeperError::io("listen for SIGTERM")(errno.into()))?);
        Ok(())
    }

    /// Serves until SIGTERM finds no child.
    ///
    /// # Errors
    /// Where `poll(2)` fails.
    pub fn run(&mut self) -> Result<(), KeeperError> {
        loop {
            self.keeper.restart_due(Instant::now());
            for source in self.ready()? {
                if self.attend_to(source) == Flow::End {
                    return Ok(());
                }
            }
        }
    }

    /// Waits until there is something to do, and says what.
    fn ready(&self) -> Result<Vec<Source>, KeeperError> {
        let now = Instant::now();
        let accepts = self.clients.len() < MOST_CLIENTS && self.accepts_from <= now;
        let listener = accepts.then_some((Source::Listener, self.listener.as_fd()));
        let terminate = self.terminate.as_ref().map(|signal| (Source::Terminate, signal.as_fd()));
        let clients = self.clients.iter().map(|(&id, client)| (Source::Client(id), client.as_fd()));
        let children = self.keeper.alive().map(|(id, pidfd)| (Source::Child(id), pidfd));
        let responders = self.keeper.responders();
        let responders =
            responders.map(|(key, responder)| (Source::Responder(key.to_owned()), responder.as_fd()));
        // Children first: whoever asks for them next is to hear that they ended.
        let watched: Vec<_> =
            children.chain(terminate).chain(clients).chain(responders).chain(listener).collect();
        let mut polled: Vec<_> =
            watched.iter().map(|(_, descriptor)| PollFd::new(descriptor, PollFlags::IN)).collect();
        match poll(&mut polled, self.patience(now).as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Vec::new()),
            Err(errno) => return Err(KeeperError::io("wait for something to do")(errno.into())),
        }
        let ready = watched.iter().zip(&polled).filter(|(_, polled)| !polled.revents().is_empty());
        Ok(ready.map(|((source, _), _)| source.clone()).collect())
    }

    /// How long there will be nothing to do by the clock.
    fn patience(&self, now: Instant) -> Option<Timespec> {
        let accepts = (self.accepts_from > now).then_some(self.accepts_from);
        let until = self.keeper.due().into_iter().chain(accepts).min()?;
        Timespec::try_from(until.saturating_duration_since(now)).ok()
    }

    fn attend_to(&mut self, source: Source) -> Flow {
        match source {
            Source::Listener => self.accept(),
            Source::Client(id) => self.hear(id),
            Source::Responder(key) => self.keeper.answer(&key),
            Source::Child(id) => {
                for (client, number, reply) in self.keeper.child_ended(Instant::now(), id) {
                    if self.tell(client, number, reply, &[]) {
                        self.keeper.child_told(id);
                    }
                }
            }
            Source::Terminate => {
                let asked =
                    self.terminate.as_ref().is_some_and(|signal| matches!(signal.read_signal(), Ok(Some(_))));
                if asked && !self.keeper.commit_now() {
                    return Flow::End;
                }
            }
        }
        Flow::Continue
    }

    fn accept(&mut self) {
        match accept_with(&self.listener, SocketFlags::CLOEXEC) {
            Ok(socket) => {
                self.clients.insert(self.next, Client::new(socket));
                self.next += 1;
            }
            Err(_) => self.accepts_from = Instant::now() + ACCEPT_PAUSE,
        }
    }

    fn hear(&mut self, id: ClientId) {
        let Some(client) = self.clients.get(&id) else { return };
        let Ok((number, asked)) = client.next() else { return self.gone(id) };
        let waited = match &asked {
            Ok((Request::Wait(wait), _)) => Some(ProcessId { pid: wait.pid, start_time: wait.start_time }),
            Ok(_) | Err(_) => None,
        };
        let answer = asked.and_then(|(request, descriptors)| {
            self.keeper.handle(Instant::now(), (id, number), request, descriptors)
        });
        match answer {
            Ok(None) => {}
            Ok(Some((reply, descriptors))) => {
                let told = self.tell(id, number, reply, &descriptors);
                // Whoever asked may have died meanwhile: then it is remembered for the next one.
                waited.filter(|_| told).into_iter().for_each(|child| self.keeper.child_told(child));
            }
            Err(error) => _ = self.tell(id, number, Reply::Refused(error.refusal()), &[]),
        }
    }

    /// Answers; lets a client go that cannot be answered. Returns whether it has its answer.
    fn tell(&mut self, id: ClientId, number: u64, reply: Reply, descriptors: &[OwnedFd]) -> bool {
        let Some(client) = self.clients.get(&id) else { return false };
        let told = client.tell(number, reply, descriptors).is_ok();
        if !told {
            self.gone(id);
        }
        told
    }

    fn gone(&mut self, id: ClientId) {
        self.clients.remove(&id);
        self.keeper.client_gone(id);
    }
}
