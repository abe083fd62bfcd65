//! What to do next, by state: one change at a time, until nothing changes.

use std::time::Duration;

use crate::{
    Build, Connection, Mounter, Notice, Order, Role, Stage, State, Stopping, Tenant, backoff::Weight,
    tenant::Doing,
};

impl Tenant {
    /// Makes at most one change. Whether it did.
    pub(crate) fn pass(&mut self, now: Duration) -> bool {
        // A barrier is worth something only for the unmount that follows it: staged again, or the mounter died.
        let is_flushing = matches!(self.record.state, State::Stopping { stage: Stopping::Flushing, .. });
        self.run.pending.take_if(|pending| pending.what == Doing::Flush && !is_flushing);
        if self.give_up(now) || self.look(now) || self.kill_strays(now) || self.watch(now) {
            return true;
        }
        // What is known may be wrong: decide nothing before the machine has been looked at.
        if self.run.doubt || self.run.pending.as_ref().is_some_and(|pending| pending.what == Doing::Observe) {
            return false;
        }
        match self.record.state.clone() {
            State::Absent | State::Gone => self.absent(now),
            State::Starting { .. } => self.starting(now),
            State::Serving { since } => self.serving(now, since),
            State::Restarting { at } => self.restarting(now, at),
            State::Upgrading { stage, since, to } => self.upgrading(now, stage, since, to),
            State::Broken { since } => self.broken(now, since),
            State::Stopping { stage, since } => self.stopping(now, stage, since),
        }
    }

    fn look(&mut self, now: Duration) -> bool {
        if !self.run.doubt || !self.is_free(now) {
            return false;
        }
        self.run.doubt = false;
        self.begin(now, Doing::Observe, Order::Observe, self.policy.effect_limit);
        true
    }

    /// Kills what must not serve, again and again, until its death is certain.
    fn kill_strays(&mut self, now: Duration) -> bool {
        if self.record.strays.is_empty() {
            return false;
        }
        if let Some(at) = self.run.killed_at {
            let again = at + self.policy.effect_retry;
            if !self.due(now, again) {
                return false;
            }
            // Perhaps it is dead and nobody said so.
            self.run.doubt |= self.run.pending.is_none();
        }
        self.run.killed_at = Some(now);
        for process in self.record.strays.clone() {
            self.order(Order::Kill(process));
        }
        true
    }

    fn absent(&mut self, now: Duration) -> bool {
        let Some(wanted) = self.record.wanted.clone() else { return false };
        self.record.build = Some(wanted.build);
        self.record.memory = wanted.memory;
        self.record.state = State::Starting { since: now };
        true
    }

    fn starting(&mut self, now: Duration) -> bool {
        if self.leave_unflushed(now) {
            return true;
        }
        let Some((stage, since)) = self.record.server.as_ref().map(|server| (server.stage, server.since))
        else {
            let Some(build) = self.record.build.clone() else { return false };
            return self.provide(now, build);
        };
        if stage == Stage::Serving {
            self.enter_serving(now);
            return true;
        }
        if self.tell_again(stage) {
            return true;
        }
        if self.is_late(now, since, self.policy.start_limit) {
            let why = format!("does not serve {:?} after its start", self.policy.start_limit);
            self.condemn(now, why, Weight::Counts);
            return true;
        }
        false
    }

    /// Unstaging without anybody who could flush: nothing to flush, or nothing to serve on.
    fn leave_unflushed(&mut self, now: Duration) -> bool {
        let is_needed = self.record.served && self.record.connection == Connection::Alive;
        if self.record.wanted.is_some() || is_needed || self.run.pending.is_some() {
            return false;
        }
        self.discard_server();
        self.leave_journal();
        self.enter_stopping(now, Stopping::Unmounting);
        true
    }

    /// Nobody can commit what may be left.
    pub(crate) fn leave_journal(&mut self) {
        if self.record.served {
            let why = self.record.last_words.clone().unwrap_or_default();
            self.notice(Notice::JournalLeft { why });
        }
    }

    /// Gets a server: mounts, promotes a stand-by that is ready, or spawns. Only when nobody else can be serving.
    pub(crate) fn provide(&mut self, now: Duration, build: Build) -> bool {
        if self.record.server.is_some() || !self.record.strays.is_empty() || !self.is_free(now) {
            return false;
        }
        if self.record.connection != Connection::Alive {
            if self.record.wanted.is_none() {
                return false;
            }
            if self.record.served {
                self.notice(Notice::MountLost);
            }
            self.begin(now, Doing::Mount, Order::Mount, self.policy.effect_limit);
            return true;
        }
        if self
            .record
            .spare
            .as_ref()
            .is_some_and(|spare| spare.stage == Stage::StandingBy && spare.build == build)
        {
            self.promote(now);
            return true;
        }
        if self.discard_spare() {
            return true;
        }
        if std::mem::take(&mut self.record.responding) {
            self.order(Order::RespondErrors(false));
        }
        self.spawn(now, Role::Serve, build);
        true
    }

    pub(crate) fn spawn(&mut self, now: Duration, role: Role, build: Build) {
        let order = Order::Spawn { role, build: build.clone(), memory: self.record.memory };
        self.begin(now, Doing::Spawn(role, build), order, self.policy.effect_limit);
    }

    /// Tells the stand-by to serve. Its predecessor is certainly dead: there is no server and no stray.
    pub(crate) fn promote(&mut self, now: Duration) {
        if let Some(mut spare) = self.record.spare.take() {
            spare.stage = Stage::TakingOver;
            spare.since = now;
            if std::mem::take(&mut self.record.responding) {
                self.order(Order::RespondErrors(false));
            }
            self.send(spare.process, Order::SendTakeOver(spare.process));
            self.record.server = Some(spare);
        }
    }

    /// Repeats TakeOver after an earlier supervisor, or a failed write, may have lost it.
    pub(crate) fn tell_again(&mut self, stage: Stage) -> bool {
        if !std::mem::take(&mut self.run.retell) || stage != Stage::TakingOver {
            return false;
        }
        if let Some(process) = self.record.server.as_ref().map(|server| server.process) {
            self.send(process, Order::SendTakeOver(process));
        }
        true
    }

    pub(crate) fn enter_serving(&mut self, now: Duration) {
        self.record.state = State::Serving { since: now };
        self.record.build = self.record.server.as_ref().map(|server| server.build.clone());
        self.record.served = true;
        // A crash loop that serves for a moment each time is one outage.
        if self.record.crashes.is_empty() {
            self.record.outage_since = None;
        }
    }

    fn serving(&mut self, now: Duration, since: Duration) -> bool {
        if self.record.wanted.is_none() {
            self.enter_stopping(now, Stopping::Flushing);
            return true;
        }
        // Of an upgrade that was called off while it was being spawned.
        let is_of_use =
            |spare: &Mounter| self.policy.keep_stand_by && Some(&spare.build) == self.record.build.as_ref();
        if self.record.spare.as_ref().is_some_and(|spare| !is_of_use(spare)) {
            return self.discard_spare();
        }
        let is_stained = self.record.streak > 0 || !self.record.crashes.is_empty();
        if is_stained && self.due(now, since + self.policy.healthy_after) {
            self.record.streak = 0;
            self.record.crashes.clear();
            self.record.open = false;
            self.record.outage_since = None;
            return true;
        }
        self.begin_upgrade(now) || self.keep_stand_by(now, since)
    }

    /// A stand-by of the same build, so that the next crash costs only the take-over.
    fn keep_stand_by(&mut self, now: Duration, since: Duration) -> bool {
        if !self.policy.keep_stand_by || self.record.spare.is_some() || !self.record.strays.is_empty() {
            return false;
        }
        if self.record.restarts == 0 && !self.due(now, since + self.policy.first_stand_by) {
            return false;
        }
        let again = self.run.spare_asked.map(|at| at + self.policy.stand_by_again);
        let Some(build) = self.record.build.clone() else { return false };
        if again.is_some_and(|at| !self.due(now, at)) || !self.is_free(now) {
            return false;
        }
        self.run.spare_asked = Some(now);
        self.spawn(now, Role::StandBy, build);
        true
    }

    fn restarting(&mut self, now: Duration, at: Duration) -> bool {
        if self.leave_unflushed(now) {
            return true;
        }
        if !self.due(now, at) {
            return false;
        }
        self.record.state = State::Starting { since: now };
        true
    }

    fn broken(&mut self, now: Duration, since: Duration) -> bool {
        if self.run.pending.is_some() {
            return false;
        }
        if self.record.wanted.is_none() {
            self.leave_journal();
            self.enter_stopping(now, Stopping::Unmounting);
            return true;
        }
        if self.discard_spare() {
            return true;
        }
        let outage = self.record.outage_since.unwrap_or(since);
        // Two answering at once would give an application EIO for what the other one did.
        let is_silent = self.record.server.is_none() && self.record.strays.is_empty();
        let is_wanted = self.record.served && !self.record.responding && is_silent;
        if is_wanted && self.due(now, outage + self.policy.respond_after) {
            self.record.responding = true;
            self.order(Order::RespondErrors(true));
            return true;
        }
        if !self.due(now, since + self.policy.broken_retry) {
            return false;
        }
        self.record.state = State::Starting { since: now };
        true
    }
}
