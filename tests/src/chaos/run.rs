//! One run: a node, its tenants, the loads on them, and events until the time is over.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::Child,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{
    client::{Client, HANGS_AFTER, Wish},
    disturb::{Happened, disturb},
    ending::{self, Descriptors},
    loads::Load,
    observe,
    plan::{Group, Plan},
    report::{LoadRow, RunReport},
};
use crate::{
    deadline::wait_for,
    node::{Node, NodePlan, Published},
    postgres::PostgresServer,
    rng::Rng,
    scratch::Scratch,
    volume::Database,
};

/// On each tenant.
const EVERYWHERE: [Load; 3] = [Load::Probe, Load::Append, Load::Names];
/// On one tenant after the other.
const IN_TURN: [Load; 4] = [Load::Fio, Load::Git, Load::Sqlite, Load::Fsx];
/// Nothing takes longer that has nothing to do with a hanging client.
pub(super) const LIMIT: Duration = Duration::from_secs(120);
/// How often somebody is looked at who is waited for.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(5);

/// What is wished of a run.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long events come.
    pub time: Duration,
    /// What the plan is drawn from.
    pub seed: u64,
    /// What happens.
    pub groups: Vec<Group>,
    /// How many tenants there are.
    pub tenants: usize,
    /// Where they are kept.
    pub database: Database,
    /// Whether the kernel may be asked to send requests again.
    pub resend: bool,
    /// How long a load rests after each step.
    pub rest: Duration,
}

/// A tenant at work.
#[derive(Debug)]
pub(super) struct Tenant {
    pub(super) name: String,
    pub(super) volume: Published,
}

/// Everything that is there during a run. The node goes first: who waits for an answer in one of its volumes is then told an error.
#[derive(Debug)]
pub(super) struct Ground {
    pub(super) node: Node,
    pub(super) clients: Vec<Client>,
    pub(super) server: Option<PostgresServer>,
    pub(super) tenants: Vec<Tenant>,
    /// Upgrades under way, by tenant.
    pub(super) upgrades: BTreeMap<usize, Child>,
    /// Upgrades that were done, and that were not.
    pub(super) upgraded: (u64, u64),
    /// Whether the executable on disk is the second build.
    pub(super) is_second_build: bool,
    scratch: Scratch,
    interrupted: &'static AtomicBool,
}

impl Ground {
    fn prepare(options: &Options, interrupted: &'static AtomicBool) -> Result<Self> {
        let server = match options.database {
            Database::Postgres => Some(PostgresServer::start()?),
            Database::Sqlite => None,
        };
        // Hand-overs are to come when the plan says so, not with each new agent.
        let mut words = vec!["--upgrade".to_owned(), "false".to_owned()];
        words.extend((!options.resend).then(|| "--without-resend".to_owned()));
        let url = server.as_ref().map(PostgresServer::url);
        let node = Node::with(NodePlan { url, in_memory: true, words, ..NodePlan::default() })?;
        let mut ground = Self {
            node,
            clients: Vec::new(),
            server,
            tenants: Vec::new(),
            upgrades: BTreeMap::new(),
            upgraded: (0, 0),
            is_second_build: false,
            scratch: Scratch::on_disk()?,
            interrupted,
        };
        for number in 0..options.tenants {
            let name = format!("tenant-{number}");
            let id = ground.node.tenant(&name)?;
            let volume = ground.node.publish(&id, &name)?;
            ground.tenants.push(Tenant { name, volume });
        }
        Ok(ground)
    }

    fn start_loads(&mut self, options: &Options) -> Result<()> {
        let mut rng = Rng::new(options.seed);
        for (number, tenant) in self.tenants.iter().enumerate() {
            // With few tenants each has several of the programs.
            let in_turn = IN_TURN.iter().enumerate().filter(|(i, _)| i % options.tenants == number);
            for load in EVERYWHERE.iter().chain(in_turn.map(|(_, load)| load)) {
                let scratch = self.scratch.sub(&format!("{}-{number}", load.name()))?;
                let wish = Wish { load: *load, tenant: number, seed: rng.next_u64(), rest: options.rest };
                let client = Client::start(wish, &tenant.volume.target, &scratch)?;
                self.clients.push(client);
            }
        }
        self.until("the first progress of every load", LIMIT, |ground| {
            let slow = ground.clients.iter().find(|client| client.operations() == 0 && !client.is_lost());
            slow.is_none().then_some(())
        })
    }

    /// Rests, unless the run is interrupted.
    ///
    /// # Errors
    /// If it is.
    pub(super) fn rest(&mut self, time: Duration) -> Result<()> {
        let begin = Instant::now();
        while begin.elapsed() < time {
            if self.interrupted.load(Ordering::SeqCst) {
                bail!("interrupted");
            }
            thread::sleep(LOOK_EVERY.min(time));
        }
        Ok(())
    }

    /// Waits for a condition, unless the run is interrupted.
    ///
    /// # Errors
    /// If it is, or the condition does not come.
    pub(super) fn until<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut condition: impl FnMut(&mut Self) -> Option<T>,
    ) -> Result<T> {
        let interrupted = self.interrupted;
        let found = wait_for(what, limit, || {
            if interrupted.load(Ordering::SeqCst) { Some(None) } else { condition(self).map(Some) }
        });
        found?.context("interrupted")
    }

    /// The probe of a tenant.
    pub(super) fn probe(&self, tenant: usize) -> Option<&Client> {
        self.clients.iter().find(|client| client.tenant == tenant && client.load == Load::Probe)
    }

    /// Waits until each of these tenants answers calls that began after this moment, or its probe is lost. A client that hangs meanwhile
    /// is noted as such.
    pub(super) fn healed(&mut self, tenants: &[usize], since_us: u64) -> Result<()> {
        let begin = Instant::now();
        while begin.elapsed() < HANGS_AFTER + LIMIT {
            let is_served = |tenant: &usize| {
                self.probe(*tenant).is_none_or(|probe| probe.is_lost() || probe.has_probed_since(since_us))
            };
            if tenants.iter().all(is_served) {
                return Ok(());
            }
            self.clients.iter_mut().for_each(Client::look);
            self.rest(LOOK_EVERY)?;
        }
        bail!("no progress of tenants {tenants:?}, and no probe of theirs is lost")
    }

    /// How long each tenant concerned was paused, microseconds.
    fn pauses(&self, happened: &Happened) -> Vec<u64> {
        let Happened { tenants, from_us, until_us, hold, .. } = happened;
        let samples = |tenant: &usize| self.probe(*tenant).map(Client::samples).unwrap_or_default();
        let longest =
            tenants.iter().filter_map(|tenant| observe::longest(&samples(tenant), *from_us, *until_us));
        longest.map(|longest| longest.saturating_sub(hold.as_micros() as u64)).collect()
    }

    fn counts(&self) -> (u64, usize) {
        let lost = self.clients.iter().filter(|client| client.is_lost()).count();
        (self.clients.iter().map(Client::operations).sum(), lost)
    }

    fn load_rows(&mut self) -> (BTreeMap<String, LoadRow>, Vec<String>) {
        let (mut rows, mut faults) = (BTreeMap::<String, LoadRow>::new(), Vec::new());
        for client in &mut self.clients {
            client.look();
            let is_hung = client.is_hung();
            let (failed, wrong) = client.faults();
            let name = client.name();
            let row = rows.entry(client.load.name().to_owned()).or_default();
            row.clients += 1;
            row.operations += client.operations();
            row.failed += failed.len();
            row.wrong += wrong.len();
            row.hung += usize::from(is_hung);
            faults.extend(failed.into_iter().map(|text| format!("{name}: failed: {text}")));
            faults.extend(wrong.into_iter().map(|text| format!("{name}: wrong: {text}")));
            faults.extend(is_hung.then(|| format!("{name}: hangs: no progress for {HANGS_AFTER:?}")));
        }
        (rows, faults)
    }

    /// Copies what the processes have logged, for whoever looks for a cause.
    fn keep_logs(&self, dir: &Path) {
        let state = self.node.state_dir();
        let mut logs = vec![
            self.node.path().join("agent.log"),
            self.node.path().join("upgrades.log"),
            state.join("keeper.log"),
        ];
        let mounters = fs::read_dir(state.join("logs")).into_iter().flatten().flatten();
        logs.extend(mounters.map(|entry| entry.path()));
        let _ = fs::create_dir_all(dir);
        for log in logs {
            if let Some(name) = log.file_name() {
                let _ = fs::copy(&log, dir.join(name));
            }
        }
    }
}

/// Runs once; progress goes to standard error, what agent, keeper and mounters have logged into `logs`.
///
/// # Errors
/// If the run itself fails or is interrupted; what applications have seen stands in the report.
pub fn run(options: &Options, logs: &Path, interrupted: &'static AtomicBool) -> Result<RunReport> {
    let mut ground = Ground::prepare(options, interrupted)?;
    let outcome = work(&mut ground, options);
    ground.keep_logs(logs);
    outcome
}

fn work(ground: &mut Ground, options: &Options) -> Result<RunReport> {
    let before = Descriptors::settled(ground)?;
    ground.start_loads(options)?;
    let mut report = RunReport::new(options.resend);
    let begin = Instant::now();
    let outcome = events(ground, options, &mut report);
    report.seconds = begin.elapsed().as_secs_f64();
    let outcome = match outcome {
        Ok(()) => ending::end(ground, &before).map(|checks| report.checks = checks),
        failed => failed,
    };
    if ground.interrupted.load(Ordering::SeqCst) {
        bail!("interrupted");
    }
    report.upgrades = ground.upgraded;
    (report.loads, report.faults) = ground.load_rows();
    // A node that cannot go on is a fault like any other: what applications saw until then belongs in the report.
    // In between stand whole logs, which are kept anyhow.
    let early = |error: anyhow::Error| format!("the run ended early: {error}: {}", error.root_cause());
    report.faults.extend(outcome.err().map(early));
    Ok(report)
}

/// Lets events happen until the time is over, or every client is lost.
fn events(ground: &mut Ground, options: &Options, report: &mut RunReport) -> Result<()> {
    let begin = Instant::now();
    let mut plan = Plan::new(options.seed, &options.groups, options.tenants);
    while begin.elapsed() < options.time {
        let event = plan.next(begin.elapsed());
        ground.rest(event.after)?;
        let happened = disturb(ground, &event).with_context(|| format!("{event:?}"))?;
        let pauses = ground.pauses(&happened);
        let (operations, lost) = ground.counts();
        let Happened { label, tenants, .. } = happened;
        eprintln!(
            "{} [{:6.1} s] {label}: tenants {tenants:?} paused {:?} ms; {operations} operations, {lost} clients lost",
            clock(),
            begin.elapsed().as_secs_f64(),
            pauses.iter().map(|us| *us as f64 / 1e3).collect::<Vec<_>>(),
        );
        report.happened(label, pauses);
        ground.clients.iter_mut().for_each(Client::look);
        if lost == ground.clients.len() {
            break;
        }
    }
    Ok(())
}

/// The time of day (UTC), as the logs have it.
fn clock() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let seconds = now.as_secs() % 86_400;
    format!("{:02}:{:02}:{:02}.{:03}", seconds / 3600, seconds / 60 % 60, seconds % 60, now.subsec_millis())
}
