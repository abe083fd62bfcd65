//! A small model of what surrounds the supervisor: processes, a mount, a keeper, a disk, a database, and an agent that may die
//! between any two effects. Time goes in steps of a tenth of a second.

use std::{collections::BTreeMap, time::Duration};

use tarbox_supervisor::{
    Answer, Build, Cause, Connection, Effect, EffectId, Event, Failure, Notice, Observation, Observed, Order,
    Outcome, Policy, Process, Record, Report, Role, State, Tenant, Ticket, UnmountStep, Waiting, Wanted,
};
use tarbox_types::{ByteSize, ErrorKind};

pub(crate) const STEP: Duration = Duration::from_millis(100);

/// How a build behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Manner {
    Good,
    CrashesAtStart,
    HangsAtStart,
    /// Serves, then crashes after so long.
    CrashesAfter(Duration),
    HangsAfter(Duration),
    /// Says that its configuration is wrong.
    Refuses,
}

/// A mounter.
#[derive(Clone, Debug)]
pub(crate) struct Proc {
    pub(crate) process: Process,
    pub(crate) role: Role,
    pub(crate) build: Build,
    /// Whether it was told to serve, by Start or by TakeOver.
    pub(crate) told: bool,
    pub(crate) serving: bool,
    pub(crate) hung: bool,
    pub(crate) memory: ByteSize,
    /// What it says to a ping, if not the obvious.
    pub(crate) says: Option<Answer>,
    linked: bool,
    /// Whether the agent that lives now would hear of its exit.
    watched: bool,
    standing_by: bool,
    told_at: Duration,
    born: Duration,
    served_at: Duration,
    leaves_at: Option<(Duration, Cause)>,
}

/// What happens to the next orders to the outside.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Mishap {
    Lost,
    AnswerLost,
    Twice,
}

pub(crate) struct World {
    pub(crate) now: Duration,
    pub(crate) policy: Policy,
    pub(crate) manners: BTreeMap<Build, Manner>,
    pub(crate) agent: Option<Tenant>,
    pub(crate) disk: Option<Record>,
    pub(crate) procs: Vec<Proc>,
    pub(crate) connection: Connection,
    pub(crate) database: bool,
    /// It answers, and refuses whatever is to be committed.
    pub(crate) fenced: bool,
    pub(crate) responding: bool,
    /// What kubelet wants: staged or not.
    pub(crate) wanted: Option<Wanted>,
    /// Whether links are kept over a restart of the agent.
    pub(crate) links_survive: bool,
    pub(crate) mishaps: Vec<Mishap>,
    pub(crate) persist_fails: u32,
    /// The last record could not be saved: nobody is told of it.
    is_unsaved: bool,
    pub(crate) agent_dies_after: Option<u32>,
    pub(crate) agent_back_at: Option<Duration>,
    pub(crate) unmount_fails: u32,
    /// Everything ordered, with its time.
    pub(crate) log: Vec<(Duration, Order)>,
    pub(crate) kills_of_told: u32,
    pub(crate) spawns: u32,
    timer: Option<Duration>,
    events: Vec<(Duration, Event)>,
    next_pid: u32,
    ticket: Option<Ticket>,
    ticket_armed: bool,
    /// In use by applications: it served while it was wanted, and Unstage was not asked since.
    claimed: bool,
    served_since_mount: bool,
    flushed: bool,
}

pub(crate) fn build(name: &str) -> Build {
    Build(name.to_owned())
}

pub(crate) fn wanted(name: &str) -> Wanted {
    Wanted { build: build(name), memory: ByteSize::mib(256) }
}

impl World {
    pub(crate) fn new(policy: Policy) -> Self {
        let tenant = Tenant::new(policy.clone());
        Self {
            now: Duration::from_secs(1000),
            policy,
            manners: BTreeMap::new(),
            agent: Some(tenant),
            disk: None,
            procs: Vec::new(),
            connection: Connection::None,
            database: true,
            fenced: false,
            responding: false,
            wanted: None,
            links_survive: false,
            mishaps: Vec::new(),
            persist_fails: 0,
            is_unsaved: false,
            agent_dies_after: None,
            agent_back_at: None,
            unmount_fails: 0,
            log: Vec::new(),
            kills_of_told: 0,
            spawns: 0,
            timer: None,
            events: Vec::new(),
            next_pid: 100,
            ticket: None,
            ticket_armed: false,
            claimed: false,
            served_since_mount: false,
            flushed: false,
        }
    }

    /// Everything ordered so far, for the report of a failure.
    pub(crate) fn story(&self) -> String {
        let is_told =
            |order: &Order| !matches!(order, Order::Ping(_) | Order::ArmTimer(_) | Order::Ticket(_));
        let line = |(at, order): &(Duration, Order)| match order {
            Order::Persist(record) => format!("{at:?} persist {:?}", record.state),
            other => format!("{at:?} {other:?}"),
        };
        let lines: Vec<_> = self.log.iter().filter(|(_, order)| is_told(order)).map(line).collect();
        lines[lines.len().saturating_sub(80)..].join("\n")
    }

    pub(crate) fn state(&self) -> State {
        self.agent.as_ref().map_or(State::Absent, |tenant| tenant.record().state.clone())
    }

    pub(crate) fn notices(&self) -> Vec<Notice> {
        let notice = |order: &Order| match order {
            Order::Report(Report::Notice(notice)) => Some(notice.clone()),
            _ => None,
        };
        self.log.iter().filter_map(|(_, order)| notice(order)).collect()
    }

    pub(crate) fn server(&mut self) -> Option<&mut Proc> {
        self.procs.iter_mut().find(|proc| proc.told)
    }

    pub(crate) fn stage(&mut self, name: &str) {
        self.wanted = Some(wanted(name));
        self.tell(Event::Stage(wanted(name)));
    }

    pub(crate) fn unstage(&mut self) {
        self.wanted = None;
        self.claimed = false;
        self.tell(Event::Unstage);
    }

    /// Hands the agent an event, if there is one.
    pub(crate) fn tell(&mut self, event: Event) {
        let Some(tenant) = self.agent.as_mut() else { return };
        let effects = tenant.step(self.now, event);
        self.carry_out(effects);
    }

    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.tick();
        }
    }

    /// Runs until `until` holds; panics after `limit`.
    pub(crate) fn run_until(
        &mut self,
        limit: Duration,
        what: &str,
        until: impl Fn(&World) -> bool,
    ) -> Duration {
        let begin = self.now;
        while !until(self) {
            assert!(
                self.now < begin + limit,
                "not within {limit:?}: {what}; state {:?}, procs {:?}",
                self.state(),
                self.procs
            );
            self.tick();
        }
        self.now - begin
    }

    pub(crate) fn is_serving(&self) -> bool {
        let is_shown = matches!(self.state(), State::Serving { .. }) && !self.is_unsaved;
        is_shown && self.procs.iter().any(|proc| proc.serving)
    }

    pub(crate) fn tick(&mut self) {
        self.now += STEP;
        self.live();
        self.keep();
        if self.agent.is_none() && self.agent_back_at.is_none_or(|at| self.now >= at) {
            self.start_agent();
        }
        while let Some(at) = self.events.iter().position(|(at, _)| *at <= self.now) {
            let (_, event) = self.events.remove(at);
            self.tell(event);
        }
        if self.timer.is_some_and(|at| self.now >= at) {
            self.timer = None;
            self.tell(Event::Tick);
        }
        self.check();
    }

    pub(crate) fn kill_agent(&mut self, back_in: Duration) {
        self.agent = None;
        self.agent_back_at = Some(self.now + back_in);
        self.events.clear();
        self.timer = None;
        for proc in &mut self.procs {
            proc.watched = false;
            proc.linked &= self.links_survive;
        }
    }

    /// Kills a process from outside.
    pub(crate) fn end(&mut self, process: Process, cause: Cause) {
        self.exit(process, cause);
    }

    /// Everybody who holds a descriptor dies at once.
    pub(crate) fn lose_everything(&mut self) {
        for process in self.procs.iter().map(|proc| proc.process).collect::<Vec<_>>() {
            self.exit(process, Cause::Signal(9));
        }
        if self.connection == Connection::Alive {
            self.connection = Connection::Dead;
        }
    }

    fn exit(&mut self, process: Process, cause: Cause) {
        let Some(at) = self.procs.iter().position(|proc| proc.process == process) else { return };
        let dead = self.procs.remove(at);
        self.ticket_armed |= dead.told && cause != Cause::Clean;
        if self.agent.is_some() && dead.watched {
            self.events.push((self.now, Event::Exited { process, cause }));
        }
    }

    fn say(&mut self, index: usize, event: Event) {
        if self.agent.is_some() && self.procs[index].linked {
            self.events.push((self.now, event));
        }
    }

    /// The mounters' lives.
    fn live(&mut self) {
        let mut leaving = Vec::new();
        for index in 0..self.procs.len() {
            let proc = &mut self.procs[index];
            if let Some((at, cause)) = proc.leaves_at.clone() {
                // A hanging process hears nothing but SIGKILL; ending well needs the database.
                let can =
                    cause == Cause::Signal(9) || (!proc.hung && (self.database || cause != Cause::Clean));
                if can && self.now >= at {
                    leaving.push((proc.process, cause));
                }
                continue;
            }
            if proc.hung {
                continue;
            }
            let manner = self.manners.get(&proc.build).copied().unwrap_or(Manner::Good);
            let age = self.now - proc.born;
            let process = proc.process;
            match manner {
                Manner::CrashesAtStart if !proc.serving => leaving.push((process, Cause::Signal(11))),
                Manner::Refuses if !proc.serving => {
                    leaving.push((process, Cause::Misconfigured));
                    let failure =
                        Failure { kind: ErrorKind::InvalidArgument, message: "unknown option".to_owned() };
                    self.say(index, Event::Failed { process, failure });
                }
                Manner::HangsAtStart if !proc.serving => proc.hung = true,
                Manner::CrashesAfter(time) if proc.serving && self.now >= proc.served_at + time => {
                    leaving.push((process, Cause::Signal(11)));
                }
                Manner::HangsAfter(time) if proc.serving && self.now >= proc.served_at + time => {
                    proc.hung = true
                }
                _ if proc.told && self.connection != Connection::Alive => {
                    proc.leaves_at = Some((self.now, Cause::Clean));
                }
                // Its control socket is not there yet: it says by itself that it waits.
                _ if !self.database
                    && proc.told
                    && !proc.serving
                    && self.now.as_millis().is_multiple_of(500) =>
                {
                    let answer = Answer { waiting_for: Some(Waiting::Database), ..Answer::default() };
                    self.say(index, Event::PingAnswered { process, answer });
                }
                _ if !self.database => {}
                _ if proc.told && !proc.serving && self.now >= proc.told_at + 2 * STEP => {
                    proc.serving = true;
                    proc.served_at = self.now;
                    self.flushed = false;
                    self.say(index, Event::Serving { process });
                }
                _ if !proc.told && !proc.standing_by && age >= 3 * STEP => {
                    proc.standing_by = true;
                    self.say(index, Event::StandingBy { process });
                }
                _ => {}
            }
        }
        for (process, cause) in leaving {
            self.exit(process, cause);
        }
    }

    /// The keeper: without an agent it restarts what died, after everybody else of the tenant is dead.
    fn keep(&mut self) {
        if self.agent.is_some() || !self.ticket_armed || self.connection != Connection::Alive {
            return;
        }
        let Some(ticket) = self.ticket.clone() else { return };
        if self.procs.is_empty() {
            self.ticket_armed = false;
            self.spawn(Role::Serve, ticket.build, ticket.memory);
        }
        for proc in self.procs.iter_mut().filter(|_| self.ticket_armed) {
            proc.leaves_at = Some((self.now + STEP, Cause::Signal(9)));
        }
    }

    fn spawn(&mut self, role: Role, build: Build, memory: ByteSize) -> Process {
        self.next_pid += 1;
        self.spawns += 1;
        let process = Process { pid: self.next_pid, start_time: u64::from(self.next_pid) * 7 };
        let is_attended = self.agent.is_some();
        self.responding = false;
        self.procs.push(Proc {
            process,
            role,
            build,
            told: role == Role::Serve,
            serving: false,
            hung: false,
            says: None,
            memory,
            linked: is_attended || self.links_survive,
            watched: is_attended,
            standing_by: false,
            told_at: self.now,
            born: self.now,
            served_at: Duration::ZERO,
            leaves_at: None,
        });
        process
    }

    fn observation(&mut self) -> Observation {
        let mounters = self.procs.iter_mut().map(|proc| {
            proc.watched = true;
            let Proc { process, role, build, linked, .. } = proc.clone();
            Observed { process, role, build, linked }
        });
        Observation { connection: self.connection, mounters: mounters.collect() }
    }

    fn start_agent(&mut self) {
        self.agent_back_at = None;
        self.is_unsaved = false;
        self.ticket_armed = false;
        match self.disk.clone() {
            Some(record) => {
                let record: Record = {
                    let text = serde_json::to_string(&record).expect("a record can be written");
                    serde_json::from_str(&text).expect("a record can be read")
                };
                let observation = self.observation();
                let (tenant, effects) = Tenant::resume(self.policy.clone(), record, self.now, observation);
                self.agent = Some(tenant);
                self.carry_out(effects);
            }
            None => {
                assert!(self.procs.is_empty(), "processes without a record: {:?}", self.procs);
                self.agent = Some(Tenant::new(self.policy.clone()));
            }
        }
        self.nag();
    }

    /// Kubelet repeats what it wants.
    pub(crate) fn nag(&mut self) {
        match self.wanted.clone() {
            Some(wanted) => self.tell(Event::Stage(wanted)),
            None => self.tell(Event::Unstage),
        }
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        let mut effects = effects.into_iter();
        while let Some(Effect { id, order }) = effects.next() {
            let Some(agent) = self.agent.as_mut() else { return };
            match self.agent_dies_after {
                Some(0) => {
                    self.agent_dies_after = None;
                    self.kill_agent(Duration::from_secs(3));
                    return;
                }
                Some(n) => self.agent_dies_after = Some(n - 1),
                None => {}
            }
            self.log.push((self.now, order.clone()));
            match order {
                Order::Persist(record) => {
                    self.is_unsaved = self.persist_fails > 0;
                    if self.is_unsaved {
                        self.persist_fails -= 1;
                        let failure = Failure { kind: ErrorKind::Exhausted, message: "disk full".to_owned() };
                        effects = agent.step(self.now, Event::EffectFailed { id, failure }).into_iter();
                        continue;
                    }
                    self.disk = Some(*record);
                }
                Order::ArmTimer(at) => self.timer = Some(at),
                Order::Report(_) => {}
                other => match self.mishaps.pop() {
                    None => self.act(id, other, true),
                    Some(Mishap::Lost) => {}
                    Some(Mishap::AnswerLost) => self.act(id, other, false),
                    // A second spawn would be a second answer; everything else may be done twice.
                    Some(Mishap::Twice) if matches!(other, Order::Spawn { .. }) => self.act(id, other, true),
                    Some(Mishap::Twice) => {
                        self.act(id, other.clone(), true);
                        self.act(id, other, true);
                    }
                },
            }
        }
    }

    fn answer(&mut self, after: Duration, event: Event, heard: bool) {
        if heard {
            self.events.push((self.now + after, event));
        }
    }

    fn fail(&mut self, id: EffectId, kind: ErrorKind, message: &str) {
        let failure = Failure { kind, message: message.to_owned() };
        self.events.push((self.now, Event::EffectFailed { id, failure }));
    }

    fn act(&mut self, id: EffectId, order: Order, heard: bool) {
        let done = |outcome| Event::EffectDone { id, outcome };
        match order {
            Order::Mount => {
                assert!(
                    self.disk.as_ref().is_some_and(|record| record.wanted.is_some()),
                    "mounted before it was written down\n{}",
                    self.story()
                );
                if self.connection != Connection::Alive {
                    self.served_since_mount = false;
                }
                self.connection = Connection::Alive;
                self.answer(STEP, done(Outcome::Done), heard);
            }
            Order::Spawn { role, build, memory } => {
                if self.connection == Connection::Dead {
                    return self.fail(id, ErrorKind::NotFound, "the keeper has no descriptors");
                }
                let process = self.spawn(role, build, memory);
                self.answer(Duration::ZERO, done(Outcome::Spawned(process)), heard);
            }
            Order::SendTakeOver(process) => self.take_over(id, process),
            Order::SendDrain(process, _) => self.ask_to_leave(id, process, Cause::Drained),
            Order::SendStop(process) => self.ask_to_leave(id, process, Cause::Clean),
            Order::Kill(process) => {
                if let Some(proc) = self.procs.iter_mut().find(|proc| proc.process == process) {
                    proc.leaves_at = Some((self.now + STEP, Cause::Signal(9)));
                    // What was unstaged before it ever served is of no use to anybody.
                    self.kills_of_told += u32::from(proc.serving || (proc.told && self.wanted.is_some()));
                }
            }
            Order::Ping(process) => self.ping(process, heard),
            Order::StackDump(_) => {}
            Order::RespondErrors(on) => {
                assert!(
                    !on || !self.procs.iter().any(|proc| proc.told),
                    "errors are answered beside a mounter"
                );
                self.responding = on;
            }
            Order::Flush(process) => {
                let can = self.database
                    && self.procs.iter().any(|proc| proc.process == process && proc.serving && !proc.hung);
                self.flushed |= can && !self.fenced;
                if can && !self.fenced {
                    self.answer(STEP, done(Outcome::Done), heard);
                } else {
                    let kind = if can { ErrorKind::Fenced } else { ErrorKind::Unavailable };
                    let failure = Failure { kind, message: "not flushed".to_owned() };
                    self.answer(Duration::from_secs(5), Event::EffectFailed { id, failure }, heard);
                }
            }
            Order::Unmount(step) => self.unmount(id, step, heard),
            Order::Ticket(ticket) => self.ticket = ticket,
            Order::Observe => {
                let observation = self.observation();
                self.answer(Duration::ZERO, Event::Observed(observation), heard);
            }
            Order::ForgetState => {
                assert_eq!(self.connection, Connection::None, "forgotten while mounted");
                assert!(self.procs.is_empty(), "forgotten while processes live: {:?}", self.procs);
                self.disk = None;
                self.ticket = None;
                self.answer(Duration::ZERO, done(Outcome::Done), heard);
            }
            Order::Persist(_) | Order::ArmTimer(_) | Order::Report(_) => {
                unreachable!("handled by the caller")
            }
        }
    }

    fn take_over(&mut self, id: EffectId, process: Process) {
        let known = self.disk.as_ref().and_then(|record| record.server.as_ref()).map(|server| server.process);
        assert_eq!(known, Some(process), "TakeOver before it was written down\n{}", self.story());
        match self.procs.iter_mut().find(|proc| proc.process == process) {
            Some(proc) if proc.linked => {
                if !proc.told {
                    proc.told = true;
                    proc.told_at = self.now;
                }
            }
            Some(_) | None => self.fail(id, ErrorKind::NotFound, "no channel"),
        }
    }

    fn ask_to_leave(&mut self, id: EffectId, process: Process, cause: Cause) {
        match self.procs.iter_mut().find(|proc| proc.process == process && proc.linked) {
            Some(proc) => {
                proc.leaves_at.get_or_insert((self.now + STEP, cause));
            }
            None => self.fail(id, ErrorKind::NotFound, "no channel"),
        }
    }

    fn ping(&mut self, process: Process, heard: bool) {
        let database = self.database;
        let event = match self.procs.iter().find(|proc| proc.process == process && !proc.hung) {
            Some(proc) if proc.serving => {
                let waiting_for = (!database).then_some(Waiting::Database);
                let obvious = Answer { serving: proc.serving, waiting_for, ..Answer::default() };
                let answer = proc.says.clone().unwrap_or(obvious);
                (STEP, Event::PingAnswered { process, answer })
            }
            Some(_) | None => (self.policy.ping_limit, Event::PingUnanswered { process }),
        };
        self.answer(event.0, event.1, heard);
    }

    fn unmount(&mut self, id: EffectId, _step: UnmountStep, heard: bool) {
        assert!(!self.claimed, "unmounted while it is used\n{}", self.story());
        let is_lossless = self.flushed
            || !self.served_since_mount
            || self.fenced
            // Nobody could be asked: one that hangs has been, and did not answer.
            || !self.procs.iter().any(|proc| proc.serving && !proc.hung)
            || self.connection != Connection::Alive;
        assert!(is_lossless, "unmounted without a flush\n{}", self.story());
        if self.unmount_fails > 0 {
            self.unmount_fails -= 1;
            self.fail(id, ErrorKind::Busy, "pinned by a private copy");
            return;
        }
        self.connection = Connection::None;
        self.answer(STEP, Event::EffectDone { id, outcome: Outcome::Done }, heard);
    }

    /// What must hold at every moment.
    fn check(&mut self) {
        let told: Vec<_> = self.procs.iter().filter(|proc| proc.told).collect();
        assert!(told.len() <= 1, "two mounters serve: {told:?}\n{}", self.story());
        assert!(self.procs.len() <= 3, "processes pile up: {:?}\n{}", self.procs, self.story());
        // Only now does Stage return, and applications come.
        self.served_since_mount |= self.is_serving();
        self.claimed |= self.is_serving() && self.wanted.is_some();
    }
}
