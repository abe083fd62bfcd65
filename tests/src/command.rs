//! Programs run to their end, with a deadline, and with all they said in the error.

use std::{
    ffi::OsStr,
    io::Read,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use crate::deadline::wait_for;

/// What a program said and how it ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Exit code; `None` after a signal.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// Runs a program to its end.
///
/// # Errors
/// If it cannot be started, or has not ended in time (it and its children are then killed).
pub fn end_of(command: &mut Command, limit: Duration) -> Result<Ended> {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| format!("start {shown}"))?;
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let ended = wait_for(&shown, limit, || child.try_wait().transpose());
    if ended.is_err() {
        kill_group(&mut child);
    }
    let (stdout, stderr) = (stdout.join().unwrap_or_default(), stderr.join().unwrap_or_default());
    match ended {
        Ok(status) => Ok(Ended { code: status?.code(), stdout, stderr }),
        Err(late) => bail!("{late}\nstdout: {stdout}\nstderr: {stderr}"),
    }
}

/// Runs a program that has to succeed; returns its standard output.
///
/// # Errors
/// As [`end_of`], and if it fails: with all it said.
pub fn succeed(command: &mut Command, limit: Duration) -> Result<String> {
    let ended = end_of(command, limit)?;
    if ended.code != Some(0) {
        bail!("{command:?} ended with {:?}\nstdout: {}\nstderr: {}", ended.code, ended.stdout, ended.stderr);
    }
    Ok(ended.stdout)
}

/// Runs a shell script (`sh -eu`) in a directory; the words after it are `$1`, `$2` ….
///
/// # Errors
/// As [`succeed`].
pub fn shell<S: AsRef<OsStr>>(dir: &Path, script: &str, words: &[S], limit: Duration) -> Result<String> {
    succeed(Command::new("sh").args(["-euc", script, "sh"]).args(words).current_dir(dir), limit)
}

fn kill_group(child: &mut Child) {
    // Its own group: only what this command started.
    let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
    let _ = child.wait();
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
