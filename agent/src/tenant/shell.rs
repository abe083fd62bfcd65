//! The task of one tenant: commands and events in, decisions by the state machine, orders out, a snapshot for everybody.

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tarbox_handover::Kept;
use tarbox_supervisor::{
    Build, Cause, Effect, Event, Failure, Notice, Observation, Order, Outcome, Process, Record, Report,
    Stage, Tenant, Wanted,
};
use tarbox_types::{ByteSize, ErrorKind};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{Instrument, info_span};

use super::{
    Publication, Snapshot, Staged, StateFile, mounters::Child, observe::Known, orders::Reports,
    snapshot::UpgradeOutcome, staged::reborn,
};
use crate::{failure::AgentError, host::boot, node::Node};

/// Commands wait while one is carried out; there is one call per volume at a time, and operators are few.
const COMMANDS: usize = 16;
/// Events of a handful of processes and effects; who sends one waits for room.
const EVENTS: usize = 64;

/// What a tenant's task is told to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// Stage it, or make sure that it is staged so.
    Stage { staged: Box<Staged>, wanted: Wanted, secrets: Option<String>, reply: Reply },
    /// Unstage it.
    Unstage,
    /// Note where it is going to be published.
    Publish { target: PathBuf, publication: Publication, reply: Reply },
    /// Note that it is no longer published there.
    Unpublished { target: PathBuf, reply: Reply },
    /// Replace its mounter by another build's.
    Upgrade(Build),
}

/// Where the answer to a command goes.
pub(crate) type Reply = oneshot::Sender<Result<(), AgentError>>;

/// What comes back to the task.
#[derive(Debug)]
pub(super) enum Inbound {
    /// For the state machine.
    Event(Event),
    /// What a mounter says it is.
    Version(Process, String),
    /// A mounter was given other secrets: these.
    Renewed(OwnedFd),
    /// A mounter was started.
    Spawned { effect: u64, child: Box<Child> },
    /// It is mounted.
    Mounted { effect: u64, kept: Box<Kept> },
    /// What the machine shows, and the processes that can be talked to.
    Observed { observation: Observation, children: Vec<Child>, kept: Option<Box<Kept>> },
}

/// A tenant's task, from outside.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    /// The memory that it was promised when it was begun with.
    pub(crate) promised: ByteSize,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) snapshot: watch::Receiver<Snapshot>,
}

/// The task's state.
pub(super) struct Shell {
    pub(super) node: Arc<Node>,
    pub(super) machine: Tenant,
    pub(super) staged: Staged,
    /// Duplicates of what the keeper has, for its successor.
    pub(super) kept: Option<Arc<Kept>>,
    /// The database's URL with its password, until it is with the keeper.
    pub(super) secrets: Option<String>,
    pub(super) children: BTreeMap<Process, Child>,
    pub(super) inbox: mpsc::Sender<Inbound>,
    commands: mpsc::Receiver<Command>,
    events: mpsc::Receiver<Inbound>,
    snapshot: watch::Sender<Snapshot>,
    pub(super) timer: Option<Duration>,
    /// What is on the disk of what outlives the boot; nothing is known of an earlier agent's.
    lasting: Option<StateFile>,
    /// The machine's last record could not be saved.
    is_unsaved: bool,
    /// How often mounters were killed for want of memory, as last seen.
    oom_kills: u64,
    /// Since when nobody serves who did.
    paused: Option<Instant>,
}

/// Starts the task of a tenant; `adopted` is the record that an earlier agent left.
pub(crate) fn start(node: Arc<Node>, staged: Staged, adopted: Option<Record>) -> Handle {
    let (command_sender, commands) = mpsc::channel(COMMANDS);
    let (inbox, events) = mpsc::channel(EVENTS);
    let record = adopted.clone().unwrap_or_default();
    let promised = record.memory;
    let (snapshot, seen) = watch::channel(Snapshot::new(staged.clone(), record));
    let machine = Tenant::new(node.policy.clone());
    let oom_kills = node.oom_kills(staged.tenant);
    let (id, node_id) = (staged.tenant.to_string(), node.settings.node_id.clone());
    let shell = Shell {
        lasting: None,
        is_unsaved: false,
        oom_kills,
        node,
        machine,
        staged,
        kept: None,
        secrets: None,
        children: BTreeMap::new(),
        inbox,
        commands,
        events,
        snapshot,
        timer: None,
        paused: None,
    };
    // Everything of the tenant says whose it is; a call that began something has a span of its own.
    let span = info_span!(parent: None, "tenant", volume_id = id, tenant_id = id, node = node_id);
    tokio::spawn(shell.run(adopted).instrument(span));
    Handle { promised, commands: command_sender, snapshot: seen }
}

impl Handle {
    /// The most memory that its mounter may take, as far as is known.
    pub(crate) fn memory(&self) -> ByteSize {
        let seen = self.snapshot.borrow();
        let wanted = seen.record.wanted.as_ref().map_or(self.promised, |wanted| wanted.memory);
        wanted.max(seen.record.memory)
    }
}

impl Shell {
    async fn run(mut self, adopted: Option<Record>) {
        if let Some(record) = adopted {
            self.adopt(record).await;
        }
        let mut keepers = self.node.keeper.generation();
        loop {
            let timer = self.timer.map(|at| at.saturating_sub(boot::now()));
            tokio::select! {
                // Events first: what a command finds is then as new as can be.
                biased;
                Some(inbound) = self.events.recv() => self.take(inbound).await,
                Ok(()) = keepers.changed() => self.put_back().await,
                () = tokio::time::sleep(timer.unwrap_or(Duration::MAX)), if timer.is_some() => {
                    self.timer = None;
                    self.advance(Event::Tick).await;
                }
                command = self.commands.recv() => match command {
                    Some(command) => self.command(command).await,
                    None => return,
                },
            }
            self.show();
            if self.is_over() {
                return;
            }
        }
    }

    /// Goes on from what an earlier agent left and the machine shows.
    async fn adopt(&mut self, record: Record) {
        let (observation, children, kept) = loop {
            let known = Known::of(&record);
            match super::observe::observe(&self.node, &self.staged, &self.inbox, known).await {
                Ok(seen) => break seen,
                Err(error) => {
                    tracing::error!(tenant = %self.staged.tenant, error = error.report(), "cannot look at what is there");
                    tokio::time::sleep(self.node.policy.effect_retry).await;
                }
            }
        };
        tracing::info!(tenant = %self.staged.tenant, ?observation, "taking up a tenant");
        self.hold(children, kept);
        let (machine, effects) = Tenant::resume(self.node.policy.clone(), record, boot::now(), observation);
        self.machine = machine;
        self.carry_out(effects).await;
        self.show();
    }

    fn hold(&mut self, children: Vec<Child>, kept: Option<Box<Kept>>) {
        for child in children {
            self.children.entry(child.process).or_insert(child);
        }
        if let Some(kept) = kept {
            self.kept = Some(Arc::from(kept));
        }
    }

    async fn take(&mut self, inbound: Inbound) {
        match inbound {
            Inbound::Event(event) => {
                let event = self.judged(event);
                self.advance(event).await;
            }
            Inbound::Version(process, version) => {
                if self.machine.record().spare.as_ref().is_none_or(|spare| spare.process != process) {
                    self.snapshot.send_if_modified(|seen| {
                        let is_new = seen.version != version;
                        seen.version = version;
                        is_new
                    });
                }
            }
            Inbound::Renewed(secrets) => self.keep_secrets(secrets).await,
            Inbound::Spawned { effect, child } => {
                let process = child.process;
                self.children.insert(process, *child);
                self.advance(Event::EffectDone { id: effect, outcome: Outcome::Spawned(process) }).await;
            }
            Inbound::Mounted { effect, kept } => {
                self.kept = Some(Arc::from(kept));
                self.advance(Event::EffectDone { id: effect, outcome: Outcome::Done }).await;
            }
            Inbound::Observed { observation, children, kept } => {
                self.hold(children, kept);
                self.advance(Event::Observed(observation)).await;
            }
        }
    }

    /// SIGKILL may have been the kernel's, for want of memory: only the control group knows.
    fn judged(&mut self, event: Event) -> Event {
        let Event::Exited { process, cause } = event else { return event };
        // Counted at every end: what is left over would be blamed on the next.
        let before = std::mem::replace(&mut self.oom_kills, self.node.oom_kills(self.staged.tenant));
        Event::Exited { process, cause: verdict(cause, self.oom_kills > before) }
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Stage { staged, wanted, secrets, reply } => {
                let outcome = self.stage(*staged, wanted, secrets).await;
                let _ = reply.send(outcome);
            }
            Command::Unstage => self.advance(Event::Unstage).await,
            Command::Publish { target, publication, reply } => {
                self.staged.published.insert(target, publication);
                let _ = reply.send(self.save().await);
            }
            Command::Unpublished { target, reply } => {
                self.staged.published.remove(&target);
                let _ = reply.send(self.save().await);
            }
            Command::Upgrade(build) => self.advance(Event::UpgradeWanted { build }).await,
        }
    }

    async fn stage(
        &mut self,
        mut staged: Staged,
        wanted: Wanted,
        secrets: Option<String>,
    ) -> Result<(), AgentError> {
        let is_fresh = matches!(
            self.machine.record().state,
            tarbox_supervisor::State::Absent | tarbox_supervisor::State::Gone
        );
        if !is_fresh && !self.staged.is_same(&staged) {
            return Err(AgentError::Conflict(format!(
                "the volume {} is staged at {} already, or with other options",
                staged.tenant,
                self.staged.staging_path.display()
            )));
        }
        staged.published = std::mem::take(&mut self.staged.published);
        self.staged = staged;
        // With a login of its own it keeps what it was given.
        let has_changed = secrets.is_some() && secrets != self.secrets;
        if secrets.is_some() || self.staged.login.is_none() {
            self.secrets = secrets;
        }
        // The next mounter gets the new password from the keeper, this one by a call.
        if let Some(kept) = self.kept.take() {
            let renewed = self.with_secrets(kept);
            self.kept = Some(renewed);
            self.put_back().await;
            self.renew_password();
            if has_changed {
                self.end_stand_by();
            }
        }
        if !is_fresh {
            super::mounting::show_again(&self.node, &self.staged).await?;
        }
        self.snapshot.send_modify(|seen| seen.refusal = None);
        self.advance(Event::Stage(wanted)).await;
        Ok(())
    }

    /// One step of the machine, and what follows from it.
    pub(super) async fn advance(&mut self, event: Event) {
        self.notice(&event);
        let effects = self.machine.step(boot::now(), event);
        self.carry_out(effects).await;
    }

    /// What of an event people want to know.
    fn notice(&mut self, event: &Event) {
        let server = self.machine.record().server.as_ref();
        let is_server = |process: &Process| server.is_some_and(|server| server.process == *process);
        let did_serve = server.is_some_and(|server| matches!(server.stage, Stage::Serving | Stage::Draining));
        match event {
            Event::Exited { process, .. } => {
                self.children.remove(process);
                if is_server(process) && did_serve {
                    self.paused.get_or_insert_with(Instant::now);
                }
            }
            Event::Serving { process } if is_server(process) => {
                self.node.database().answered();
                if let Some(pause) = self.paused.take().map(|since| since.elapsed()) {
                    self.node.numbers.recovery.observe(pause.as_secs_f64());
                    self.snapshot.send_modify(|seen| {
                        seen.last_pause = Some(pause);
                        seen.longest_pause = seen.longest_pause.max(Some(pause));
                    });
                }
            }
            _ => {}
        }
        let never_served = !self.machine.record().served;
        let refusal = match event {
            Event::Failed { process, failure } if is_server(process) => Some(failure.clone()),
            Event::EffectFailed { failure, .. } => Some(failure.clone()),
            Event::Exited { process, cause: Cause::Misconfigured } if is_server(process) => Some(Failure {
                kind: ErrorKind::InvalidArgument,
                message: "its configuration is wrong; its log tells more".to_owned(),
            }),
            _ => None,
        };
        // What may mend by itself (the database, another node's lease) is no answer yet.
        let waits = |kind| matches!(kind, ErrorKind::Unavailable | ErrorKind::Busy | ErrorKind::Concurrent);
        if let Some(failure) = refusal.filter(|failure| never_served && !waits(failure.kind)) {
            self.snapshot.send_modify(|seen| {
                seen.refusal.get_or_insert((failure.kind, failure.message));
            });
        }
    }

    /// Carries out effects in their order.
    async fn carry_out(&mut self, effects: Vec<Effect>) {
        let mut effects = effects.into_iter();
        while let Some(Effect { id, order }) = effects.next() {
            if let Order::Persist(record) = &order
                && let Err(error) = self.persist(record).await
            {
                // What was announced is not on disk: nothing behind it may happen, and nobody is told.
                self.is_unsaved = true;
                tracing::error!(tenant = %self.staged.tenant, error = error.report(), "cannot save what is about to be done");
                let failure = Failure { kind: error.kind(), message: error.report() };
                // At once: no other event may come before it. What follows are words, and a timer.
                effects = self.machine.step(boot::now(), Event::EffectFailed { id, failure }).into_iter();
                continue;
            }
            match self.begin(id, order).await {
                Reports::Nothing => {}
                Reports::Done => self.later(Inbound::Event(Event::EffectDone { id, outcome: Outcome::Done })),
                Reports::Failed(failure) => self.later(Inbound::Event(Event::EffectFailed { id, failure })),
            }
        }
    }

    /// To this task itself, which must not wait for its own inbox.
    pub(super) fn later(&self, inbound: Inbound) {
        let inbox = self.inbox.clone();
        super::beside(async move {
            let _ = inbox.send(inbound).await;
        });
    }

    async fn persist(&mut self, record: &Record) -> Result<(), AgentError> {
        let file = StateFile { staged: self.staged.clone(), record: record.clone() };
        let lasting = StateFile { record: reborn(record), ..file.clone() };
        let outlives_the_boot = self.lasting.as_ref() != Some(&lasting);
        self.node.save(file, outlives_the_boot).await?;
        self.lasting = Some(lasting);
        self.is_unsaved = false;
        Ok(())
    }

    async fn save(&mut self) -> Result<(), AgentError> {
        self.persist(&self.machine.record().clone()).await
    }

    /// What people are told.
    pub(super) fn report(&mut self, report: Report) {
        let tenant = self.staged.tenant;
        match report {
            Report::Condition(condition) if condition.is_abnormal() => {
                tracing::warn!(%tenant, ?condition, "condition");
            }
            Report::Condition(condition) => tracing::info!(%tenant, ?condition, "condition"),
            Report::Notice(Notice::Upgraded { build }) => {
                tracing::info!(%tenant, build = build.0, "upgraded");
                self.snapshot.send_modify(|seen| {
                    seen.hand_overs += 1;
                    seen.upgrades += 1;
                    seen.upgrade = Some(UpgradeOutcome { build, fault: None });
                });
            }
            Report::Notice(Notice::UpgradeFailed { build, why }) => {
                tracing::warn!(%tenant, build = build.0, why, "not upgraded");
                self.snapshot.send_modify(|seen| {
                    seen.upgrades += 1;
                    seen.upgrade = Some(UpgradeOutcome { build, fault: Some(why) });
                });
            }
            Report::Notice(notice) => {
                tracing::warn!(%tenant, ?notice, "notice");
                if let Notice::EffectFailed { why } | Notice::StillMounted { why } = notice {
                    self.snapshot.send_modify(|seen| seen.obstacle = Some(why));
                }
            }
        }
    }

    fn show(&self) {
        if self.is_unsaved {
            return;
        }
        let (record, condition) = (self.machine.record(), self.machine.condition());
        let is_kept = self.kept.as_ref().is_some_and(|kept| kept.secrets.is_some());
        let has_secrets = is_kept || self.secrets.is_some();
        self.snapshot.send_if_modified(|seen| {
            let is_new = seen.record != *record
                || seen.condition != condition
                || seen.has_secrets != has_secrets
                || seen.staged != self.staged;
            if is_new {
                if seen.record.state != record.state {
                    seen.obstacle = None;
                }
                seen.record = record.clone();
                seen.condition = condition.clone();
                seen.has_secrets = has_secrets;
                seen.staged = self.staged.clone();
            }
            is_new
        });
    }

    /// Whether nothing is left of the tenant, and nobody has asked for anything meanwhile.
    fn is_over(&mut self) -> bool {
        let record = self.machine.record();
        let is_gone = matches!(record.state, tarbox_supervisor::State::Gone) && record.wanted.is_none();
        is_gone && self.node.forget(self.staged.tenant, &self.commands)
    }
}

/// Why a mounter ended, where the kernel `has_killed` one for want of memory. Of a mounter that another keeper had started, nobody knows the signal.
fn verdict(cause: Cause, has_killed: bool) -> Cause {
    match cause {
        Cause::Signal(9) | Cause::Unknown if has_killed => Cause::OutOfMemory,
        cause => cause,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_end_that_may_have_been_the_kernels_is_one_for_want_of_memory() {
        for cause in [Cause::Signal(9), Cause::Unknown] {
            assert_eq!(verdict(cause.clone(), true), Cause::OutOfMemory);
            assert_eq!(verdict(cause.clone(), false), cause);
        }
        for cause in [Cause::Code(1), Cause::Signal(11), Cause::Clean, Cause::Drained] {
            assert_eq!(verdict(cause.clone(), true), cause);
        }
    }
}
