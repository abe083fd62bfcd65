//! `--daemon`: the parent waits until its child serves, and passes on what it says if it does not.
//!
//! The program is started a second time rather than forked: no thread, lock or descriptor of the parent is inherited
//! half-way. The child's standard output is the report: one line when it serves, end of file when it ended instead.

use std::{
    env,
    ffi::OsString,
    io::{self, Read, Write},
    os::unix::process::ExitStatusExt,
    process::{Child, Command, Stdio},
    thread,
};

use nix::unistd;
use tarbox_types::ErrorKind;

use crate::failure::{FAILED, Failure, OK};

/// The flag that tells a child that it is one.
pub const CHILD_FLAG: &str = "--daemon-child";

fn failed(doing: &str) -> impl FnOnce(io::Error) -> Failure {
    let doing = doing.to_owned();
    move |source| Failure::Io { doing, source }
}

/// Starts the child with the same arguments, waits for its report, and returns the exit code.
///
/// # Errors
/// Where it cannot be started.
pub fn start(arguments: impl Iterator<Item = OsString>) -> Result<u8, Failure> {
    let program = env::current_exe().map_err(failed("find this program"))?;
    let child = Command::new(program)
        .args(arguments)
        .arg(CHILD_FLAG)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed("start the daemon"))?;
    follow(child)
}

fn follow(mut child: Child) -> Result<u8, Failure> {
    let mut said = child.stderr.take();
    let messages = thread::spawn(move || {
        let mut stderr = io::stderr();
        said.as_mut().map_or(Ok(0), |said| io::copy(said, &mut stderr))
    });
    let mut report = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_string(&mut report).map_err(failed("read the daemon's report"))?;
    }
    // Both pipes end when the child serves (it lets go of them) or when it is gone.
    let _ = messages.join();
    if !report.is_empty() {
        let _ = io::stdout().write_all(report.as_bytes());
        return Ok(OK);
    }
    let status = child.wait().map_err(failed("wait for the daemon"))?;
    match (status.code(), status.signal()) {
        (Some(code), _) => Ok(u8::try_from(code).unwrap_or(FAILED)),
        (None, signal) => {
            let message = format!("the daemon was killed by signal {} before it served", signal.unwrap_or(0));
            Err(Failure::refused(ErrorKind::Internal, message))
        }
    }
}

/// In the child, first of all: leaves the terminal's session, so that its hang-up and its Ctrl-C do not reach us.
///
/// # Errors
/// As setsid(2).
pub fn leave_terminal() -> Result<(), Failure> {
    unistd::setsid().map(|_| ()).map_err(|errno| failed("leave the terminal")(errno.into()))
}

/// In the child, when it serves: reports, and lets go of everything of the parent.
///
/// # Errors
/// As write(2), dup2(2).
pub fn report(line: &str) -> Result<(), Failure> {
    writeln!(io::stdout(), "{line}").map_err(failed("report to the parent"))?;
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(failed("open /dev/null"))?;
    unistd::dup2_stdout(&null)
        .and_then(|()| unistd::dup2_stderr(&null))
        .map_err(|errno| failed("let go of the parent's pipes")(errno.into()))?;
    // The working directory would keep another mount busy.
    env::set_current_dir("/").map_err(failed("change to /"))
}
