//! What a mounter says and how it ends, in the words of the state machine.

use std::time::Duration;

use tarbox_handover::{
    FromMounter, ProcessId,
    message::{Failed, exit},
    protocol::Exited,
};
use tarbox_types::ErrorKind;

use crate::{Answer, Cause, Event, Failure, Process, Waiting};

impl From<ProcessId> for Process {
    fn from(id: ProcessId) -> Self {
        Self { pid: id.pid, start_time: id.start_time }
    }
}

impl From<Process> for ProcessId {
    fn from(process: Process) -> Self {
        Self { pid: process.pid, start_time: process.start_time }
    }
}

impl From<&Exited> for Cause {
    fn from(exited: &Exited) -> Self {
        match (exited.code, exited.signal) {
            (Some(exit::ENDED), _) => Self::Clean,
            (Some(exit::DRAINED), _) => Self::Drained,
            (Some(exit::USAGE | exit::CONFIGURATION), _) => Self::Misconfigured,
            (Some(code), _) => Self::Code(code),
            (None, Some(signal)) => Self::Signal(signal),
            (None, None) => Self::Unknown,
        }
    }
}

impl Event {
    /// What a message on the link of `process` means; `None` where it changes nothing.
    #[must_use]
    pub fn heard(process: Process, message: &FromMounter) -> Option<Self> {
        Some(match message {
            FromMounter::Hello(_) => Self::Hello { process },
            FromMounter::StandingBy(_) => Self::StandingBy { process },
            FromMounter::Serving(_) => Self::Serving { process },
            FromMounter::Draining(_) | FromMounter::Drained(_) | FromMounter::Renewed(_) => return None,
            FromMounter::Failed(Failed { kind, message }) => {
                let kind = ErrorKind::of_name(kind).unwrap_or(ErrorKind::Internal);
                Self::Failed { process, failure: Failure { kind, message: message.clone() } }
            }
            // Nobody answers pings at its control socket yet.
            FromMounter::Waiting(waiting) => {
                Self::PingAnswered { process, answer: Answer::new(false, Duration::ZERO, &waiting.what) }
            }
            FromMounter::Ended(ended) => Self::Ended { process, unmounted: ended.unmounted },
        })
    }
}

impl Answer {
    /// What a mounter says of itself; what it waits for as it says it, empty for nothing.
    #[must_use]
    pub fn new(serving: bool, executing_longest: Duration, waiting_for: &str) -> Self {
        Self { serving, executing_longest, waiting_for: Waiting::named(waiting_for) }
    }
}

impl Waiting {
    fn named(what: &str) -> Option<Self> {
        match what {
            "" => None,
            _ if what.contains("journal") => Some(Self::Journal),
            _ if what.contains("lease") => Some(Self::Lease),
            _ => Some(Self::Database),
        }
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
            assert_eq!(Cause::from(&Exited { code, signal }), expected);
        }
    }

    #[test]
    fn last_words_keep_their_kind() {
        let process = Process { pid: 1, start_time: 2 };
        let said = FromMounter::Failed(Failed { kind: "NotFound".into(), message: "no tenant".into() });
        let failure = Failure { kind: ErrorKind::NotFound, message: "no tenant".into() };
        assert_eq!(Event::heard(process, &said), Some(Event::Failed { process, failure }));
    }

    #[test]
    fn what_a_mounter_waits_for_is_told_from_what_it_executes() {
        let answer = Answer::new(true, Duration::from_millis(7), "");
        assert_eq!((answer.executing_longest, answer.waiting_for), (Duration::from_millis(7), None));
        let waits = |what| Answer::new(true, Duration::ZERO, what).waiting_for;
        assert_eq!(waits("the database"), Some(Waiting::Database));
        assert_eq!(waits("the lease"), Some(Waiting::Lease));
        assert_eq!(waits("room in the journal"), Some(Waiting::Journal));
    }
}
