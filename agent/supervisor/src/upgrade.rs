//! Replacing a mounter by another build: stand-by, switch, probation, roll-back.

use std::time::Duration;

use crate::{Build, Notice, Order, Role, Stage, State, Stopping, Tenant, Upgrading};

impl Tenant {
    /// Begins the upgrade that is wanted, if this is a moment for it.
    pub(crate) fn begin_upgrade(&mut self, now: Duration) -> bool {
        let Some(to) = self.record.upgrade_to.clone() else { return false };
        if self.record.build.as_ref() == Some(&to) {
            self.record.upgrade_to = None;
            self.notice(Notice::Upgraded { build: to });
            return true;
        }
        // A successor could not serve either while the database is away: wait for it with the old one.
        let is_moment = self.run.watch.waiting.is_none() && !self.run.watch.is_suspicious(&self.policy);
        if !is_moment || !self.is_free(now) {
            return false;
        }
        if self.discard_spare() {
            return true;
        }
        if !self.record.strays.is_empty() {
            return false;
        }
        self.record.upgrade_to = None;
        self.run.spare_asked = None;
        self.enter_upgrade(now, Upgrading::StandBy, to);
        true
    }

    pub(crate) fn upgrading(&mut self, now: Duration, stage: Upgrading, since: Duration, to: Build) -> bool {
        let serves = self.server_stage() == Some(Stage::Serving);
        if self.record.wanted.is_none() && serves {
            self.enter_stopping(now, Stopping::Flushing);
            return true;
        }
        match stage {
            Upgrading::StandBy => self.await_stand_by(now, since, to),
            Upgrading::Draining => self.drain(now, since, to),
            Upgrading::Switching => self.switch(now, to),
            Upgrading::Proving => self.prove(now, since, to),
            Upgrading::RollingBack => self.start_old(now),
        }
    }

    fn await_stand_by(&mut self, now: Duration, since: Duration, to: Build) -> bool {
        let stage = self.record.spare.as_ref().map(|spare| spare.stage);
        let is_late = self.due(now, since.max(self.run.began) + self.policy.stand_by_limit);
        match (stage, self.run.spare_asked) {
            (None, None) if is_late && !self.record.strays.is_empty() => {
                self.abort_upgrade(now, to, "a mounter that was killed does not die".to_owned());
                true
            }
            (None, None) => {
                // One after the other: memory is promised for one stand-by.
                if !self.record.strays.is_empty() || !self.is_free(now) {
                    return false;
                }
                self.run.spare_asked = Some(now);
                self.spawn(now, Role::StandBy, to);
                true
            }
            (None, Some(_)) if self.run.pending.is_some() => false,
            (None, Some(_)) => {
                let words = self.run.failed.take().map(|(_, failure)| failure.message);
                self.abort_upgrade(now, to, words.unwrap_or_else(|| "the stand-by ended".to_owned()));
                true
            }
            (Some(Stage::StandingBy), _) => {
                self.enter_upgrade(now, Upgrading::Draining, to);
                if let Some(server) = self.record.server.as_mut() {
                    server.stage = Stage::Draining;
                    let process = server.process;
                    self.send(process, Order::SendDrain(process, self.policy.drain_limit));
                }
                true
            }
            (Some(Stage::Spawned | Stage::TakingOver | Stage::Serving | Stage::Draining), _) => {
                if !is_late {
                    return false;
                }
                let why = format!("the stand-by was not ready within {:?}", self.policy.stand_by_limit);
                self.abort_upgrade(now, to, why);
                true
            }
        }
    }

    fn drain(&mut self, now: Duration, since: Duration, to: Build) -> bool {
        if self.record.server.is_some() {
            // Slots hold what it has not answered: killing it fails nothing.
            if self.due(now, since + self.policy.drain_limit + self.policy.drain_grace) {
                self.discard_server();
                return true;
            }
            return false;
        }
        if self.record.spare.as_ref().is_none_or(|spare| spare.stage != Stage::StandingBy) {
            self.roll_back(now, to, "the stand-by ended before it was told to serve".to_owned());
            return true;
        }
        if !self.record.strays.is_empty() {
            return false;
        }
        self.promote(now);
        self.enter_upgrade(now, Upgrading::Switching, to);
        true
    }

    fn switch(&mut self, now: Duration, to: Build) -> bool {
        let Some((stage, since)) = self.record.server.as_ref().map(|server| (server.stage, server.since))
        else {
            self.roll_back(now, to, "the new mounter is gone".to_owned());
            return true;
        };
        if stage == Stage::Serving {
            self.enter_upgrade(now, Upgrading::Proving, to);
            return true;
        }
        if self.tell_again(stage) {
            return true;
        }
        if self.is_late(now, since, self.policy.switch_limit) {
            self.discard_server();
            self.roll_back(now, to, format!("did not serve within {:?}", self.policy.switch_limit));
            return true;
        }
        false
    }

    fn prove(&mut self, now: Duration, since: Duration, to: Build) -> bool {
        if self.run.watch.is_suspicious(&self.policy) || !self.due(now, since + self.policy.proof) {
            return false;
        }
        self.enter_serving(now);
        self.notice(Notice::Upgraded { build: to });
        true
    }

    fn start_old(&mut self, now: Duration) -> bool {
        match self.server_stage() {
            Some(Stage::Serving) => {
                self.enter_serving(now);
                true
            }
            // From here on it is a start like any other.
            Some(Stage::Spawned | Stage::StandingBy | Stage::TakingOver | Stage::Draining) | None => {
                if self.record.strays.is_empty() {
                    self.record.state = State::Starting { since: now };
                    return true;
                }
                false
            }
        }
    }

    /// The new build goes, the old one (still `record.build`) comes back.
    pub(crate) fn roll_back(&mut self, now: Duration, to: Build, why: String) {
        self.discard_server();
        self.discard_spare();
        self.record.outage_since.get_or_insert(now);
        self.enter_upgrade(now, Upgrading::RollingBack, to.clone());
        self.fail_upgrade(to, why);
    }

    /// The old one never stopped serving.
    pub(crate) fn abort_upgrade(&mut self, now: Duration, to: Build, why: String) {
        self.discard_spare();
        self.record.state = State::Serving { since: now };
        self.fail_upgrade(to, why);
    }

    pub(crate) fn fail_upgrade(&mut self, build: Build, why: String) {
        self.discard_spare();
        self.run.spare_asked = None;
        self.notice(Notice::UpgradeFailed { build, why });
    }
}
