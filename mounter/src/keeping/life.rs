//! One serving process, from its start to its death.

use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use tarbox_handover::{
    FromMounter, Kept, ProcessId, Received, SupervisorLink, ToMounter, message::Mode, process::send_signal,
    protocol::Exited,
};
use tokio::{sync::mpsc, time::Instant};

use super::order::Order;
use crate::failure::{Chain, Failure};

/// How long SIGKILL may take. A process that is in the kernel's hands takes as long as those do.
const DEATH: Duration = Duration::from_secs(10);

/// A serving process.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) id: ProcessId,
    pub(super) since: Instant,
    pub(super) executable: Arc<File>,
    pub(super) is_serving: bool,
    pub(super) is_standing_by: bool,
    /// Its last words.
    pub(super) words: Option<String>,
    /// When it counts as hanging.
    pub(super) deadline: Option<Instant>,
    process: Arc<Process>,
    heard: mpsc::Receiver<Heard>,
}

/// The descriptors of a process. A thread waits on both until it is dead, and takes its exit status.
#[derive(Debug)]
struct Process {
    id: ProcessId,
    pidfd: OwnedFd,
    link: SupervisorLink,
}

/// Messages that may wait: a life has fewer.
const WAITING: usize = 16;

/// What a process lets be known.
#[derive(Debug)]
pub(super) enum Heard {
    /// It says something.
    Says(FromMounter),
    /// It is dead, and reaped.
    Died(Exited),
}

impl Life {
    /// Starts a process of `executable` and hands over what is kept.
    pub(super) fn start(
        order: &Order,
        executable: &Arc<File>,
        mode: Mode,
        kept: &Kept,
    ) -> Result<Self, Failure> {
        let started = order.start(executable)?;
        let process = Arc::new(Process { id: started.id, pidfd: started.pidfd, link: started.link });
        let (sender, heard) = mpsc::channel(WAITING);
        let watched = Arc::clone(&process);
        let thread = thread::Builder::new().name("child".to_owned());
        thread
            .spawn(move || watched.watch(&sender))
            .map_err(|source| Failure::Io { doing: "watch the serving process".to_owned(), source })?;
        let life = Self {
            id: process.id,
            since: Instant::now(),
            executable: Arc::clone(executable),
            is_serving: false,
            is_standing_by: false,
            words: None,
            deadline: None,
            process,
            heard,
        };
        let (start, descriptors) = kept.start(mode);
        life.tell(&ToMounter::Start(start), &descriptors);
        Ok(life)
    }

    /// Tells it something. If it is dead already, that is seen by its pidfd.
    pub(super) fn tell(&self, message: &ToMounter, descriptors: &[BorrowedFd<'_>]) {
        if let Err(error) = self.process.link.try_send(message, descriptors) {
            tracing::debug!(error = %Chain(&error), pid = self.id.pid, "the serving process could not be told");
        }
    }

    /// The next thing to know of it; its last words come before its death, and nothing after that.
    ///
    /// # Cancel safety
    /// Safe: what was not returned is returned by the next call.
    pub(super) async fn next(&mut self) -> Heard {
        match self.heard.recv().await {
            Some(heard) => heard,
            None => std::future::pending().await,
        }
    }

    /// Sends a signal; nothing happens if it is dead.
    pub(super) fn signal(&self, signal: i32) {
        if let Err(error) = send_signal(&self.process.pidfd, signal) {
            tracing::warn!(error = %Chain(&error), pid = self.id.pid, "the serving process could not be signalled");
        }
    }

    /// Kills it, and returns when it is certainly dead.
    pub(super) async fn kill(mut self) {
        self.signal(nix::libc::SIGKILL);
        let died = async { while !matches!(self.next().await, Heard::Died(_)) {} };
        if tokio::time::timeout(DEATH, died).await.is_err() {
            tracing::error!(pid = self.id.pid, "a process does not die of SIGKILL");
        }
    }
}

impl Drop for Life {
    /// One that is not needed any more ends; its thread takes its exit status. None is dropped alive that serves a mount.
    fn drop(&mut self) {
        if !self.is_serving {
            self.signal(nix::libc::SIGKILL);
        }
    }
}

impl Process {
    fn watch(&self, sender: &mpsc::Sender<Heard>) {
        let mut is_listening = true;
        loop {
            if let Err(errno) = self.wait(is_listening) {
                tracing::error!(%errno, "the serving process cannot be watched");
                return;
            }
            // Asked before its last words are read, so that none of them comes after its death.
            let dead = tarbox_keeper::reap(self.id);
            while is_listening {
                match self.link.try_receive() {
                    // Nobody may listen any more to one that is to end: its death is waited for all the same.
                    Ok(Received::Message(message, _)) => drop(sender.blocking_send(Heard::Says(message))),
                    Ok(Received::Nothing) => break,
                    Ok(Received::Closed) => is_listening = false,
                    Err(error) => {
                        tracing::warn!(error = %Chain(&error), "the serving process is not understood");
                    }
                }
            }
            if let Some(how) = dead {
                drop(sender.blocking_send(Heard::Died(how)));
                return;
            }
        }
    }

    /// Waits until there is something to hear, or it is dead.
    fn wait(&self, is_listening: bool) -> Result<(), Errno> {
        let mut watched = vec![PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        if is_listening {
            watched.push(PollFd::new(self.link.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut watched, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}
