//! A keeper of its own for each test.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tarbox_handover::{Client, ProcessId, SpawnSpec, Spawned};
use tempfile::TempDir;

/// Nothing here takes that long, unless it hangs.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// A running keeper; what it has started is killed with it.
pub(crate) struct Place {
    pub(crate) keeper: Child,
    directory: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("tarbox-keeper-").tempdir().expect("a directory");
        let keeper = start(&directory.path().join("socket"));
        let place = Self { keeper, directory };
        place.client();
        place
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    pub(crate) fn client(&self) -> Client {
        wait_for("the keeper to listen", || Client::connect(&self.socket()).ok())
    }

    /// Starts a shell that does `script`; returns it and the file that its output goes to.
    pub(crate) fn shell(&self, client: &mut Client, role: &str, script: &str) -> (Spawned, File) {
        let (spec, shell, log) = shell(script);
        let spawned = client.spawn("k", role, &spec, &[shell.as_fd(), log.as_fd()]).expect("spawn");
        (spawned, log)
    }

    /// How many descriptors the keeper has.
    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.keeper.id())).expect("list").count()
    }

    /// Kills the keeper alone and starts another one at the same place.
    pub(crate) fn replace(&mut self) {
        self.keeper.kill().expect("kill");
        self.keeper.wait().expect("wait");
        self.keeper = start(&self.socket());
        self.client();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Ok(mut client) = Client::connect(&self.socket()) {
            // Nothing is restarted while somebody attends.
            let _ = client.attend();
            for child in client.children().unwrap_or_default() {
                let _ = client.signal(ProcessId { pid: child.pid, start_time: child.start_time }, 9);
            }
        }
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

pub(crate) fn start(socket: &std::path::Path) -> Child {
    let mut keeper = Command::new(env!("CARGO_BIN_EXE_tarbox-keeper"));
    keeper.arg("--socket").arg(socket).stdin(Stdio::null()).spawn().expect("start the keeper")
}

/// How to start a shell; its descriptors: the shell, and the log.
pub(crate) fn shell(script: &str) -> (SpawnSpec, File, File) {
    let spec = SpawnSpec {
        argv: ["sh", "-c", script].map(|word| word.as_bytes().to_vec()).to_vec(),
        env: vec![b"PATH=/usr/bin:/bin".to_vec()],
        log: Some(1),
        ..SpawnSpec::default()
    };
    (spec, File::open("/bin/sh").expect("a shell"), file())
}

pub(crate) fn file() -> File {
    tempfile::tempfile().expect("a file")
}

/// All that has been written to a file so far. Its position stays where the writers have it.
pub(crate) fn text(file: &File) -> String {
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
    fs::read_to_string(path).expect("read")
}

pub(crate) fn rewound(descriptor: impl Into<OwnedFd>) -> String {
    let mut file = File::from(descriptor.into());
    let mut text = String::new();
    file.rewind().and_then(|()| file.read_to_string(&mut text)).expect("read");
    text
}

pub(crate) fn borrowed(descriptors: &[File]) -> Vec<BorrowedFd<'_>> {
    descriptors.iter().map(AsFd::as_fd).collect()
}

pub(crate) fn wait_for<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + LIMIT;
    loop {
        if let Some(result) = done() {
            return result;
        }
        assert!(Instant::now() < until, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
