//! A database, a state directory and a mount point of a test's own, and programs run on them.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// How long anything may take on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// What a program said and how it ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// Asserts the exit code and what stands in the messages.
    #[track_caller]
    pub(crate) fn expect(&self, code: i32, said: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        let all = format!("{}{}", self.stdout, self.stderr);
        for part in said {
            assert!(all.contains(part), "`{part}` is not in:\n{all}");
        }
    }

    /// Standard output as JSON, of a program that succeeded.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }
}

pub(crate) struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for name in ["mnt", "state", "home"] {
            fs::create_dir(directory.path().join(name)).expect("mkdir");
        }
        Self { directory }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        fs::canonicalize(self.directory.path()).expect("canonical").join(name)
    }

    /// A tenant with a file that only the journal of a mounter has, that died and whose mount is gone.
    pub(crate) fn leave_uncommitted(&self, tenant: &str, file: &str, content: &str) {
        let mounted = self.mount(&["--tenant", tenant, "--flush-interval", "1h"]);
        let point = mounted.point.clone();
        fs::write(point.join(file), content).expect("write");
        mounted.kill();
        umount2(&point, MntFlags::MNT_DETACH).expect("umount");
    }

    pub(crate) fn url(&self) -> String {
        format!("sqlite://{}", self.path("db").display())
    }

    /// A program of ours with this place's configuration and nothing of ours from outside.
    pub(crate) fn command(&self, program: &str) -> Command {
        let path = match program {
            "tarbox" => env!("CARGO_BIN_EXE_tarbox"),
            "tarbox-mount" => env!("CARGO_BIN_EXE_tarbox-mount"),
            other => panic!("{other} is not ours"),
        };
        let mut command = Command::new(path);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("TARBOX_") || name.to_string_lossy().starts_with("XDG_") {
                command.env_remove(name);
            }
        }
        command.env("HOME", self.path("home")).env("TARBOX_DATABASE_URL", self.url());
        command.env("TARBOX_STATE_DIR", self.path("state")).env("TARBOX_JOURNAL_SIZE", "16Mi");
        command
    }

    pub(crate) fn tarbox(&self, arguments: &[&str]) -> Ended {
        end_of(self.command("tarbox").args(arguments))
    }

    /// `tarbox-mount` that is expected to end by itself.
    pub(crate) fn mount_fails(&self, arguments: &[&str]) -> Ended {
        end_of(self.command("tarbox-mount").args(arguments).arg(self.path("mnt")))
    }

    pub(crate) fn mount(&self, arguments: &[&str]) -> Mounted {
        self.mount_at("mnt", arguments)
    }

    pub(crate) fn mount_at(&self, name: &str, arguments: &[&str]) -> Mounted {
        let point = self.path(name);
        let mut command = self.command("tarbox-mount");
        Mounted::start(command.args(arguments).arg(&point), point)
    }
}

/// Runs a program to its end.
pub(crate) fn end_of(command: &mut Command) -> Ended {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{shown}: {error}"));
    let stdout = drain(child.stdout.take().expect("stdout"));
    let stderr = drain(child.stderr.take().expect("stderr"));
    let code = wait(&mut child, &shown);
    Ended { code, stdout: stdout.join().expect("stdout"), stderr: stderr.join().expect("stderr") }
}

fn drain(mut from: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut all = Vec::new();
        let _ = from.read_to_end(&mut all);
        String::from_utf8_lossy(&all).into_owned()
    })
}

fn wait(child: &mut Child, shown: &str) -> Option<i32> {
    let mut status = None;
    let ended = until(|| {
        status = child.try_wait().expect("wait");
        status.is_some()
    });
    if !ended {
        let _ = child.kill();
        panic!("{shown} has not ended within {LIMIT:?}");
    }
    status.and_then(|status| status.code())
}

/// Waits for a condition; whether it came true.
pub(crate) fn until(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(2));
    }
    true
}

pub(crate) fn is_mounted(point: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    table.lines().filter_map(|line| line.split(' ').nth(4)).any(|mounted| Path::new(mounted) == point)
}

/// A mounter in the foreground. Killed and unmounted when dropped.
pub(crate) struct Mounted {
    child: Child,
    pub(crate) point: PathBuf,
    /// The line it printed.
    pub(crate) line: String,
    /// What it has said on standard error.
    said: Arc<Mutex<String>>,
    stderr: Option<thread::JoinHandle<()>>,
}

/// Collects what is said, readable meanwhile.
fn listen(from: impl Read + Send + 'static) -> (Arc<Mutex<String>>, thread::JoinHandle<()>) {
    let said = Arc::new(Mutex::new(String::new()));
    let heard = Arc::clone(&said);
    let thread = thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            heard.lock().expect("said").push_str(&format!("{line}\n"));
        }
    });
    (said, thread)
}

impl Mounted {
    fn start(command: &mut Command, point: PathBuf) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start tarbox-mount");
        let (said, stderr) = listen(child.stderr.take().expect("stderr"));
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("a line");
        if line.is_empty() {
            let code = wait(&mut child, "tarbox-mount");
            stderr.join().expect("stderr");
            panic!("tarbox-mount ended with {code:?}: {}", said.lock().expect("said"));
        }
        Self { child, point, line, said, stderr: Some(stderr) }
    }

    /// Waits until it has said this; all that it has said.
    pub(crate) fn wait_for_words(&self, words: &str) -> String {
        let said = || self.said.lock().expect("said").clone();
        assert!(until(|| said().contains(words)), "`{words}` was not said: {}", said());
        said()
    }

    /// The process that serves.
    pub(crate) fn pid(&self) -> u32 {
        let mut pid = None;
        until(|| {
            pid = serving(self.child.id()).first().copied();
            pid.is_some()
        });
        pid.expect("somebody serves")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("kill");
    }

    /// Waits for its end.
    pub(crate) fn end(mut self) -> Ended {
        let code = wait(&mut self.child, "tarbox-mount");
        self.stderr.take().expect("not ended before").join().expect("stderr");
        Ended { code, stdout: self.line.clone(), stderr: self.said.lock().expect("said").clone() }
    }

    /// Kills both of its processes; the mount stays behind, dead.
    pub(crate) fn kill(mut self) {
        let serving = serving(self.child.id());
        // First the one that would start another.
        self.child.kill().expect("kill");
        for pid in serving {
            kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).expect("kill");
            assert!(until(|| !Path::new(&format!("/proc/{pid}/fd/0")).exists()), "it does not die");
        }
        self.child.wait().expect("wait");
        // Dropped without unmounting.
        self.point = PathBuf::new();
    }
}

fn serving(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let serving = serving(self.child.id());
        if is_mounted(&self.point) {
            let _ = umount2(&self.point, MntFlags::MNT_DETACH);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pid in serving {
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Mounts that a failed test left.
        for name in ["mnt", "other"] {
            while self.directory.path().exists() && is_mounted(&self.path(name)) {
                if umount2(&self.path(name), MntFlags::MNT_DETACH).is_err() {
                    break;
                }
            }
        }
    }
}
