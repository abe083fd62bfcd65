//! One serving process, from its start to its death.

use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    thread,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use tarbox_handover::{
    FromMounter, HandoverError, Kept, ProcessId, Received, SupervisorLink, ToMounter, message::Mode,
    process::send_signal, protocol::Exited,
};
use tarbox_supervisor::{Build, Event, Process, Role};
use tokio::sync::mpsc;

use super::order::Order;
use crate::failure::{Chain, Failure};

/// A serving process, or one that is to serve.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) process: Process,
    pub(super) role: Role,
    pub(super) build: Build,
    pub(super) is_serving: bool,
    /// Its last words.
    pub(super) words: Option<String>,
    handles: Arc<Handles>,
}

/// The descriptors of a process. A thread waits on both until it is dead, and takes its exit status.
#[derive(Debug)]
struct Handles {
    id: ProcessId,
    pidfd: OwnedFd,
    link: SupervisorLink,
}

/// What this process hears.
#[derive(Debug)]
pub(super) enum Inbound {
    /// A serving process says something.
    Says(Process, FromMounter, Vec<OwnedFd>),
    /// It is dead, and reaped. Its last words came before, and nothing comes after.
    Died(Process, Exited),
    /// For the state machine.
    Event(Event),
}

impl Life {
    /// Starts a process of `executable` and hands over what is kept.
    pub(super) fn start(
        order: &Order,
        (build, executable): (Build, &File),
        role: Role,
        kept: &Kept,
        inbox: &mpsc::Sender<Inbound>,
    ) -> Result<Self, Failure> {
        let started = order.start(executable)?;
        let handles = Arc::new(Handles { id: started.id, pidfd: started.pidfd, link: started.link });
        let (watched, inbox) = (Arc::clone(&handles), inbox.clone());
        let thread = thread::Builder::new().name("child".to_owned());
        thread
            .spawn(move || watched.watch(&inbox))
            .map_err(|source| Failure::Io { doing: "watch the serving process".to_owned(), source })?;
        let process = Process::from(handles.id);
        let life = Self { process, role, build, is_serving: false, words: None, handles };
        let mode = match role {
            Role::Serve => Mode::Serve,
            Role::StandBy => Mode::StandBy,
        };
        let (start, descriptors) = kept.start(mode);
        if let Err(error) = life.tell(&ToMounter::Start(start), &descriptors) {
            // Dead already: that is seen by its pidfd.
            tracing::debug!(error = %Chain(&error), pid = process.pid, "the process could not be told to begin");
        }
        Ok(life)
    }

    /// Tells it something.
    ///
    /// # Errors
    /// Where it is dead, or does not read.
    pub(super) fn tell(
        &self,
        message: &ToMounter,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), HandoverError> {
        self.handles.link.tell(message, descriptors)
    }

    /// Sends a signal; nothing happens if it is dead.
    pub(super) fn signal(&self, signal: i32) {
        if let Err(error) = send_signal(&self.handles.pidfd, signal) {
            tracing::warn!(error = %Chain(&error), pid = self.process.pid, "the serving process could not be signalled");
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

impl Handles {
    fn watch(&self, inbox: &mpsc::Sender<Inbound>) {
        let process = Process::from(self.id);
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
                    Ok(Received::Message(message, descriptors)) => {
                        drop(inbox.blocking_send(Inbound::Says(process, message, descriptors)));
                    }
                    Ok(Received::Nothing) => break,
                    Ok(Received::Closed) => is_listening = false,
                    Err(error) => {
                        tracing::warn!(error = %Chain(&error), "the serving process is not understood");
                    }
                }
            }
            if let Some(how) = dead {
                drop(inbox.blocking_send(Inbound::Died(process, how)));
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
