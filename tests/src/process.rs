//! Processes of the product: what /proc tells of them, and their sudden end.

use std::{fs, time::Duration};

use nix::{
    libc,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::deadline::wait_for;

const LIMIT: Duration = Duration::from_secs(60);

/// What a mounter was handed over that must stand on no command line; one that was just started is waited for.
///
/// # Panics
/// If it has nothing of that kind.
#[must_use]
pub fn secrets_of(pid: u32) -> String {
    let path = wait_for("secrets", LIMIT, || {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
        let is_secret = |path: &std::path::PathBuf| {
            fs::read_link(path).is_ok_and(|to| to.to_string_lossy().starts_with("/memfd:tarbox-secrets"))
        };
        open.map(|entry| entry.path()).find(is_secret)
    });
    fs::read_to_string(path.expect("secrets")).expect("read")
}

/// Kills it.
///
/// # Panics
/// If it is not there.
pub fn kill_9(pid: u32) {
    assert!(kill_if_there(pid), "there is no process {pid}");
}

/// Stops it (SIGSTOP), and returns when none of its threads runs any more: until then one may still answer.
///
/// # Panics
/// If it is not there.
pub fn stop(pid: u32) {
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGSTOP).expect("stop");
    let stands = |stat: String| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'));
    wait_for("a process that is stopped", LIMIT, || {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
        let mut stats = threads.filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok());
        stats.all(stands).then_some(())
    })
    .expect("stopped");
}

/// Lets one that was stopped go on; one that has ended meanwhile is no failure.
pub fn go_on(pid: u32) {
    let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGCONT);
}

/// Kills it, where it is still there; whether it was.
pub fn kill_if_there(pid: u32) -> bool {
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).is_ok()
}

/// A lock of this kind on a whole file.
#[must_use]
pub fn whole_file(kind: i32) -> libc::flock {
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 }
}
