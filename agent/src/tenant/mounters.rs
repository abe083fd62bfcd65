//! A tenant's processes: what they say, when they die.

use std::{io, os::fd::OwnedFd, sync::Arc, time::Duration};

use tarbox_handover::{FromMounter, HandoverError, ProcessId, Received, SupervisorLink, ToMounter};
use tarbox_runtime::readable;
use tarbox_supervisor::{Cause, Event, Process};
use tokio::{io::unix::AsyncFd, sync::mpsc, task::JoinHandle};

use super::{beside, shell::Inbound};
use crate::keeper::Keeper;

/// How long the keeper may take to say how a dead process ended: it knows, and is only slow while it starts others.
const VERDICT_WITHIN: Duration = Duration::from_secs(10);

/// A process of the tenant that is listened to and watched.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) process: Process,
    link: Arc<AsyncFd<SupervisorLink>>,
    /// Whether the mounter has the other end of the link: it died with the keeper and the agent that held ours.
    pub(super) is_linked: bool,
    task: JoinHandle<()>,
}

impl Child {
    /// Begins to listen and to watch.
    ///
    /// # Errors
    /// Where the descriptors cannot be polled.
    pub(super) fn attend(
        process: Process,
        pidfd: OwnedFd,
        link: SupervisorLink,
        keeper: Arc<Keeper>,
        inbox: mpsc::Sender<Inbound>,
    ) -> io::Result<Self> {
        let (link, pidfd) = (Arc::new(readable(link)?), readable(pidfd)?);
        let task = beside(attend(process, pidfd, link.clone(), keeper, inbox));
        Ok(Self { process, link, is_linked: true, task })
    }

    /// The same, where the mounter has lost the other end of its link: what it is told goes over its control socket.
    pub(super) fn without_link(mut self) -> Self {
        self.is_linked = false;
        self
    }

    /// Tells it something.
    ///
    /// # Errors
    /// Where it is gone, or does not read.
    pub(super) fn tell(&self, message: &ToMounter) -> Result<(), HandoverError> {
        self.link.get_ref().tell(message, &[])
    }

    /// The supervisor's end of its link, for another keeper.
    pub(super) fn link(&self) -> Result<OwnedFd, HandoverError> {
        self.link.get_ref().duplicate()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Passes on what a process says, then how it died: its last words come before its death.
async fn attend(
    process: Process,
    pidfd: AsyncFd<OwnedFd>,
    link: Arc<AsyncFd<SupervisorLink>>,
    keeper: Arc<Keeper>,
    inbox: mpsc::Sender<Inbound>,
) {
    let mut is_open = true;
    while is_open {
        tokio::select! {
            biased;
            ready = link.readable() => {
                let Ok(mut ready) = ready else { break };
                ready.clear_ready();
                is_open = drain(process, link.get_ref(), &inbox).await;
            }
            dead = pidfd.readable() => {
                drop(dead);
                break;
            }
        }
    }
    let _ = pidfd.readable().await;
    drain(process, link.get_ref(), &inbox).await;
    let id = ProcessId::from(process);
    let exited = keeper.ask("ask how a mounter ended", move |client| client.wait(id, VERDICT_WITHIN)).await;
    let cause = exited.map_or(Cause::Unknown, |exited| Cause::from(&exited));
    let _ = inbox.send(Inbound::Event(Event::Exited { process, cause })).await;
}

/// Passes on all that is there to be read; whether there may be more later.
async fn drain(process: Process, link: &SupervisorLink, inbox: &mpsc::Sender<Inbound>) -> bool {
    loop {
        match link.try_receive() {
            Ok(Received::Message(message, descriptors)) => {
                for inbound in inbound(process, message, descriptors) {
                    let _ = inbox.send(inbound).await;
                }
            }
            Ok(Received::Nothing) => return true,
            Ok(Received::Closed) | Err(HandoverError::Io { .. } | HandoverError::Closed) => return false,
            Err(error) => tracing::warn!(pid = process.pid, %error, "a mounter said something unknown"),
        }
    }
}

fn inbound(process: Process, message: FromMounter, descriptors: Vec<OwnedFd>) -> Vec<Inbound> {
    if let FromMounter::Serving(serving) = &message {
        let (replayed, recovered, micros) = (serving.replayed, serving.recovered, serving.micros);
        tracing::info!(pid = process.pid, replayed, recovered, micros, "the mounter serves");
    }
    let event = Event::heard(process, &message).map(Inbound::Event);
    let other = match message {
        FromMounter::Hello(hello) => Some(Inbound::Version(process, hello.version)),
        FromMounter::Renewed(_) => descriptors.into_iter().next().map(Inbound::Renewed),
        _ => None,
    };
    other.into_iter().chain(event).collect()
}
