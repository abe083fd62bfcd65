//! Unstage: flush, unmount, end, forget.

use std::time::Duration;

use crate::{Connection, Notice, Order, Stage, State, Stopping, Tenant, UnmountStep, tenant::Doing};

impl Tenant {
    pub(crate) fn enter_stopping(&mut self, now: Duration, stage: Stopping) {
        self.discard_spare();
        self.run.rung = None;
        self.run.stop_sent = false;
        self.record.upgrade_to = None;
        self.record.state = State::Stopping { stage, since: now };
    }

    pub(crate) fn stopping(&mut self, now: Duration, stage: Stopping, since: Duration) -> bool {
        // One that was being spawned when it began.
        if self.discard_spare() {
            return true;
        }
        match stage {
            Stopping::Flushing => self.flush(now),
            Stopping::Unmounting => self.unmount(now),
            Stopping::Ending => self.end(now, since),
        }
    }

    /// Repeated until it succeeds: while the database is away, an unstage waits.
    fn flush(&mut self, now: Duration) -> bool {
        if self.record.connection != Connection::Alive {
            self.enter_stopping(now, Stopping::Unmounting);
            return true;
        }
        if self.record.server.as_ref().is_none_or(|server| server.stage != Stage::Serving) {
            self.record.state = State::Starting { since: now };
            return true;
        }
        if !self.is_free(now) {
            return false;
        }
        if let Some(process) = self.record.server.as_ref().map(|server| server.process) {
            self.begin(now, Doing::Flush, Order::Flush(process), self.policy.flush_limit);
        }
        true
    }

    /// The database has answered that nothing of this mounter will ever be committed: another node has the tenant, or it is no more.
    pub(crate) fn flush_refused(&mut self, now: Duration, why: String) {
        self.record.last_words = Some(why);
        self.leave_journal();
        self.enter_stopping(now, Stopping::Unmounting);
    }

    fn unmount(&mut self, now: Duration) -> bool {
        if self.record.connection == Connection::None {
            self.enter_stopping(now, Stopping::Ending);
            return true;
        }
        if !self.is_free(now) {
            return false;
        }
        let rung = self.run.rung.unwrap_or(UnmountStep::Normal);
        self.begin(now, Doing::Unmount(rung), Order::Unmount(rung), self.policy.unmount_limit);
        true
    }

    pub(crate) fn unmounted(&mut self, now: Duration) {
        self.record.connection = Connection::None;
        self.enter_stopping(now, Stopping::Ending);
    }

    pub(crate) fn unmount_failed(&mut self, now: Duration, step: UnmountStep, why: String) {
        match step {
            UnmountStep::Normal => self.run.rung = Some(UnmountStep::Lazy),
            UnmountStep::Lazy => {
                self.run.rung = Some(UnmountStep::Normal);
                self.run.retry_at = Some(now + self.policy.effect_retry);
                self.run.doubt = true;
                self.notice(Notice::StillMounted { why });
            }
        }
    }

    /// The mounter notices the unmount by itself; if not it is told, and at last killed, but not while it waits for the database.
    fn end(&mut self, now: Duration, since: Duration) -> bool {
        let Some(process) = self.record.server.as_ref().map(|server| server.process) else {
            return self.forget(now);
        };
        if !self.run.stop_sent {
            if !self.due(now, since + self.policy.end_limit) {
                return false;
            }
            self.run.stop_sent = true;
            self.order(Order::SendStop(process));
            return true;
        }
        if self.is_late(now, since + self.policy.end_limit, self.policy.end_limit) {
            self.notice(Notice::JournalLeft {
                why: "the mounter did not end when it was told to".to_owned(),
            });
            self.discard_server();
            return true;
        }
        false
    }

    fn forget(&mut self, now: Duration) -> bool {
        if !self.record.strays.is_empty() || !self.is_free(now) {
            return false;
        }
        self.begin(now, Doing::Forget, Order::ForgetState, self.policy.effect_limit);
        true
    }
}
