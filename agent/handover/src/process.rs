//! Which process is meant: pid, start time and executable; a pidfd to watch and signal it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use procfs::process::Process;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::HandoverError;
use crate::link::wait_readable;

/// A process that is not mistaken for another one that got its pid later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProcessId {
    /// Process id.
    pub pid: u32,
    /// When it started, in clock ticks since boot.
    pub start_time: u64,
}

/// A process, and what it executes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Which one.
    pub id: ProcessId,
    /// Its executable; None where it cannot be seen: a zombie, or another user's.
    pub executable: Option<PathBuf>,
}

impl ProcessId {
    /// The process that has this pid now, a zombie included.
    ///
    /// # Errors
    /// [`HandoverError::NoProcess`] where there is none.
    pub fn of(pid: u32) -> Result<Self, HandoverError> {
        let gone = HandoverError::NoProcess { pid, start_time: 0 };
        let Ok(stat) = Process::new(pid.cast_signed()).and_then(|process| process.stat()) else {
            return Err(gone);
        };
        Ok(Self { pid, start_time: stat.starttime })
    }

    /// This process.
    ///
    /// # Errors
    /// Where `/proc` is not there.
    pub fn own() -> Result<Self, HandoverError> {
        Self::of(std::process::id())
    }

    /// Whether it is there and no zombie.
    #[must_use]
    pub fn is_alive(self) -> bool {
        let stat = Process::new(self.pid.cast_signed()).and_then(|process| process.stat());
        stat.is_ok_and(|stat| stat.starttime == self.start_time && !matches!(stat.state, 'Z' | 'X'))
    }

    /// A descriptor of exactly this process.
    ///
    /// # Errors
    /// [`HandoverError::NoProcess`] where it is gone, even if its pid is in use again.
    pub fn open(self) -> Result<OwnedFd, HandoverError> {
        let gone = || HandoverError::NoProcess { pid: self.pid, start_time: self.start_time };
        let pid = Pid::from_raw(self.pid.cast_signed()).ok_or_else(gone)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|_| gone())?;
        // Looked at behind the descriptor: from here on the pid cannot change its meaning unnoticed.
        if Self::of(self.pid)? == self { Ok(pidfd) } else { Err(gone()) }
    }

    /// What it executes.
    ///
    /// # Errors
    /// [`HandoverError::NoProcess`] where it is gone.
    pub fn identity(self) -> Result<Identity, HandoverError> {
        let executable = Process::new(self.pid.cast_signed()).and_then(|process| process.exe()).ok();
        // Looked at last, so that the executable is not another process's.
        if Self::of(self.pid)? != self {
            return Err(HandoverError::NoProcess { pid: self.pid, start_time: self.start_time });
        }
        Ok(Identity { id: self, executable })
    }
}

/// Waits until the process of a pidfd has ended; false after `limit`.
///
/// # Errors
/// Where the descriptor is none of a process.
pub fn wait_exit(pidfd: impl AsFd, limit: Duration) -> Result<bool, HandoverError> {
    wait_readable(pidfd, limit)
}

/// Sends a signal by number (`signal(7)`); false if the process has ended.
///
/// # Errors
/// Where the number is no signal, or the process is not ours to signal.
pub fn send_signal(pidfd: impl AsFd, signal: i32) -> Result<bool, HandoverError> {
    let Some(signal) = Signal::from_named_raw(signal) else {
        return Err(HandoverError::Io {
            doing: "send a signal",
            source: std::io::Error::from(rustix::io::Errno::INVAL),
        });
    };
    match pidfd_send_signal(pidfd, signal) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::SRCH) => Ok(false),
        Err(errno) => Err(HandoverError::Io { doing: "send a signal", source: errno.into() }),
    }
}
