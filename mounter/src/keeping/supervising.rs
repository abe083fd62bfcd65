//! What is done when something happens to the serving process, or to this one. What follows from it the supervisor's state machine
//! decides, as it does in the agent.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    future::pending,
    path::PathBuf,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use tarbox_handover::{FromMounter, Kept, message::exit, protocol::Exited};
use tarbox_runtime::Shutdown;
use tarbox_store::Tenant;
use tarbox_supervisor::{
    Build, Cause, Connection, Event, Observation, Observed, Policy, Process, State, Tenant as Machine,
};
use tokio::{
    signal::unix::Signal,
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{
    life::{Inbound, Life},
    order::Order,
    responding::Responding,
};
use crate::{engine, failure::Failure, native::Native};

/// Messages and events that may wait: those of a handful of processes. Who has one waits for room.
const WAITING: usize = 64;

/// Everything that is kept, and who serves.
pub(super) struct Keeping {
    pub(super) order: Order,
    pub(super) kept: Kept,
    pub(super) point: PathBuf,
    pub(super) tenant: Tenant,
    pub(super) state_dir: PathBuf,
    pub(super) shutdown: Shutdown,
    hangup: Signal,
    /// Paths in the tenant where directories of this machine are mounted.
    pub(super) native: Vec<PathBuf>,
    pub(super) machine: Machine,
    pub(super) lives: BTreeMap<Process, Life>,
    /// What is executed, by the name that the machine has for it.
    pub(super) executables: BTreeMap<Build, Arc<File>>,
    pub(super) inbox: mpsc::Sender<Inbound>,
    pub(super) events: mpsc::Receiver<Inbound>,
    /// Answers in place of a serving process.
    pub(super) responding: Option<Responding>,
    /// When the machine's clock began: it stands still while the computer sleeps, so that nobody is late for a night.
    pub(super) began: Instant,
    /// When the machine wants to be woken.
    pub(super) alarm: Option<Duration>,
    /// How often another executable was wanted.
    upgrades: u64,
}

/// The executable's name that this process was started from.
pub(super) fn first() -> Build {
    Build("0".to_owned())
}

impl Keeping {
    /// Nobody serves yet.
    pub(super) fn new(
        (order, kept): (Order, Kept),
        (tenant, point, state_dir): (Tenant, PathBuf, PathBuf),
        (shutdown, hangup): (Shutdown, Signal),
    ) -> Self {
        let (inbox, events) = mpsc::channel(WAITING);
        let executables = [(first(), Arc::clone(&order.executable))].into();
        Self {
            order,
            kept,
            point,
            tenant,
            state_dir,
            shutdown,
            hangup,
            native: Vec::new(),
            machine: Machine::new(Policy::default()),
            lives: BTreeMap::new(),
            executables,
            inbox,
            events,
            responding: None,
            began: Instant::now(),
            alarm: None,
            upgrades: 0,
        }
    }

    /// Keeps the mount served until it is gone. `ready` is called once, when it is served for the first time and `native` is there.
    pub(super) async fn run(
        mut self,
        native: Native,
        ready: impl FnOnce() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        if !self.begin().await? {
            return Ok(());
        }
        engine::widen_read_ahead(&self.point);
        self.native = native.paths();
        let mut ready = Some(ready);
        // Beside all else: who is asked for the mount points may have to be replaced before he answers.
        let mut composed = pin!(native.compose(self.point.clone()));
        loop {
            let rings = rings(self.alarm.map(|at| self.began + at));
            tokio::select! {
                outcome = &mut composed, if ready.is_some() => {
                    outcome?;
                    ready.take().map_or(Ok(()), |ready| ready())?;
                }
                inbound = self.events.recv() => {
                    // This process holds a sender itself: there is always one more.
                    if let Some(outcome) = inbound.and_then(|inbound| self.take(inbound)) {
                        return outcome;
                    }
                }
                Some(()) = self.hangup.recv() => self.upgrade(),
                signal = self.shutdown.asked() => return self.end(signal).await,
                () = rings => self.tick(),
            }
        }
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// The machine wanted to be woken now.
    pub(super) fn tick(&mut self) {
        self.alarm = None;
        self.advance(Event::Tick);
    }

    /// What there is. That it is mounted is believed: a process that finds it is not commits and ends well, and that is the end of it all.
    pub(super) fn observed(&self) -> Observation {
        let mounters = self.lives.values().map(|life| Observed {
            process: life.process,
            role: life.role,
            build: life.build.clone(),
            linked: true,
        });
        Observation { connection: Connection::Alive, mounters: mounters.collect() }
    }

    /// One step of the machine, and what follows from it.
    pub(super) fn advance(&mut self, event: Event) {
        let mut next = VecDeque::from([event]);
        while let Some(event) = next.pop_front() {
            let effects = self.machine.step(self.now(), event);
            next.extend(self.carry_out(effects));
        }
    }

    /// Takes in what was heard; `Some` where it is the end of it all.
    pub(super) fn take(&mut self, inbound: Inbound) -> Option<Result<(), Failure>> {
        match inbound {
            Inbound::Event(event) => self.advance(event),
            Inbound::Says(_, FromMounter::Renewed(_), secrets) => {
                // For the next process; this one has them.
                self.kept.secrets = secrets.into_iter().next().or(self.kept.secrets.take());
            }
            Inbound::Says(process, message, _) => self.hear(process, message),
            Inbound::Died(process, how) => {
                let life = self.lives.remove(&process);
                if self.is_server(process) && how.code == Some(exit::ENDED) {
                    return Some(Ok(()));
                }
                if how.code != Some(exit::DRAINED) {
                    let words = life.as_ref().and_then(|life| life.words.as_deref());
                    let words = words.unwrap_or("it said nothing");
                    tracing::warn!(pid = process.pid, how = %shown(how), words, "a serving process has died");
                }
                self.advance(Event::Exited { process, cause: Cause::from(&how) });
            }
        }
        None
    }

    fn hear(&mut self, process: Process, message: FromMounter) {
        let event = Event::heard(process, &message);
        if let FromMounter::Serving(serving) = &message
            && self.machine.record().served
        {
            tracing::info!(
                pid = process.pid,
                replayed = serving.replayed,
                recovered = serving.recovered,
                micros = serving.micros,
                "another process serves"
            );
        }
        if let Some(life) = self.lives.get_mut(&process) {
            life.is_serving |= matches!(message, FromMounter::Serving(_));
            note_words(life, message);
        }
        event.into_iter().for_each(|event| self.advance(event));
    }

    /// SIGHUP: the executable that is now on disk is to serve.
    fn upgrade(&mut self) {
        match self.order.on_disk() {
            Ok(executable) => {
                self.upgrades += 1;
                let build = Build(self.upgrades.to_string());
                self.forget_executables();
                self.executables.insert(build.clone(), executable);
                tracing::info!("preparing the executable now on disk to take over");
                self.advance(Event::UpgradeWanted { build });
            }
            Err(failure) => {
                tracing::error!(reason = %failure.report(), "the executable now on disk cannot be started");
            }
        }
    }

    /// Lets go of those that nothing can come back to.
    fn forget_executables(&mut self) {
        let record = self.machine.record();
        let coming = match &record.state {
            State::Upgrading { to, .. } => Some(to),
            State::Absent
            | State::Starting { .. }
            | State::Serving { .. }
            | State::Restarting { .. }
            | State::Broken { .. }
            | State::Stopping { .. }
            | State::Gone => None,
        };
        let wanted = record.wanted.as_ref().map(|wanted| &wanted.build);
        let needed = [record.build.as_ref(), record.upgrade_to.as_ref(), coming, wanted];
        self.executables.retain(|build, _| needed.contains(&Some(build)));
    }
}

/// Returns then; never where nothing is waited for.
pub(super) async fn rings(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}

/// Keeps the last words of a process.
pub(super) fn note_words(life: &mut Life, message: FromMounter) {
    if let FromMounter::Failed(failed) = message {
        life.words = Some(failed.message);
    }
}

/// How a process has ended, for a log line.
pub(super) fn shown(how: Exited) -> String {
    match (how.code, how.signal) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "nobody knows how".to_owned(),
    }
}
