//! A supervised mounter, played from the other side: this process mounts, keeps the descriptors and the slots, spawns the real
//! `tarbox-mount --control-fd`, kills it and starts the next one.

use std::{
    fs,
    io::{Read, Write},
    os::fd::{AsRawFd, OwnedFd},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    mount::{MntFlags, umount2},
};
use tarbox_engine::{MountOptions, SlotsLayout, create_slots, mount};
use tarbox_handover::{
    FromMounter, Kept, Received, SupervisorLink, ToMounter,
    message::{Drain, Hello, Mode, Serving, Stop, TakeOver},
    sealed,
};
use tarbox_store::{Compression, Limits, NewTenant};
use tarbox_types::TenantId;

use crate::{
    command::{self, Ended},
    deadline::{patient, wait_for},
    postgres::PostgresServer,
    product,
    scratch::{Scratch, require_root},
    volume::Database,
};

/// Nothing takes longer, even on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// A mounted tenant and whoever serves it.
#[derive(Debug)]
pub struct Supervised {
    serving: Option<Mounter>,
    kept: Kept,
    mountpoint: PathBuf,
    state_dir: PathBuf,
    url: String,
    tenant: TenantId,
    args: Vec<String>,
    server: Option<PostgresServer>,
    ready: Mutex<Option<Ready>>,
    scratch: Scratch,
}

/// A process that was started while the file system was served, and executes a mounter when it is told to.
///
/// A child closes what it inherits of this process's files when it executes its program. Up to Linux 6.12 at least, that waits for the lock
/// of an inode that a call of another thread holds until it is answered (`fuse_flush`): by the very process that the child is to become.
/// A keeper is safe from that as it has no file of any volume; this process is full of them.
#[derive(Debug)]
struct Ready {
    child: Child,
    link: SupervisorLink,
    /// The other end of the link, as the child knows it.
    control: i32,
}

impl Ready {
    fn start(log: &Path) -> Result<Self> {
        let (link, theirs) = SupervisorLink::pair()?;
        let mut shell = Command::new("setpriv");
        // A word a line, to the first empty one. The end of the input does not come before every child has closed what it inherited of it.
        let script = r#"echo; log=$1; shift; while IFS= read -r word && [ -n "$word" ]; do set -- "$@" "$word"; done; exec "$@" </dev/null >>"$log" 2>&1"#;
        shell.args(["--pdeathsig=KILL", "sh", "-c", script, "ready"]).arg(log);
        let control = inheritable(&theirs)?;
        let mut child = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        // Kernel 5.10 says that a program is executed before it closes what was inherited: only the program itself can tell.
        let told = child.stdout.take().context("piped")?.read(&mut [0])?;
        ensure!(told == 1, "the shell that executes a mounter does not start");
        Ok(Self { child, link, control })
    }

    fn execute(mut self, words: &[String]) -> Result<Mounter> {
        let mut stdin = self.child.stdin.take().context("piped")?;
        write!(stdin, "{}\n\n", words.join("\n"))?;
        Ok(Mounter { child: self.child, link: self.link, hello: Hello::default() })
    }
}

/// One process.
#[derive(Debug)]
pub struct Mounter {
    child: Child,
    link: SupervisorLink,
    /// What it said first.
    pub hello: Hello,
}

impl Supervised {
    /// A new tenant, mounted, with nobody serving it yet.
    ///
    /// # Panics
    /// If it cannot be had.
    #[must_use]
    pub fn prepare(on: Database, args: &[&str]) -> Self {
        require_root();
        let scratch = Scratch::on_disk().expect("a scratch directory");
        let server = (on == Database::Postgres).then(|| PostgresServer::start().expect("PostgreSQL"));
        let sub = |name: &str| scratch.sub(name).expect("a directory");
        let url = match &server {
            Some(server) => server.url(),
            None => format!("sqlite://{}", sub("db").display()),
        };
        let tenant = TenantId::random();
        let mountpoint = sub("mnt");
        block_on(create(&url, tenant)).expect("create the tenant");
        let kept = mounted(&mountpoint, &url).expect("mount");
        guard(&mountpoint);
        // As in production, in memory: a disk would be measured instead.
        let state_dir = PathBuf::from(format!("/dev/shm/tarbox-test-{tenant}"));
        let args = args.iter().map(ToString::to_string).collect();
        Self {
            serving: None,
            kept,
            mountpoint,
            state_dir,
            url,
            tenant,
            args,
            server,
            ready: Mutex::default(),
            scratch,
        }
    }

    /// A new tenant, served.
    ///
    /// # Panics
    /// If it cannot be had.
    #[must_use]
    pub fn start(on: Database, args: &[&str]) -> Self {
        let mut supervised = Self::prepare(on, args);
        supervised.serve().expect("serve");
        supervised
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.mountpoint
    }

    /// Where its database is.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The directory of journal and control socket.
    #[must_use]
    pub fn tenant_dir(&self) -> PathBuf {
        self.state_dir.join(self.tenant.to_string())
    }

    /// The database server.
    ///
    /// # Panics
    /// If the tenant is not kept in PostgreSQL.
    pub fn server(&mut self) -> &mut PostgresServer {
        self.server.as_mut().expect("kept in PostgreSQL")
    }

    /// Further arguments, from the next process on.
    pub fn args(&mut self) -> &mut Vec<String> {
        &mut self.args
    }

    /// Who serves.
    ///
    /// # Panics
    /// If nobody does.
    #[must_use]
    pub fn mounter(&self) -> &Mounter {
        self.serving.as_ref().expect("served")
    }

    /// All that mounters have said.
    #[must_use]
    pub fn said(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    fn log(&self) -> PathBuf {
        self.scratch.path().join("log")
    }

    /// The next process is started before there is nobody who serves: see [`Ready`].
    fn get_ready(&self) -> Result<()> {
        let mut ready = self.ready.lock().expect("no panic");
        if ready.is_none() {
            *ready = Some(Ready::start(&self.log())?);
        }
        Ok(())
    }

    /// Starts a process; it has said Hello, and been told what it is for.
    ///
    /// # Errors
    /// If it does not.
    pub fn spawn(&self, mode: Mode) -> Result<Mounter> {
        let ready = self.ready.lock().expect("no panic").take();
        let ready = ready.map_or_else(|| Ready::start(&self.log()), Ok)?;
        let text = |path: &Path| path.display().to_string();
        let mut words =
            vec![text(&product::program("tarbox-mount")), "--tenant-id".into(), self.tenant.to_string()];
        words.extend(["--control-fd".into(), ready.control.to_string()]);
        // Without what stands in the secrets.
        words.extend(["--database-url", "sqlite:///nowhere", "--state-dir"].map(Into::into));
        words.push(text(&self.state_dir));
        words.extend(self.args.iter().cloned().chain([text(&self.mountpoint)]));
        let mut mounter = ready.execute(&words)?;
        match mounter.hear()? {
            FromMounter::Hello(hello) => mounter.hello = hello,
            other => bail!("it began with {other:?}"),
        }
        let (start, descriptors) = self.kept.start(mode);
        mounter.link.send(&ToMounter::Start(start), &descriptors)?;
        Ok(mounter)
    }

    /// Starts a process that serves.
    ///
    /// # Errors
    /// If it does not come to that: with what it said.
    pub fn serve(&mut self) -> Result<Serving> {
        ensure!(self.serving.is_none(), "it is served");
        let mounter = self.spawn(Mode::Serve)?;
        self.served_by(mounter)
    }

    /// Waits until a process that was spawned to serve does.
    ///
    /// # Errors
    /// As [`Supervised::serve`].
    pub fn served_by(&mut self, mut mounter: Mounter) -> Result<Serving> {
        let serving = mounter.until_serving().with_context(|| self.said())?;
        self.serving = Some(mounter);
        self.teach()?;
        Ok(serving)
    }

    /// Lets the kernel learn that closing needs no message. Else a child that is spawned while nobody serves, and closes what
    /// it inherits of this process's files, would wait for an answer to FLUSH: from the very process that it is to become.
    fn teach(&self) -> Result<()> {
        let path = self.mountpoint.join(".closed");
        fs::write(&path, "x").context("write a file")?;
        fs::remove_file(&path).context("remove it")
    }

    /// Starts a process that stands by.
    ///
    /// # Errors
    /// If it does not come to that: with what it said.
    pub fn stand_by(&self) -> Result<Mounter> {
        let mut mounter = self.spawn(Mode::StandBy)?;
        match mounter.hear().with_context(|| self.said())? {
            FromMounter::StandingBy(_) => Ok(mounter),
            other => bail!("it said {other:?}\n{}", self.said()),
        }
    }

    /// Kills who serves with SIGKILL, and waits for its death.
    ///
    /// # Panics
    /// If nobody serves.
    pub fn kill(&mut self) {
        self.get_ready().expect("a process");
        self.serving.take().expect("served").kill();
    }

    /// The stand-by serves from now on.
    ///
    /// # Errors
    /// If it does not: with what it said.
    pub fn take_over(&mut self, mut mounter: Mounter) -> Result<Serving> {
        ensure!(self.serving.is_none(), "it is served");
        mounter.link.send(&ToMounter::TakeOver(TakeOver {}), &[])?;
        let serving = mounter.until_serving().with_context(|| self.said())?;
        self.serving = Some(mounter);
        Ok(serving)
    }

    /// Lets who serves leave the rest to a successor; how long until it was gone.
    ///
    /// # Errors
    /// If it does not end as it should.
    pub fn drain(&mut self, limit: Duration) -> Result<Duration> {
        self.get_ready()?;
        let mut mounter = self.serving.take().context("nobody serves")?;
        let millis = limit.as_millis() as u64;
        let begin = Instant::now();
        mounter.link.send(&ToMounter::Drain(Drain { millis }), &[])?;
        let status = mounter.child.wait()?;
        let took = begin.elapsed();
        ensure!(status.code() == Some(3), "it ended with {status}\n{}", self.said());
        mounter.expect(|said| matches!(said, FromMounter::Draining(_)))?;
        mounter.expect(|said| matches!(said, FromMounter::Drained(_)))?;
        Ok(took)
    }

    /// Replaces who serves by another process.
    ///
    /// # Errors
    /// If one of them does not do its part.
    pub fn upgrade(&mut self) -> Result<Serving> {
        let next = self.stand_by()?;
        self.drain(LIMIT)?;
        self.take_over(next)
    }

    /// Tells who serves to give everything back.
    ///
    /// # Errors
    /// If it does not end as it should.
    pub fn stop(&mut self) -> Result<()> {
        self.get_ready()?;
        let mut mounter = self.serving.take().context("nobody serves")?;
        mounter.link.send(&ToMounter::Stop(Stop {}), &[])?;
        let status = mounter.end()?;
        ensure!(status.code() == Some(0), "it ended with {status}\n{}", self.said());
        mounter
            .expect(|said| *said == FromMounter::Ended(tarbox_handover::message::Ended { unmounted: false }))
    }

    /// Unmounts, and waits until who serves has committed everything and ended well.
    ///
    /// # Errors
    /// If the mount is busy, or the mounter fails.
    pub fn unmount(&mut self) -> Result<()> {
        crate::mount::unmount(&self.mountpoint)?;
        let mut mounter = self.serving.take().context("nobody serves")?;
        let status = mounter.end()?;
        ensure!(status.code() == Some(0), "it ended with {status} after umount\n{}", self.said());
        mounter
            .expect(|said| *said == FromMounter::Ended(tarbox_handover::message::Ended { unmounted: true }))
    }

    /// Mounts again, and lets a new process serve.
    ///
    /// # Errors
    /// If that fails.
    pub fn remount(&mut self) -> Result<()> {
        ensure!(self.serving.is_none(), "it is served");
        self.kept = mounted(&self.mountpoint, &self.url)?;
        guard(&self.mountpoint);
        self.serve().map(drop)
    }

    /// Cuts the link, as a supervisor that dies.
    ///
    /// # Panics
    /// If nobody serves.
    pub fn forsake(&mut self) {
        self.serving.as_mut().expect("served").forsake();
    }

    /// Waits for the end of who serves.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn end(&mut self) -> Result<ExitStatus> {
        self.serving.take().context("nobody serves")?.end()
    }

    /// The last record that the database has.
    ///
    /// # Errors
    /// If it cannot be asked.
    pub fn committed(&self) -> Result<u64> {
        block_on(async {
            let database = tarbox_store::open(&self.url).await?;
            Ok(database.tenant(self.tenant).await?.context("no tenant")?.seq)
        })
    }

    /// Runs `tarbox` on this tenant's database.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn tarbox(&self, args: &[&str]) -> Result<Ended> {
        let mut command = Command::new(product::program("tarbox"));
        command.args(args).env("TARBOX_DATABASE_URL", &self.url);
        command.env("TARBOX_STATE_DIR", &self.state_dir);
        command::end_of(&mut command, Duration::from_secs(120))
    }

    /// Checks the unmounted tenant with `tarbox fsck`: it must find nothing.
    ///
    /// # Panics
    /// If it finds something.
    pub fn fsck(&self) {
        let ended = self.tarbox(&["fsck", "supervised"]).expect("fsck");
        assert_eq!(ended.code, Some(0), "fsck: {}{}", ended.stdout, ended.stderr);
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        // Whoever is blocked in it gets an error now, and lets go of it.
        let _ = umount2(&self.mountpoint, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH);
        drop(self.serving.take());
        if let Some(mut ready) = self.ready.lock().ok().and_then(|mut ready| ready.take()) {
            let _ = ready.child.kill();
            let _ = ready.child.wait();
        }
        let _ = fs::remove_dir_all(&self.state_dir);
    }
}

impl Mounter {
    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next thing it says.
    ///
    /// # Errors
    /// If it says nothing, or cannot be understood.
    pub fn hear(&mut self) -> Result<FromMounter> {
        loop {
            match self.hear_all()? {
                // On a busy machine everything takes its time.
                FromMounter::Waiting(_) => {}
                message => return Ok(message),
            }
        }
    }

    /// As [`Mounter::hear`], also that it waits for something.
    ///
    /// # Errors
    /// As [`Mounter::hear`].
    pub fn hear_all(&mut self) -> Result<FromMounter> {
        match self.link.receive_within(patient(LIMIT))? {
            Received::Message(message, _) => Ok(message),
            Received::Nothing => bail!("it says nothing"),
            Received::Closed => bail!("it is gone: {:?}", self.child.try_wait()),
        }
    }

    fn until_serving(&mut self) -> Result<Serving> {
        match self.hear()? {
            FromMounter::Serving(serving) => Ok(serving),
            other => bail!("it said {other:?}"),
        }
    }

    fn expect(&mut self, wanted: impl Fn(&FromMounter) -> bool) -> Result<()> {
        let said = self.hear()?;
        ensure!(wanted(&said), "it said {said:?}");
        Ok(())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// If it is gone.
    pub fn signal(&self, signal: nix::sys::signal::Signal) -> Result<()> {
        Ok(nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid().cast_signed()), signal)?)
    }

    fn forsake(&mut self) {
        if let Ok((link, _theirs)) = SupervisorLink::pair() {
            self.link = link;
        }
    }

    /// Kills it and waits for its death.
    ///
    /// # Panics
    /// If it cannot be killed.
    pub fn kill(mut self) {
        self.child.kill().expect("kill");
        let status = self.child.wait().expect("wait");
        assert_eq!(status.signal(), Some(9), "it had ended by itself: {status}");
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn end(&mut self) -> Result<ExitStatus> {
        Ok(wait_for("the mounter to end", LIMIT, || self.child.try_wait().transpose())??)
    }
}

impl Drop for Mounter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Mounts, with slots of its own.
fn mounted(mountpoint: &Path, url: &str) -> Result<Kept> {
    let options = MountOptions {
        allow_other: true,
        nosuid: false,
        nodev: false,
        ..MountOptions::new(mountpoint, "supervised")
    };
    let slots = create_slots(SlotsLayout { big: 32, ..SlotsLayout::default() })?;
    let secrets = sealed("secrets", format!("database_url = {url:?}\n").as_bytes())?;
    Ok(Kept { devices: vec![mount(&options)?], slots, journal: None, secrets: Some(secrets) })
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(work)
}

async fn create(url: &str, id: TenantId) -> Result<()> {
    let database: Arc<dyn tarbox_store::Database> = tarbox_store::open(url).await?;
    let new = NewTenant {
        id,
        name: "supervised".into(),
        limits: Limits { bytes: 0, inodes: 0, file_bytes: 0 },
        block_size: 128 << 10,
        compression: Compression::None,
        root_uid: 0,
        root_gid: 0,
        root_mode: 0o755,
    };
    database.create_tenant(&new).await?;
    Ok(())
}

/// Lets a child inherit the descriptor; returns its number.
fn inheritable(descriptor: &OwnedFd) -> Result<i32> {
    fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(descriptor.as_raw_fd())
}

/// A process that is killed while one of its threads waits for its own file system never ends: somebody else unmounts then.
#[allow(clippy::zombie_processes)] // It outlives us.
fn guard(mountpoint: &Path) {
    let script = "while [ -e /proc/$1 ] && ! grep -q '^State:.Z' /proc/$1/status; do sleep 1; done; umount -f -l \"$2\"";
    // In a session of its own: whoever ends the test by its process group is not to end this.
    let mut guard = Command::new("setsid");
    guard.args(["sh", "-c", script, "guard", &std::process::id().to_string()]).arg(mountpoint);
    let guard = guard.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    drop(guard.expect("a guard"));
}
