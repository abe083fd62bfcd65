//! One tenant's machine: how an event is taken in, and what a step ends with.

use std::time::Duration;

use tarbox_types::ErrorKind;

use crate::{
    Build, Cause, Condition, Effect, EffectId, Event, Failure, Mounter, Notice, Order, Outcome, Policy,
    Process, Record, Report, Role, Stage, State, Stopping, Ticket, UnmountStep, Upgrading, Wanted,
    backoff::weight_of, condition::condition, watchdog::Watch,
};

/// The state machine of one tenant.
///
/// `now` is CLOCK_BOOTTIME and never goes back: the record's times stay comparable when the supervisor restarts.
#[derive(Clone, Debug)]
pub struct Tenant {
    pub(crate) policy: Policy,
    pub(crate) record: Record,
    pub(crate) run: Run,
}

/// What a restart of the supervisor may forget.
#[derive(Clone, Debug, Default)]
pub(crate) struct Run {
    next_id: EffectId,
    out: Vec<Effect>,
    /// The one effect whose result is waited for. One at a time: what comes next depends on it.
    pub(crate) pending: Option<Pending>,
    /// The machine has to be looked at before anything else is decided.
    pub(crate) doubt: bool,
    /// Not before then is a failed effect tried again.
    pub(crate) retry_at: Option<Duration>,
    /// When the strays were last killed.
    pub(crate) killed_at: Option<Duration>,
    /// When the last stand-by was asked for.
    pub(crate) spare_asked: Option<Duration>,
    /// The rung of the ladder that is next.
    pub(crate) rung: Option<UnmountStep>,
    pub(crate) stop_sent: bool,
    /// TakeOver may not have reached the server.
    pub(crate) retell: bool,
    /// The last command whose failure would matter, and to whom.
    sent: Option<(EffectId, Process)>,
    /// The last words of a process that has not exited yet.
    pub(crate) failed: Option<(Process, Failure)>,
    pub(crate) watch: Watch,
    /// Since when this value supervises: nobody is late for a time in which nobody looked.
    pub(crate) began: Duration,
    wake: Option<Duration>,
    armed: Option<Duration>,
    persisting: Option<EffectId>,
    /// The last record could not be saved.
    unsaved: bool,
    /// That has just been said.
    is_save_refused: bool,
    ticket: Option<Option<Ticket>>,
    condition: Option<Condition>,
}

/// The effect whose result is waited for.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    id: EffectId,
    pub(crate) what: Doing,
    until: Duration,
}

/// What is being done.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Doing {
    Mount,
    Spawn(Role, Build),
    Flush,
    Unmount(UnmountStep),
    Forget,
    Observe,
}

impl Tenant {
    /// A tenant that was never staged.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self { policy, record: Record::default(), run: Run::default() }
    }

    /// How patient it is.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// What is known and would be persisted.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// How the tenant is, for people.
    #[must_use]
    pub fn condition(&self) -> Condition {
        condition(&self.record, self.run.watch.waiting, self.run.watch.is_suspicious(&self.policy))
    }

    /// Advances the machine by one event. Pure: no I/O, no clock.
    ///
    /// The effects are carried out in order; [`Order`] says which of them report back.
    pub fn step(&mut self, now: Duration, event: Event) -> Vec<Effect> {
        let before = self.record.clone();
        self.absorb(now, event);
        if std::mem::take(&mut self.run.is_save_refused) {
            return self.save_later(&before);
        }
        self.settle(now);
        self.finish(&before)
    }

    /// What could not be saved is tried again a little later, or when something happens; what was to follow it is decided anew.
    fn save_later(&mut self, before: &Record) -> Vec<Effect> {
        self.run.wake = self.run.retry_at;
        // The timer was behind it, too.
        self.run.armed = None;
        let effects = self.finish(before);
        self.run.unsaved = true;
        self.run.ticket = None;
        effects
    }

    pub(crate) fn settle(&mut self, now: Duration) {
        loop {
            self.run.wake = None;
            if !self.pass(now) {
                return;
            }
        }
    }

    /// Persisting comes first, then the keeper's ticket: whoever dies in between leaves a record that says what was about to happen.
    pub(crate) fn finish(&mut self, before: &Record) -> Vec<Effect> {
        let doing = std::mem::take(&mut self.run.out);
        let is_forgotten = self.record.state == State::Gone && self.record.wanted.is_none();
        if (self.record != *before || self.run.unsaved) && !is_forgotten {
            self.run.persisting = Some(self.order(Order::Persist(Box::new(self.record.clone()))));
        }
        self.run.unsaved = false;
        let ticket = self.ticket();
        if self.run.ticket.as_ref() != Some(&ticket) && !is_forgotten {
            self.run.ticket = Some(ticket.clone());
            self.order(Order::Ticket(ticket));
        }
        self.run.out.extend(doing);
        let condition = self.condition();
        if self.run.condition.as_ref() != Some(&condition) {
            self.run.condition = Some(condition.clone());
            self.order(Order::Report(Report::Condition(condition)));
        }
        if let Some(wake) = self.run.wake.filter(|_| self.run.wake != self.run.armed) {
            self.order(Order::ArmTimer(wake));
        }
        self.run.armed = self.run.wake;
        std::mem::take(&mut self.run.out)
    }

    /// What the keeper may restart by itself: what served and is wanted, but nothing that crashes all the time or is on its way out.
    ///
    /// For a keeper that has lost everything; otherwise [`Order::Ticket`] says when it changes.
    #[must_use]
    pub fn ticket(&self) -> Option<Ticket> {
        let is_over =
            matches!(self.record.state, State::Broken { .. } | State::Stopping { .. }) || self.record.open;
        let is_served = self.record.wanted.is_some() && self.record.served && !is_over;
        let build = self.record.build.clone().filter(|_| is_served)?;
        Some(Ticket { build, memory: self.record.memory })
    }

    fn absorb(&mut self, now: Duration, event: Event) {
        match event {
            Event::Stage(wanted) => self.stage(now, wanted),
            Event::Unstage => self.record.wanted = None,
            Event::UpgradeWanted { build } => self.upgrade_wanted(now, build),
            Event::OperatorReset => self.reset(now),
            Event::Hello { process } => self.strange(process),
            Event::StandingBy { process } => {
                if let Some(spare) = self.record.spare.as_mut().filter(|spare| spare.process == process) {
                    spare.stage = Stage::StandingBy;
                    spare.since = now;
                } else {
                    self.strange(process);
                }
            }
            Event::Serving { process } => self.serves(now, process),
            Event::Failed { process, failure } => self.run.failed = Some((process, failure)),
            // The exit follows and decides.
            Event::Ended { process: _, unmounted: _ } => {}
            Event::Exited { process, cause } => self.exited(now, process, &cause),
            Event::PingAnswered { process, answer } => {
                if answer.serving && self.server_is(process) {
                    self.serves(now, process);
                }
                self.run.watch.answered(now, process, &answer);
            }
            Event::PingUnanswered { process } => self.run.watch.unanswered(process),
            Event::EffectDone { id, outcome } => self.effect_done(now, id, outcome),
            Event::EffectFailed { id, failure } => self.effect_failed(now, id, failure),
            Event::Observed(observation) => {
                self.run.pending.take_if(|pending| pending.what == Doing::Observe);
                self.reconcile(now, observation);
            }
            Event::Tick => {}
        }
    }

    fn stage(&mut self, now: Duration, wanted: Wanted) {
        let record = &mut self.record;
        if !record.served {
            record.build = Some(wanted.build.clone());
            record.memory = wanted.memory;
        }
        record.wanted = Some(wanted);
        match record.state {
            State::Absent | State::Gone => {
                record.restarts = 0;
                record.state = State::Starting { since: now };
            }
            // A new attempt was asked for, perhaps with a build or options that are right now.
            State::Broken { .. } => {
                record.build = record.wanted.as_ref().map(|wanted| wanted.build.clone());
                self.reset(now);
            }
            // Nothing is unmounted yet.
            State::Stopping { stage: Stopping::Flushing, .. } => {
                record.state = State::Starting { since: now }
            }
            // The ladder has begun: down to the ground first, then up again.
            State::Stopping { stage: Stopping::Unmounting | Stopping::Ending, .. }
            | State::Starting { .. }
            | State::Serving { .. }
            | State::Restarting { .. }
            | State::Upgrading { .. } => {}
        }
    }

    fn upgrade_wanted(&mut self, now: Duration, build: Build) {
        if self.record.wanted.is_none() {
            return;
        }
        let is_under_way = matches!(&self.record.state, State::Upgrading { to, .. } if *to == build);
        self.record.upgrade_to = (!is_under_way).then(|| build.clone());
        let is_broken = matches!(self.record.state, State::Broken { .. });
        if is_broken || !self.record.served {
            self.record.build = Some(build);
        }
        if is_broken {
            self.reset(now);
        }
    }

    /// Forgets the crashes; a broken or waiting tenant is started at once.
    fn reset(&mut self, now: Duration) {
        self.record.crashes.clear();
        self.record.open = false;
        self.record.streak = 0;
        self.run.retry_at = None;
        match self.record.state {
            State::Broken { .. } | State::Restarting { .. } => {
                self.record.state = State::Starting { since: now }
            }
            State::Absent
            | State::Starting { .. }
            | State::Serving { .. }
            | State::Upgrading { .. }
            | State::Stopping { .. }
            | State::Gone => {}
        }
    }

    fn serves(&mut self, now: Duration, process: Process) {
        match self.record.server.as_mut().filter(|server| server.process == process) {
            Some(server)
                if matches!(server.stage, Stage::Spawned | Stage::StandingBy | Stage::TakingOver) =>
            {
                server.stage = Stage::Serving;
                server.since = now;
                self.record.kills = 0;
                self.run.watch.begins_to_serve();
            }
            Some(_) => {}
            // A stand-by that nobody told to serve, or somebody unknown.
            None => {
                self.record.spare.take_if(|spare| spare.process == process);
                self.strange(process);
            }
        }
    }

    /// A process that speaks but is not known came of an order whose answer was lost: it has no place.
    fn strange(&mut self, process: Process) {
        let is_spare = self.record.spare.as_ref().is_some_and(|spare| spare.process == process);
        if !self.server_is(process) && !is_spare && !self.record.strays.contains(&process) {
            self.record.strays.push(process);
            self.run.killed_at = None;
        }
    }

    fn exited(&mut self, now: Duration, process: Process, cause: &Cause) {
        self.record.strays.retain(|stray| *stray != process);
        self.record.spare.take_if(|spare| spare.process == process);
        if let Some(server) = self.record.server.take_if(|server| server.process == process) {
            let words = self.run.failed.take().filter(|(who, _)| *who == process).map(|(_, failure)| failure);
            let weight = weight_of(cause, words.as_ref(), server.stage);
            // Unmounted by somebody else? Ask before mounting or starting anything.
            self.run.doubt |= *cause == Cause::Clean;
            if *cause == Cause::OutOfMemory {
                self.grant_memory();
            }
            let why = words.map_or_else(|| format!("{cause:?}"), |failure| failure.message);
            self.server_gone(now, why, weight, *cause == Cause::Clean);
        }
    }

    fn effect_done(&mut self, now: Duration, id: EffectId, outcome: Outcome) {
        match (self.run.pending.take_if(|pending| pending.id == id).map(|pending| pending.what), outcome) {
            (Some(Doing::Mount), Outcome::Done) => self.record.connection = crate::Connection::Alive,
            (Some(Doing::Spawn(role, build)), Outcome::Spawned(process)) => {
                let mounter = Mounter { process, build, stage: Stage::Spawned, since: now };
                match role {
                    Role::Serve => self.record.server = Some(mounter),
                    Role::StandBy => self.record.spare = Some(mounter),
                }
            }
            (Some(Doing::Flush), Outcome::Done) => self.enter_stopping(now, Stopping::Unmounting),
            (Some(Doing::Unmount(_)), Outcome::Done) => self.unmounted(now),
            // The record was written again meanwhile (staged and unstaged): it has to go as well.
            (Some(Doing::Forget), Outcome::Done)
                if self.run.persisting.is_some_and(|persisted| persisted > id) => {}
            (Some(Doing::Forget), Outcome::Done) => {
                self.record =
                    Record { wanted: self.record.wanted.take(), state: State::Gone, ..Record::default() };
                self.run.ticket = None;
            }
            // The answer to something given up long ago.
            (None, Outcome::Spawned(process)) => self.strange(process),
            (None, Outcome::Done) => {}
            // An answer that does not fit its question: look.
            (Some(_), Outcome::Done | Outcome::Spawned(_)) => self.run.doubt = true,
        }
    }

    fn effect_failed(&mut self, now: Duration, id: EffectId, failure: Failure) {
        if self.run.persisting.take_if(|persisting| *persisting == id).is_some() {
            // Everything behind it was dropped by the shell.
            self.run.pending = None;
            self.run.is_save_refused = true;
            self.run.doubt = true;
            self.retry_later(now, failure.message);
            return;
        }
        if let Some((_, process)) = self.run.sent.take_if(|(sent, _)| *sent == id) {
            self.unreachable(now, process, failure.message);
            return;
        }
        match self.run.pending.take_if(|pending| pending.id == id).map(|pending| pending.what) {
            Some(doing @ (Doing::Mount | Doing::Spawn(..))) => self.start_failed(now, &doing, failure),
            Some(Doing::Unmount(step)) => self.unmount_failed(now, step, failure.message),
            Some(Doing::Flush) if failure.kind == ErrorKind::Fenced => {
                self.flush_refused(now, failure.message)
            }
            Some(Doing::Flush | Doing::Forget | Doing::Observe) => self.retry_later(now, failure.message),
            None => {}
        }
    }

    /// A command did not reach its process: whoever cannot be told is ended.
    fn unreachable(&mut self, now: Duration, process: Process, why: String) {
        let stage =
            self.record.server.as_ref().filter(|server| server.process == process).map(|server| server.stage);
        match stage {
            Some(Stage::Draining) => self.discard_server(),
            // It died with the one whose place it was to take: that says nothing about the one that is started now.
            Some(Stage::TakingOver) => self.condemn(
                now,
                format!("TakeOver could not be sent: {why}"),
                crate::backoff::Weight::Nothing,
            ),
            Some(Stage::Spawned | Stage::StandingBy | Stage::Serving) | None => {}
        }
    }

    pub(crate) fn retry_later(&mut self, now: Duration, why: String) {
        self.run.retry_at = Some(now + self.policy.effect_retry);
        self.notice(Notice::EffectFailed { why });
    }
}

/// Tools of the decisions.
impl Tenant {
    /// Orders something, under a new name.
    pub(crate) fn order(&mut self, order: Order) -> EffectId {
        self.run.next_id += 1;
        self.run.out.push(Effect { id: self.run.next_id, order });
        self.run.next_id
    }

    /// Orders something whose result is waited for.
    pub(crate) fn begin(&mut self, now: Duration, what: Doing, order: Order, limit: Duration) {
        let id = self.order(order);
        self.run.pending = Some(Pending { id, what, until: now + limit });
    }

    /// Sends a command whose failure matters.
    pub(crate) fn send(&mut self, process: Process, order: Order) {
        let id = self.order(order);
        self.run.sent = Some((id, process));
    }

    pub(crate) fn notice(&mut self, notice: Notice) {
        self.order(Order::Report(Report::Notice(notice)));
    }

    /// Whether `at` has come; if not, it is what to wake up for.
    pub(crate) fn due(&mut self, now: Duration, at: Duration) -> bool {
        if now >= at {
            return true;
        }
        self.run.wake = Some(self.run.wake.map_or(at, |wake| wake.min(at)));
        false
    }

    /// Whether nothing is waited for, and nothing that failed rests.
    pub(crate) fn is_free(&mut self, now: Duration) -> bool {
        let rested = self.run.retry_at.is_none_or(|at| self.due(now, at));
        rested && self.run.pending.is_none()
    }

    /// Gives up an effect that was never answered. It may have been done: look.
    pub(crate) fn give_up(&mut self, now: Duration) -> bool {
        let Some(until) = self.run.pending.as_ref().map(|pending| pending.until) else { return false };
        if !self.due(now, until) {
            return false;
        }
        self.run.pending = None;
        self.run.doubt = true;
        true
    }

    pub(crate) fn server_is(&self, process: Process) -> bool {
        self.record.server.as_ref().is_some_and(|server| server.process == process)
    }

    /// The stage of the only process that may serve.
    pub(crate) fn server_stage(&self) -> Option<Stage> {
        self.record.server.as_ref().map(|server| server.stage)
    }

    /// Kills the server; its exit will tell nothing new.
    pub(crate) fn discard_server(&mut self) {
        if let Some(server) = self.record.server.take() {
            // What it was to be told in this very step, it is not told: the record that is saved says that it is to die.
            if let Some((told, _)) = self.run.sent.take_if(|(_, process)| *process == server.process) {
                self.run.out.retain(|effect| effect.id != told);
            }
            self.record.strays.push(server.process);
            self.run.killed_at = None;
        }
    }

    /// Kills the stand-by. Whether there was one.
    pub(crate) fn discard_spare(&mut self) -> bool {
        let spare = self.record.spare.take();
        if let Some(spare) = &spare {
            self.record.strays.push(spare.process);
            self.run.killed_at = None;
        }
        spare.is_some()
    }

    pub(crate) fn enter_upgrade(&mut self, now: Duration, stage: Upgrading, to: Build) {
        self.record.state = State::Upgrading { stage, since: now, to };
    }
}
