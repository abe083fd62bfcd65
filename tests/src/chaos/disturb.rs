//! Does to a node what the plan says, and waits until its applications go on.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{
    observe::now_us,
    plan::{Event, Kind},
    run::{Ground, LIMIT},
};
use crate::product::program;

/// Between a kill and the end of its window at least, so that kills and nothing are measured alike.
const WINDOW_US: u64 = 300_000;
/// A stand-by that has lived for so long stands by.
const STANDS_BY_AFTER: Duration = Duration::from_secs(2);
/// The agent ends who hangs after five pings of two seconds and a stack dump.
const WATCHDOG: Duration = Duration::from_secs(45);
/// Without more memory, nobody under load lives longer.
const STARVES_WITHIN: Duration = Duration::from_secs(10);
/// Until the successor serves; its probation comes after.
const HAND_OVER: Duration = Duration::from_secs(30);
/// As long as all upgrades of a node may take: each proves itself for ten seconds, four at once.
const ROLL_OUT: Duration = Duration::from_secs(600);

/// What has happened, to whom, and when.
#[derive(Debug)]
pub(super) struct Happened {
    /// As it is called in the report.
    pub(super) label: String,
    /// Whom it may have concerned.
    pub(super) tenants: Vec<usize>,
    /// The window in which they may have waited, microseconds of CLOCK_MONOTONIC.
    pub(super) from_us: u64,
    pub(super) until_us: u64,
    /// How long they had to wait at least, because the one who served was stopped.
    pub(super) hold: Duration,
}

/// Makes the event happen; returns when every application that it concerns goes on.
///
/// # Errors
/// If something could not be done, or the run is interrupted. What applications suffer is no error here.
pub(super) fn disturb(ground: &mut Ground, event: &Event) -> Result<Happened> {
    ground.reap_upgrades();
    let one = vec![event.tenant];
    let all: Vec<usize> = (0..ground.tenants.len()).collect();
    let from_us = now_us();
    let (label, tenants, hold) = match event.kind {
        Kind::Nothing => ("nothing".to_owned(), all, Duration::ZERO),
        Kind::Mounter => (ground.kill_mounter(event.tenant)?, one, Duration::ZERO),
        Kind::StandBy => (ground.kill_stand_by(event.tenant)?, one, Duration::ZERO),
        Kind::MounterAndStandBy => (ground.kill_both(event.tenant)?, one, Duration::ZERO),
        Kind::Agent | Kind::AgentAndKeeper => (ground.kill_agent(event)?, all, Duration::ZERO),
        Kind::MounterAndAgent => (ground.kill_agent(event)?, one, Duration::ZERO),
        Kind::Keeper => (ground.kill_keeper(event)?, all, Duration::ZERO),
        Kind::MounterAndKeeper => (ground.kill_keeper(event)?, one, Duration::ZERO),
        Kind::StopMounter => {
            let server = ground.server(event.tenant)?;
            (ground.stop("mounter stopped, beyond the stop", server, event.hold)?, one, event.hold)
        }
        Kind::StopAgent => {
            let agent = ground.node.agent_pid().context("an agent")?;
            (ground.stop("agent stopped", agent, event.hold)?, all, Duration::ZERO)
        }
        Kind::StopKeeper => {
            let keeper = ground.keeper()?;
            (ground.stop("keeper stopped", keeper, event.hold)?, all, Duration::ZERO)
        }
        Kind::Hang => (ground.hang(event.tenant)?, one, Duration::ZERO),
        Kind::OutOfMemory => (ground.starve(event.tenant)?, one, Duration::ZERO),
        Kind::Database => {
            let (label, away) = ground.stop_database(event.hold)?;
            (label, all, away)
        }
        Kind::Upgrade => (ground.upgrade(event.tenant)?, one, Duration::ZERO),
        Kind::Rollout => (ground.roll_out()?, all, Duration::ZERO),
    };
    let done_us = now_us().max(from_us + WINDOW_US);
    let everybody: Vec<usize> = (0..ground.tenants.len()).collect();
    ground.healed(&everybody, done_us)?;
    Ok(Happened { label, tenants, from_us, until_us: done_us, hold })
}

fn signal(pid: u32, signal: Signal) -> Result<()> {
    match kill(Pid::from_raw(pid.cast_signed()), signal) {
        // It has died meanwhile: there is nobody left to disturb.
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno).with_context(|| format!("{signal} to {pid}")),
    }
}

fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// How long a process has lived. Source: proc_pid_stat(5), field 22, in ticks of which there are 100 a second.
fn age(pid: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let ticks: f64 = stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()?;
    let uptime: f64 = fs::read_to_string("/proc/uptime").ok()?.split(' ').next()?.parse().ok()?;
    Duration::try_from_secs_f64(uptime - ticks / 100.0).ok()
}

impl Ground {
    fn id(&self, tenant: usize) -> &str {
        &self.tenants[tenant].volume.id
    }

    /// Who serves a tenant.
    fn server(&self, tenant: usize) -> Result<u32> {
        self.node.mounter_pid(self.id(tenant))
    }

    fn spares(&self, tenant: usize, server: u32) -> Vec<u32> {
        self.node.mounters(self.id(tenant)).into_iter().filter(|pid| *pid != server).collect()
    }

    fn keeper(&mut self) -> Result<u32> {
        self.until("a keeper", LIMIT, |ground| ground.node.keeper_pid())
    }

    // === Kills ===

    fn kill_mounter(&mut self, tenant: usize) -> Result<String> {
        let server = self.server(tenant)?;
        let spare = self.spares(tenant, server).into_iter().filter_map(age).max();
        signal(server, Signal::SIGKILL)?;
        let label = match (self.upgrades.contains_key(&tenant), spare) {
            (true, _) => "mounter on probation",
            (false, Some(age)) if age >= STANDS_BY_AFTER => "mounter, another stands by",
            (false, Some(_)) => "mounter, another is not ready",
            (false, None) => "mounter, cold start",
        };
        Ok(label.to_owned())
    }

    fn kill_stand_by(&mut self, tenant: usize) -> Result<String> {
        let server = self.server(tenant)?;
        let spares = self.spares(tenant, server);
        spares.iter().try_for_each(|pid| signal(*pid, Signal::SIGKILL))?;
        Ok(if spares.is_empty() { "nothing".to_owned() } else { "stand-by".to_owned() })
    }

    fn kill_both(&mut self, tenant: usize) -> Result<String> {
        let server = self.server(tenant)?;
        let spares = self.spares(tenant, server);
        spares.iter().chain([&server]).try_for_each(|pid| signal(*pid, Signal::SIGKILL))?;
        Ok("mounter and stand-by".to_owned())
    }

    fn kill_agent(&mut self, event: &Event) -> Result<String> {
        let (label, victim) = match event.kind {
            Kind::MounterAndAgent => ("mounter and agent", Some(self.server(event.tenant)?)),
            Kind::AgentAndKeeper => ("agent and keeper", Some(self.keeper()?)),
            _ => ("agent", None),
        };
        self.node.kill_agent();
        victim.map(|pid| signal(pid, Signal::SIGKILL)).transpose()?;
        self.rest(event.hold)?;
        self.node.start_agent()?;
        Ok(label.to_owned())
    }

    fn kill_keeper(&mut self, event: &Event) -> Result<String> {
        let keeper = self.keeper()?;
        let server = match event.kind {
            Kind::MounterAndKeeper => Some(self.server(event.tenant)?),
            _ => None,
        };
        signal(keeper, Signal::SIGKILL)?;
        server.map(|pid| signal(pid, Signal::SIGKILL)).transpose()?;
        self.until("another keeper", LIMIT, |ground| {
            ground.node.keeper_pid().filter(|next| *next != keeper)
        })?;
        Ok(if server.is_some() { "mounter and keeper" } else { "keeper" }.to_owned())
    }

    // === Stops ===

    fn stop(&mut self, label: &str, pid: u32, hold: Duration) -> Result<String> {
        signal(pid, Signal::SIGSTOP)?;
        // Whatever becomes of the run, nobody is left stopped.
        let rested = self.rest(hold);
        signal(pid, Signal::SIGCONT)?;
        rested.map(|()| label.to_owned())
    }

    fn hang(&mut self, tenant: usize) -> Result<String> {
        let server = self.server(tenant)?;
        signal(server, Signal::SIGSTOP)?;
        let ended =
            self.until("the end of a mounter that hangs", WATCHDOG, |_| (!is_alive(server)).then_some(()));
        signal(server, Signal::SIGCONT)?;
        ended.map(|()| "mounter hangs".to_owned())
    }

    /// How long it was away; nothing where there is no server.
    fn stop_database(&mut self, hold: Duration) -> Result<(String, Duration)> {
        let begin = Instant::now();
        let Some(server) = self.server.as_mut() else { return Ok(("nothing".to_owned(), Duration::ZERO)) };
        // In both ways: with a checkpoint, and as a crash.
        if hold.as_millis().is_multiple_of(2) {
            server.stop()?
        } else {
            server.crash()?
        }
        let rested = self.rest(hold);
        self.server.as_mut().context("a server")?.resume()?;
        rested.map(|()| ("database away, beyond that".to_owned(), begin.elapsed()))
    }

    // === Memory ===

    fn starve(&mut self, tenant: usize) -> Result<String> {
        let server = self.server(tenant)?;
        let group = MemoryGroup::of(server)?;
        let before = group.limit()?;
        let ended = self.until("the end of a mounter without memory", STARVES_WITHIN, |_| {
            // What is used less than before is not given back.
            group.tighten();
            (!is_alive(server)).then_some(())
        });
        // The group may be gone with its process.
        let _ = group.set(&before);
        Ok(if ended.is_ok() { "mounter out of memory" } else { "mounter short of memory" }.to_owned())
    }

    // === Upgrades ===

    fn upgrade(&mut self, tenant: usize) -> Result<String> {
        if self.upgrades.contains_key(&tenant) {
            return self.kill_mounter(tenant);
        }
        let server = self.server(tenant)?;
        let view = self.view(tenant)?;
        if view["build"] == view["wanted_build"] {
            self.swap_builds()?;
        }
        let upgrade = self.begin_upgrade(&["--tenant", self.id(tenant)])?;
        self.upgrades.insert(tenant, upgrade);
        let replaced = self.until("a hand-over", HAND_OVER, |ground| {
            let is_over = !is_alive(server);
            let ended =
                ground.upgrades.get_mut(&tenant).is_none_or(|child| matches!(child.try_wait(), Ok(Some(_))));
            (is_over || ended).then_some(is_over)
        })?;
        Ok(if replaced { "upgrade" } else { "upgrade, not done" }.to_owned())
    }

    /// All tenants; those of which an upgrade is under way are waited for first.
    fn roll_out(&mut self) -> Result<String> {
        self.until("the upgrades under way", ROLL_OUT, |ground| {
            ground.reap_upgrades();
            ground.upgrades.is_empty().then_some(())
        })?;
        self.swap_builds()?;
        let mut rollout = self.begin_upgrade(&[])?;
        let status = self.until("a rollout", ROLL_OUT, |_| rollout.try_wait().ok().flatten())?;
        let tenants = self.tenants.len() as u64;
        if status.success() {
            self.upgraded.0 += tenants;
            return Ok("rollout".to_owned());
        }
        self.upgraded.1 += tenants;
        Ok("rollout, not done".to_owned())
    }

    /// `tarbox-agent upgrade`, which ends when it is decided.
    fn begin_upgrade(&self, which: &[&str]) -> Result<Child> {
        let log =
            fs::File::options().create(true).append(true).open(self.node.path().join("upgrades.log"))?;
        let mut upgrade = Command::new(program("tarbox-agent"));
        upgrade.arg("upgrade").args(which).arg("--state-dir").arg(self.node.state_dir());
        upgrade.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        upgrade.spawn().context("start an upgrade")
    }

    fn view(&mut self, tenant: usize) -> Result<Value> {
        let id = self.id(tenant).to_owned();
        let found = self.node.ps()?.into_iter().find(|view| view["tenant_id"] == *id);
        found.with_context(|| format!("the agent knows no tenant {id}"))
    }

    /// The other build: the same program with a byte behind its end, or without it.
    fn swap_builds(&mut self) -> Result<()> {
        let path = self.node.mounter().to_owned();
        let mut bytes = fs::read(&path)?;
        if self.is_second_build {
            bytes.truncate(bytes.len() - 1);
        } else {
            bytes.push(0);
        }
        let draft = path.with_extension("draft");
        fs::write(&draft, bytes)?;
        fs::set_permissions(&draft, fs::Permissions::from_mode(0o755))?;
        fs::rename(draft, path)?;
        self.is_second_build = !self.is_second_build;
        Ok(())
    }

    /// Takes note of upgrades that have been decided.
    pub(super) fn reap_upgrades(&mut self) {
        let upgraded = &mut self.upgraded;
        self.upgrades.retain(|_, child| match child.try_wait() {
            Ok(Some(status)) => {
                if status.success() {
                    upgraded.0 += 1
                } else {
                    upgraded.1 += 1
                }
                false
            }
            Ok(None) | Err(_) => true,
        });
    }
}

/// The control group that limits a process's memory.
struct MemoryGroup {
    directory: PathBuf,
    is_v2: bool,
}

impl MemoryGroup {
    fn of(pid: u32) -> Result<Self> {
        let membership = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        for line in membership.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(names), Some(path)) = (fields.next(), fields.next()) else { continue };
            let path = path.trim_start_matches('/');
            let v1 = Path::new("/sys/fs/cgroup/memory").join(path);
            if names.split(',').any(|name| name == "memory") && path.contains("tarbox-") {
                return Ok(Self { directory: v1, is_v2: false });
            }
            let v2 = Path::new("/sys/fs/cgroup").join(path);
            if names.is_empty() && v2.join("memory.max").exists() && path.contains("tarbox-") {
                return Ok(Self { directory: v2, is_v2: true });
            }
        }
        bail!("the mounter (pid {pid}) is in no control group of its own: {membership}")
    }

    fn names(&self) -> (&'static str, &'static str) {
        if self.is_v2 {
            ("memory.max", "memory.current")
        } else {
            ("memory.limit_in_bytes", "memory.usage_in_bytes")
        }
    }

    fn limit(&self) -> Result<String> {
        Ok(fs::read_to_string(self.directory.join(self.names().0))?.trim().to_owned())
    }

    fn set(&self, limit: &str) -> Result<()> {
        Ok(fs::write(self.directory.join(self.names().0), limit)?)
    }

    /// Limits to what is in use, or a little less where that much can be reclaimed.
    fn tighten(&self) {
        let used = fs::read_to_string(self.directory.join(self.names().1)).unwrap_or_default();
        let Ok(used) = used.trim().parse::<u64>() else { return };
        // Refused (EBUSY, version 1) where it cannot be reclaimed: then it stays at what was in use.
        let _ = self.set(&used.to_string());
        let _ = self.set(&used.saturating_sub(1 << 20).to_string());
    }
}
