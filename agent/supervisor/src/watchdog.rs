//! Whether the mounter hangs. What it waits for is no hang.

use std::time::Duration;

use crate::{
    Answer, Notice, Order, Policy, Process, Stage, State, Stopping, Tenant, Upgrading, Waiting,
    backoff::Weight,
};

/// What the pings of one process have shown.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watch {
    of: Option<Process>,
    ping_at: Duration,
    sent_at: Option<Duration>,
    answered_at: Option<Duration>,
    missed: u32,
    executing: Duration,
    pub(crate) waiting: Option<Waiting>,
    /// When it last said that it waits: no limit runs before that.
    waited_at: Option<Duration>,
    dumped_at: Option<Duration>,
}

impl Watch {
    pub(crate) fn answered(&mut self, now: Duration, process: Process, answer: &Answer) {
        if self.of == Some(process) {
            self.sent_at = None;
            self.answered_at = Some(now);
            self.missed = 0;
            self.executing = answer.executing_longest;
            self.waiting = answer.waiting_for;
            self.waited_at = answer.waiting_for.map(|_| now).or(self.waited_at);
        }
    }

    pub(crate) fn unanswered(&mut self, process: Process) {
        if self.of == Some(process) && self.sent_at.take().is_some() {
            self.missed = self.missed.saturating_add(1);
        }
    }

    /// Pings that it did not answer while it was starting say nothing of how it serves.
    pub(crate) fn begins_to_serve(&mut self) {
        self.missed = 0;
    }

    pub(crate) fn is_suspicious(&self, policy: &Policy) -> bool {
        self.missed >= 2 || self.executing >= policy.hang_executing / 2
    }

    fn hang(&self, policy: &Policy) -> Option<String> {
        if self.missed >= policy.hang_pings {
            return Some(format!("{} pings in a row were not answered", self.missed));
        }
        (self.executing >= policy.hang_executing)
            .then(|| format!("a request has executed for {:?}", self.executing))
    }
}

impl Tenant {
    /// Pings the server, and ends it when it hangs.
    pub(crate) fn watch(&mut self, now: Duration) -> bool {
        let Some((process, stage)) = self.record.server.as_ref().map(|server| (server.process, server.stage))
        else {
            self.run.watch = Watch::default();
            return false;
        };
        if self.run.watch.of != Some(process) {
            self.run.watch = Watch { of: Some(process), ping_at: now, ..Watch::default() };
        }
        self.ping(now, process, stage) || (self.may_hang(stage) && self.escalate(now, process))
    }

    fn ping(&mut self, now: Duration, process: Process, stage: Stage) -> bool {
        if let Some(at) = self.run.watch.sent_at {
            let is_lost = self.due(now, at + 2 * self.policy.ping_limit);
            // The shell never said what became of it.
            if is_lost {
                self.run.watch.unanswered(process);
            }
            return is_lost;
        }
        let at = self.run.watch.ping_at;
        if stage == Stage::Draining || !self.due(now, at) {
            return false;
        }
        // Who does not serve yet is watched more closely: each moment is an application's pause.
        let every = if stage == Stage::Serving { self.policy.ping_every } else { self.policy.ping_every / 4 };
        self.run.watch.sent_at = Some(now);
        self.run.watch.ping_at = now + every;
        self.order(Order::Ping(process));
        true
    }

    /// Where a hang is judged; elsewhere a deadline of its own is running.
    fn may_hang(&self, stage: Stage) -> bool {
        let here = match &self.record.state {
            State::Serving { .. } | State::Stopping { stage: Stopping::Flushing, .. } => true,
            State::Upgrading { stage, .. } => matches!(stage, Upgrading::StandBy | Upgrading::Proving),
            State::Absent
            | State::Starting { .. }
            | State::Restarting { .. }
            | State::Broken { .. }
            | State::Stopping { .. }
            | State::Gone => false,
        };
        here && stage == Stage::Serving
    }

    /// Report (by the condition), stack dump, kill.
    fn escalate(&mut self, now: Duration, process: Process) -> bool {
        let Some(why) = self.run.watch.hang(&self.policy) else {
            self.run.watch.dumped_at = None;
            return false;
        };
        let Some(at) = self.run.watch.dumped_at else {
            self.run.watch.dumped_at = Some(now);
            self.order(Order::StackDump(process));
            return true;
        };
        if !self.due(now, at + self.policy.dump_time) {
            return false;
        }
        self.notice(Notice::Hung { process, why: why.clone() });
        self.condemn(now, why, Weight::Counts);
        true
    }

    /// Whether the server has exceeded a limit that runs since `since`, what it waited for not counted.
    ///
    /// A limit that passed unobserved (the supervisor was stopped or restarted) proves nothing: an answer, or its lack, from behind
    /// the limit is asked for first.
    pub(crate) fn is_late(&mut self, now: Duration, since: Duration, limit: Duration) -> bool {
        let watch = &self.run.watch;
        let (waiting, missed, answered_at) = (watch.waiting.is_some(), watch.missed, watch.answered_at);
        if waiting {
            return missed >= self.policy.hang_pings;
        }
        let at = since.max(self.run.began).max(watch.waited_at.unwrap_or_default()) + limit;
        self.due(now, at) && (missed >= 2 || answered_at.is_some_and(|answered| answered >= at))
    }
}
