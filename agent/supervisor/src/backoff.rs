//! What an end of a mounter costs: back-off, circuit breaker, memory.

use std::time::Duration;

use tarbox_types::{ByteSize, ErrorKind};

use crate::{Cause, Failure, Notice, Stage, State, Stopping, Tenant, Upgrading, tenant::Doing};

/// What the end of a mounter says about the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weight {
    /// Nothing: somebody killed it while it served. Restart at once, however often.
    Nothing,
    /// Hardly anything: somebody killed it before it served, as who kills at random does sooner or later. Restart soon, and give
    /// up never.
    Killed,
    /// Something outside is missing (database, lease, keeper): back off, but never give up.
    Waits,
    /// A fault: back off; too many open the circuit.
    Counts,
    /// It will say the same again: open the circuit now.
    Final,
}

pub(crate) fn weight_of(cause: &Cause, words: Option<&Failure>, stage: Stage) -> Weight {
    match (cause, words) {
        (Cause::Misconfigured, _) => Weight::Final,
        // Told over its control socket, to go on as another process: on another head, for instance.
        (Cause::Drained, _) if matches!(stage, Stage::Serving | Stage::Draining) => Weight::Nothing,
        (Cause::Clean | Cause::Drained, _) => Weight::Waits,
        (Cause::OutOfMemory, _) => Weight::Counts,
        (Cause::Code(_) | Cause::Signal(_) | Cause::Unknown, Some(words)) => weight_of_kind(words.kind),
        // SIGKILL: from outside, for whom we kill is a stray by then, and the kernel's own for want of memory is told apart. Who was about
        // to take over had read itself in, and behind it comes a cold start.
        (Cause::Signal(9) | Cause::Unknown, None)
            if matches!(stage, Stage::Serving | Stage::Draining | Stage::TakingOver) =>
        {
            Weight::Nothing
        }
        (Cause::Signal(9), None) => Weight::Killed,
        (Cause::Code(_) | Cause::Signal(_) | Cause::Unknown, None) => Weight::Counts,
    }
}

fn weight_of_kind(kind: ErrorKind) -> Weight {
    match kind {
        ErrorKind::Unavailable | ErrorKind::Busy | ErrorKind::Concurrent => Weight::Waits,
        ErrorKind::NotFound
        | ErrorKind::InvalidArgument
        | ErrorKind::Incompatible
        | ErrorKind::OutOfRange
        | ErrorKind::Unsupported => Weight::Final,
        ErrorKind::AlreadyExists
        | ErrorKind::FailedPrecondition
        | ErrorKind::Exhausted
        | ErrorKind::PermissionDenied
        | ErrorKind::Fenced
        | ErrorKind::Damaged
        | ErrorKind::Internal => Weight::Counts,
    }
}

impl Tenant {
    /// Kills the server for a fault of its own. The next is started when its death is certain.
    pub(crate) fn condemn(&mut self, now: Duration, why: String, weight: Weight) {
        self.discard_server();
        self.server_gone(now, why, weight, false);
    }

    /// Nobody serves any more, or is about to: what that means where the tenant stands.
    pub(crate) fn server_gone(&mut self, now: Duration, why: String, weight: Weight, clean: bool) {
        match self.record.state.clone() {
            State::Starting { .. }
            | State::Serving { .. }
            | State::Restarting { .. }
            | State::Broken { .. } => {
                self.setback(now, why, weight);
            }
            State::Stopping { stage: Stopping::Flushing, .. } => self.setback(now, why, weight),
            // What was to be flushed is; only what was done behind the barrier is left.
            State::Stopping { stage: Stopping::Unmounting | Stopping::Ending, .. } => {
                if !clean && self.record.served {
                    self.notice(Notice::JournalLeft { why });
                }
            }
            State::Upgrading { stage, to, .. } => match stage {
                Upgrading::StandBy => {
                    self.fail_upgrade(to, format!("the old mounter ended meanwhile: {why}"));
                    self.setback(now, why, weight);
                }
                Upgrading::Draining => {}
                Upgrading::Switching | Upgrading::Proving => self.roll_back(now, to, why),
                Upgrading::RollingBack => self.setback(now, why, weight),
            },
            State::Absent | State::Gone => {}
        }
    }

    /// A mount or a spawn failed: like a mounter that ended before it served.
    pub(crate) fn start_failed(&mut self, now: Duration, doing: &Doing, failure: Failure) {
        // It is not the build that speaks here: nothing is final.
        let weight = match weight_of_kind(failure.kind) {
            Weight::Final => Weight::Counts,
            weight @ (Weight::Nothing | Weight::Killed | Weight::Waits | Weight::Counts) => weight,
        };
        // It may have been done nevertheless.
        self.run.doubt = true;
        match (doing, &self.record.state) {
            (
                Doing::Spawn(crate::Role::StandBy, _),
                State::Upgrading { stage: Upgrading::StandBy, to, .. },
            ) => {
                let to = to.clone();
                self.abort_upgrade(now, to, failure.message);
            }
            (Doing::Spawn(crate::Role::StandBy, _), _) => {
                self.notice(Notice::EffectFailed { why: failure.message })
            }
            (
                Doing::Mount
                | Doing::Spawn(..)
                | Doing::Flush
                | Doing::Unmount(_)
                | Doing::Forget
                | Doing::Observe,
                _,
            ) => {
                self.server_gone(now, failure.message, weight, false);
            }
        }
    }

    fn setback(&mut self, now: Duration, why: String, weight: Weight) {
        self.record.restarts += 1;
        self.record.outage_since.get_or_insert(now);
        self.record.last_words = Some(why.clone());
        if matches!(weight, Weight::Counts | Weight::Final) {
            let window = self.policy.crash_window;
            self.record.crashes.retain(|at| now.saturating_sub(*at) < window);
            self.record.crashes.push(now);
            // Once open, an attempt that fails leaves it open, however long ago the others were.
            self.record.open |=
                weight == Weight::Final || self.record.crashes.len() >= self.policy.crash_limit;
            if self.record.open {
                self.notice(Notice::Setback { why, delay: self.policy.broken_retry });
                self.record.state = State::Broken { since: now };
                return;
            }
        }
        let delay = match weight {
            Weight::Nothing => Duration::ZERO,
            Weight::Killed => {
                let kills = self.record.kills;
                self.record.kills = kills.saturating_add(1);
                self.policy.pause_after_kill(kills)
            }
            Weight::Waits | Weight::Counts | Weight::Final => self.next_delay(),
        };
        self.notice(Notice::Setback { why, delay });
        self.record.state = State::Restarting { at: now + delay };
    }

    fn next_delay(&mut self) -> Duration {
        let streak = self.record.streak;
        self.record.streak = streak.saturating_add(1);
        self.policy.pause(streak)
    }

    /// The next one gets more memory, up to the ceiling.
    pub(crate) fn grant_memory(&mut self) {
        let Some(wanted) = self.record.wanted.as_ref().map(|wanted| wanted.memory.bytes()) else { return };
        let percent = |bytes: u64, percent: u64| bytes.saturating_mul(percent) / 100;
        let grown = percent(self.record.memory.bytes(), self.policy.memory_growth_percent);
        self.record.memory = ByteSize(grown.min(percent(wanted, self.policy.memory_ceiling_percent)));
    }
}
