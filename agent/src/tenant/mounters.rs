//! A tenant's processes: what they say, when they die.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use tarbox_handover::{
    FromMounter, HandoverError, ProcessId, Received, SupervisorLink, ToMounter,
    message::{Failed, exit},
    protocol::Exited,
};
use tarbox_supervisor::{Answer, Cause, Event, Failure, Process};
use tarbox_types::ErrorKind;
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::mpsc,
    task::JoinHandle,
};

use super::{control, shell::Inbound};
use crate::keeper::Keeper;

/// How long the keeper may take to say how a dead process ended.
const VERDICT_WITHIN: Duration = Duration::from_secs(2);

/// A process of the tenant that is listened to and watched.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) process: Process,
    link: Arc<AsyncFd<SupervisorLink>>,
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
        let task = tokio::spawn(attend(process, pidfd, link.clone(), keeper, inbox));
        Ok(Self { process, link, task })
    }

    /// Tells it something.
    ///
    /// # Errors
    /// Where it is gone, or does not read.
    pub(super) fn tell(&self, message: &ToMounter) -> Result<(), HandoverError> {
        match self.link.get_ref().try_send(message, &[]) {
            Ok(true) => Ok(()),
            Ok(false) => Err(HandoverError::TimedOut(Duration::ZERO)),
            Err(error) => Err(error),
        }
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

/// Polls a descriptor for being readable.
#[expect(
    deprecated,
    reason = "its successor is unsafe for types that may change their descriptor: these do not"
)]
fn readable<T: AsRawFd>(owner: T) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(owner, Interest::READABLE)
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
    let id = ProcessId { pid: process.pid, start_time: process.start_time };
    let exited = keeper.ask("ask how a mounter ended", move |client| client.wait(id, VERDICT_WITHIN)).await;
    let cause = exited.map_or(Cause::Unknown, |exited| cause(&exited));
    let _ = inbox.send(Inbound::Event(Event::Exited { process, cause })).await;
}

/// Passes on all that is there to be read; whether there may be more later.
async fn drain(process: Process, link: &SupervisorLink, inbox: &mpsc::Sender<Inbound>) -> bool {
    loop {
        match link.try_receive() {
            Ok(Received::Message(message, _)) => {
                for inbound in inbound(process, message) {
                    let _ = inbox.send(inbound).await;
                }
            }
            Ok(Received::Nothing) => return true,
            Ok(Received::Closed) | Err(HandoverError::Io { .. } | HandoverError::Closed) => return false,
            Err(error) => tracing::warn!(pid = process.pid, %error, "a mounter said something unknown"),
        }
    }
}

fn inbound(process: Process, message: FromMounter) -> Vec<Inbound> {
    let event = match message {
        FromMounter::Hello(hello) => {
            return vec![Inbound::Version(process, hello.version), Inbound::Event(Event::Hello { process })];
        }
        FromMounter::StandingBy(_) => Event::StandingBy { process },
        FromMounter::Serving(serving) => {
            let (replayed, recovered, micros) = (serving.replayed, serving.recovered, serving.micros);
            tracing::info!(pid = process.pid, replayed, recovered, micros, "the mounter serves");
            Event::Serving { process }
        }
        FromMounter::Draining(_) | FromMounter::Drained(_) => return Vec::new(),
        FromMounter::Failed(Failed { kind, message }) => {
            let kind = ErrorKind::of_name(&kind).unwrap_or(ErrorKind::Internal);
            Event::Failed { process, failure: Failure { kind, message } }
        }
        // Nobody answers pings at its control socket yet.
        FromMounter::Waiting(waiting) => {
            let answer = Answer { waiting_for: control::waiting_for(&waiting.what), ..Answer::default() };
            Event::PingAnswered { process, answer }
        }
        FromMounter::Ended(ended) => Event::Ended { process, unmounted: ended.unmounted },
    };
    vec![Inbound::Event(event)]
}

/// What the supervisor is told about an end.
fn cause(exited: &Exited) -> Cause {
    match (exited.code, exited.signal) {
        (Some(exit::ENDED), _) => Cause::Clean,
        (Some(exit::DRAINED), _) => Cause::Drained,
        (Some(exit::USAGE | exit::CONFIGURATION), _) => Cause::Misconfigured,
        (Some(code), _) => Cause::Code(code),
        (None, Some(signal)) => Cause::Signal(signal),
        (None, None) => Cause::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_read_as_the_mounter_means_them() {
        for (code, signal, expected) in [
            (Some(0), None, Cause::Clean),
            (Some(3), None, Cause::Drained),
            (Some(64), None, Cause::Misconfigured),
            (Some(78), None, Cause::Misconfigured),
            (Some(1), None, Cause::Code(1)),
            (None, Some(9), Cause::Signal(9)),
            (None, None, Cause::Unknown),
        ] {
            assert_eq!(cause(&Exited { code, signal }), expected);
        }
    }

    #[test]
    fn last_words_keep_their_kind() {
        let process = Process { pid: 1, start_time: 2 };
        let said = FromMounter::Failed(Failed { kind: "NotFound".into(), message: "no tenant".into() });
        let told = inbound(process, said);
        let failure = Failure { kind: ErrorKind::NotFound, message: "no tenant".into() };
        assert!(matches!(&told[..], [Inbound::Event(Event::Failed { failure: f, .. })] if *f == failure));
    }
}
