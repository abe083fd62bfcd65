//! Going on from what the record says and the machine shows.

use std::time::Duration;

use crate::{
    Connection, Effect, Mounter, Observation, Observed, Order, Policy, Record, Role, Stage, State, Stopping,
    Tenant, Upgrading, backoff::Weight,
};

impl Tenant {
    /// Takes up a tenant where an earlier supervisor left it, whatever that one was about to do.
    ///
    /// `observation` is newer than everything the earlier supervisor ordered (look after Attend). The first effects come with it.
    #[must_use]
    pub fn resume(
        policy: Policy,
        record: Record,
        now: Duration,
        observation: Observation,
    ) -> (Self, Vec<Effect>) {
        let mut tenant = Self::new(policy);
        tenant.run.began = now;
        tenant.record = record;
        let before = tenant.record.clone();
        tenant.reconcile(now, observation);
        tenant.settle(now);
        let effects = tenant.finish(&before);
        (tenant, effects)
    }

    /// Believes the observation: it is the only thing besides an exit that takes a process off the record.
    pub(crate) fn reconcile(&mut self, now: Duration, observation: Observation) {
        // Something was ordered after the look: what it did is not in it.
        if self.run.pending.is_some() {
            self.run.doubt = true;
            return;
        }
        let is_alive = |process| observation.mounters.iter().any(|seen| seen.process == process);
        self.record.connection = observation.connection;
        self.record.strays.retain(|stray| is_alive(*stray));
        self.record.spare.take_if(|spare| !is_alive(spare.process));
        let lost = self.record.server.take_if(|server| !is_alive(server.process)).is_some();
        let mut is_new = false;
        for seen in observation.mounters {
            is_new |= self.sort_in(now, seen);
        }
        if is_new {
            self.adopted(now);
        } else if lost {
            self.server_gone(now, "ended while nobody looked".to_owned(), Weight::Nothing, false);
        } else {
            self.repair(now);
        }
    }

    /// Whether `seen` is a server that was not known: spawned on an order whose answer was lost, or by the keeper itself.
    fn sort_in(&mut self, now: Duration, seen: Observed) -> bool {
        let Observed { process, role, build, linked } = seen;
        if self.server_is(process) {
            self.meet_server(now, linked);
            return false;
        }
        if self.record.strays.contains(&process) {
            return false;
        }
        if let Some(spare) = &self.record.spare
            && spare.process == process
        {
            // A stand-by that cannot be told anything is of no use.
            if !linked {
                self.discard_spare();
            }
            return false;
        }
        if role == Role::Serve && self.record.server.is_none() && self.record.wanted_or_served() {
            self.record.server = Some(Mounter { process, build, stage: Stage::Spawned, since: now });
            return true;
        }
        self.record.strays.push(process);
        self.run.killed_at = None;
        false
    }

    fn meet_server(&mut self, now: Duration, linked: bool) {
        let Some(server) = self.record.server.as_mut() else { return };
        match server.stage {
            // Whether it was told is not known: telling it again is harmless, and without a channel it can only be replaced. It has its
            // time from now on: perhaps it hears of it only now.
            Stage::TakingOver if linked => {
                server.since = now;
                self.run.retell = true;
            }
            Stage::TakingOver => {
                self.condemn(now, "lost its channel while it took over".to_owned(), Weight::Waits)
            }
            Stage::Draining if linked => {
                let process = server.process;
                self.send(process, Order::SendDrain(process, self.policy.drain_limit));
            }
            Stage::Spawned | Stage::StandingBy | Stage::Serving | Stage::Draining => {}
        }
    }

    /// A server is there that was not known: it is started, whatever the state was.
    fn adopted(&mut self, now: Duration) {
        self.record.restarts += 1;
        match self.record.state.clone() {
            State::Upgrading { to, .. } => {
                self.fail_upgrade(to, "another mounter was started meanwhile".to_owned());
                self.record.state = State::Starting { since: now };
            }
            State::Starting { .. }
            | State::Serving { .. }
            | State::Restarting { .. }
            | State::Broken { .. } => {
                self.record.state = State::Starting { since: now };
            }
            // It may have read a journal with something left in it: flush again.
            State::Stopping { stage: Stopping::Flushing | Stopping::Unmounting, .. }
                if self.record.connection == Connection::Alive =>
            {
                self.record.state = State::Starting { since: now };
            }
            State::Stopping { .. } | State::Absent | State::Gone => {}
        }
    }

    /// States that say somebody serves, with nobody there: begin again.
    fn repair(&mut self, now: Duration) {
        let is_empty = self.record.server.is_none();
        match self.record.state {
            State::Serving { .. }
            | State::Upgrading { stage: Upgrading::StandBy | Upgrading::Proving, .. }
            | State::Stopping { stage: Stopping::Flushing, .. }
                if is_empty =>
            {
                self.record.state = State::Starting { since: now };
            }
            // Whether the responder still answers is not known.
            State::Broken { .. } => self.record.responding = false,
            State::Absent
            | State::Starting { .. }
            | State::Serving { .. }
            | State::Restarting { .. }
            | State::Upgrading { .. }
            | State::Stopping { .. }
            | State::Gone => {}
        }
    }
}

impl Record {
    /// Whether a server has any business here.
    fn wanted_or_served(&self) -> bool {
        self.wanted.is_some() || (self.served && self.connection != Connection::None)
    }
}
