//! A mounted directory that is gone when the test is, whatever happened.
#![allow(dead_code)] // Each test file uses its part.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use fuse3::raw::Filesystem;
use nix::mount::{MntFlags, umount2};
use tarbox_engine::nullfs::{MemFs, MemFsOptions};
use tarbox_engine::{
    Ended, MountOptions, Recovered, Session, SessionConfig, SessionParts, SlotsLayout, create_slots, mount,
};

/// Nothing in these tests takes longer, even on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// A mount point. Dropping it aborts the connection, so that nobody hangs in it, and removes it.
pub(crate) struct Stage {
    directory: tempfile::TempDir,
}

impl Stage {
    pub(crate) fn new() -> Self {
        static GUARD: Once = Once::new();
        GUARD.call_once(guard_mounts);
        Self { directory: tempfile::Builder::new().prefix(&prefix()).tempdir().unwrap() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub(crate) fn mount(&self) -> OwnedFd {
        mount(&MountOptions { allow_other: true, ..MountOptions::new(self.path(), "stage") }).unwrap()
    }

    /// Mounts, with slots of its own.
    pub(crate) fn parts(&self) -> SessionParts {
        parts_of(vec![self.mount()])
    }
}

pub(crate) fn parts_of(devices: Vec<OwnedFd>) -> SessionParts {
    // Small, as many tests run at a time.
    let slots = create_slots(SlotsLayout { big: 8, small: 128, max_write: 1 << 20 }).unwrap();
    SessionParts { devices, slots, init: None }
}

fn prefix() -> String {
    format!("tarbox-stage-{}-", std::process::id())
}

/// A process that is killed while one of its threads waits for its own file system never ends: the descriptor of the
/// connection is not closed before that thread has its answer. So somebody else unmounts when this process is dead.
#[allow(clippy::zombie_processes)] // It outlives us.
fn guard_mounts() {
    let script = r#"
        while [ -e /proc/$1 ] && ! grep -q '^State:.Z' /proc/$1/status; do sleep 1; done
        grep -o "/[^ ]*/$2[^ ]*" /proc/mounts | while read -r path; do umount -f -l "$path"; done
    "#;
    let pid = std::process::id().to_string();
    let mut guard = Command::new("sh");
    guard
        .args(["-c", script, "guard", &pid, &prefix()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    guard.spawn().unwrap();
}

impl Drop for Stage {
    fn drop(&mut self) {
        // MNT_FORCE aborts the FUSE connection.
        let _ = umount2(self.path(), MntFlags::MNT_FORCE | MntFlags::MNT_DETACH);
    }
}

/// A served [`MemFs`] on a stage.
pub(crate) struct Served {
    pub(crate) stage: Stage,
    pub(crate) fs: Arc<MemFs>,
    pub(crate) session: Session,
}

pub(crate) async fn serve_memory(options: MemFsOptions) -> Served {
    let stage = Stage::new();
    let fs = Arc::new(MemFs::new(options));
    let session = start(&fs, stage.parts(), SessionConfig::default()).await;
    Served { stage, fs, session }
}

pub(crate) async fn start<F>(fs: &Arc<F>, parts: SessionParts, config: SessionConfig) -> Session
where
    F: Filesystem + Send + Sync + 'static,
{
    start_recovering(fs, parts, config).await.0
}

pub(crate) async fn start_recovering<F>(
    fs: &Arc<F>,
    parts: SessionParts,
    config: SessionConfig,
) -> (Session, Recovered)
where
    F: Filesystem + Send + Sync + 'static,
{
    let session = Session::start(Arc::clone(fs), parts, config, tokio::runtime::Handle::current()).unwrap();
    let (_, recovered) = within(session.serving()).await.unwrap();
    (session, recovered)
}

/// Fails instead of waiting for ever.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("took longer than the deadline")
}

/// Uses the mount as an application does: on a thread that may block.
pub(crate) async fn apply<T: Send + 'static>(application: impl FnOnce() -> T + Send + 'static) -> T {
    within(tokio::task::spawn_blocking(application)).await.unwrap()
}

/// Waits until `condition` holds.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < DEADLINE, "not within the deadline: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

pub(crate) async fn ended(session: &Session) -> Ended {
    within(session.wait()).await
}

/// How often the operation `name` was answered.
pub(crate) fn count(session: &Session, name: &str) -> u64 {
    session
        .statistics()
        .iter()
        .find(|operation| operation.name == name)
        .map_or(0, |operation| operation.latencies.count)
}

/// A child that is killed when the test is over.
pub(crate) struct Killed(pub(crate) Child);

impl Killed {
    pub(crate) fn spawn(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    pub(crate) async fn exit(&mut self) -> ExitStatus {
        let mut status = None;
        let child = &mut self.0;
        eventually("the child exits", || {
            status = child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap()
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Lets children inherit the descriptor; returns its number.
pub(crate) fn inheritable(descriptor: &OwnedFd) -> RawFd {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    descriptor.as_raw_fd()
}

pub(crate) fn duplicate(descriptor: &OwnedFd) -> OwnedFd {
    descriptor.try_clone().unwrap()
}

pub(crate) fn as_file(descriptor: &OwnedFd) -> File {
    File::from(duplicate(descriptor))
}

pub(crate) fn errno<T: std::fmt::Debug>(outcome: io::Result<T>) -> i32 {
    outcome.unwrap_err().raw_os_error().unwrap()
}
