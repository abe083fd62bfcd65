//! Neighbouring releases mixed: whichever of agent, keeper and mounter is ahead, and whoever dies in between, no call fails.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    mount::{MntFlags, umount2},
    sys::signal::Signal,
};
use tarbox_tests::{
    churn::Churn,
    command::Ended,
    deadline::wait_for,
    node::{Node, NodePlan, Published, Releases},
    process::kill_if_there,
    product::Release,
    rng::seed,
    scratch::require_root,
    volume::{Database, Volume},
};

const LIMIT: Duration = Duration::from_secs(90);

/// What a process executes, or would: device and inode.
fn program(path: impl AsRef<Path>) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

fn executed_by(pid: u32) -> Option<(u64, u64)> {
    program(format!("/proc/{pid}/exe"))
}

/// The numbers in the segments of all journals below a directory.
fn journal_numbers(below: &Path) -> Vec<u32> {
    let mut numbers = Vec::new();
    for path in fs::read_dir(below).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if path.is_dir() && !path.is_symlink() {
            numbers.extend(journal_numbers(&path));
        } else if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("segment-")) {
            let mut head = [0; 12];
            let is_read = File::open(path).and_then(|mut file| file.read_exact(&mut head)).is_ok();
            let [.., a, b, c, d] = head;
            // One without its first word is a spare one.
            numbers.extend((is_read && head[0] != 0).then(|| u32::from_le_bytes([a, b, c, d])));
        }
    }
    numbers
}

/// Runs applications while `disturb` does what it does: none of their calls may fail, and all must be as they made it.
fn under_load(at: &Path, disturb: impl FnOnce() -> Result<()>) -> Result<()> {
    let churns = (0..2).map(|n| Churn::new(&at.join(format!("w{n}")), seed() + n));
    let mut churns = churns.collect::<Result<Vec<_>>>()?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let workers: Vec<_> = churns.iter_mut().map(|churn| scope.spawn(|| churn.run(&stop))).collect();
        let disturbed = disturb();
        stop.store(true, Ordering::Relaxed);
        if disturbed.is_err() {
            // Who waits for an answer is freed by it.
            let _ = umount2(at, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH);
            return disturbed;
        }
        workers.into_iter().try_for_each(|worker| worker.join().expect("no panic").context("a call failed"))
    })?;
    churns.iter_mut().try_for_each(Churn::verify_all)
}

// === On a node ===

/// A node and the one volume on it.
struct Mixed {
    node: Node,
    volume: Published,
    releases: Releases,
}

impl Mixed {
    fn new(releases: Releases) -> Result<Self> {
        require_root();
        let node = Node::with(NodePlan { releases, ..NodePlan::default() })?;
        let id = node.tenant("work")?;
        let volume = node.publish(&id, "work")?;
        Ok(Self { node, volume, releases })
    }

    fn server(&self) -> Result<u32> {
        self.node.mounter_pid(&self.volume.id)
    }

    /// What serves is of this build; the agent names its copies by their content.
    fn build(&self) -> Result<PathBuf> {
        Ok(fs::read_link(format!("/proc/{}/exe", self.server()?))?)
    }

    /// Kills who serves, and waits for another one.
    fn crash(&self) -> Result<()> {
        let server = self.server()?;
        kill_if_there(server);
        wait_for("another mounter", LIMIT, || self.server().ok().filter(|next| *next != server))?;
        Ok(())
    }

    fn install(&mut self, mounter: Release) -> Result<()> {
        self.releases.mounter = mounter;
        self.node.install(self.releases)
    }

    fn upgrade(&self) -> Result<Ended> {
        self.node.operator("upgrade", &[])
    }

    fn upgraded(&self) -> Result<()> {
        let ended = self.upgrade()?;
        ensure!(ended.code == Some(0), "{}{}\n{}", ended.stdout, ended.stderr, self.node.log());
        // Its first record is in a segment of its own.
        let wanted = self.releases.mounter.written();
        let is_written = || journal_numbers(self.node.path()).contains(&wanted).then_some(());
        wait_for("a record of the other release", LIMIT, is_written)
    }

    /// The mounter is replaced by the one installed, and killed in the middle of it.
    fn upgraded_with_a_crash(&self, to: &Path) -> Result<()> {
        let server = self.server()?;
        thread::scope(|scope| {
            let upgrade = scope.spawn(|| self.upgrade());
            let is_next = |pid: &u32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == to);
            let stand_by = || self.node.mounters(&self.volume.id).into_iter().find(is_next);
            wait_for("the stand-by of another release", LIMIT, stand_by)?;
            kill_if_there(server);
            // It may have been given up for that, or not.
            upgrade.join().expect("no panic")
        })?;
        let is_upgraded = || match self.build() {
            Ok(build) if build == to => Some(Ok(())),
            Ok(_) => self.upgrade().err().map(Err),
            Err(error) => Some(Err(error)),
        };
        wait_for("the upgrade", LIMIT, is_upgraded)?
    }

    /// The next agent and, where it has to start one, the next keeper are of these releases.
    fn restart_agent(&mut self, agent: Release, keeper: Release) -> Result<()> {
        self.releases = Releases { agent, keeper, ..self.releases };
        self.node.install(self.releases)?;
        self.node.start_agent()
    }

    fn restart_agent_and_keeper(&mut self, agent: Release, keeper: Release) -> Result<()> {
        self.node.kill_agent();
        kill_if_there(self.node.keeper_pid().context("a keeper")?);
        self.restart_agent(agent, keeper)?;
        let found = self.node.keeper_pid().and_then(executed_by);
        ensure!(found == program(keeper.program("tarbox-keeper")), "the keeper is not of {keeper:?}");
        Ok(())
    }

    /// Takes the volume away: nothing is left, and the database is right.
    fn end(self) -> Result<()> {
        self.node.call("unpublish", &self.volume.words())?;
        self.node.call("unstage", &self.volume.words())?;
        wait_for("nothing left", LIMIT, || self.node.left_over().is_empty().then_some(()))
            .with_context(|| format!("{:?}", self.node.left_over()))?;
        self.node.fsck("work").map(drop)
    }
}

/// Begins with these releases, and replaces each part by `other`.
fn mix(first: Releases, other: impl Fn(Release) -> Release) -> Result<()> {
    let mut mixed = Mixed::new(first)?;
    let target = mixed.volume.target.clone();
    under_load(&target, || {
        mixed.crash()?;
        let build = mixed.build()?;
        mixed.install(other(first.mounter))?;
        mixed.upgraded()?;
        ensure!(mixed.build()? != build, "the mounter is still the first one");
        mixed.crash()?;
        mixed.install(first.mounter)?;
        mixed.upgraded_with_a_crash(&build)?;
        mixed.node.kill_agent();
        mixed.restart_agent(other(first.agent), first.keeper)?;
        mixed.crash()?;
        mixed.restart_agent_and_keeper(first.agent, other(first.keeper))?;
        mixed.crash()?;
        // Nobody attends: the keeper starts the next one.
        let server = mixed.server()?;
        mixed.node.kill_agent();
        kill_if_there(server);
        fs::write(target.join("meanwhile"), "x").context("a write while the agent is away")?;
        mixed.restart_agent(first.agent, other(first.keeper))?;
        ensure!(mixed.server()? != server && mixed.build()? == build, "another mounter of the same build");
        Ok(())
    })?;
    mixed.end()
}

fn every_mix(older: Release, newer: Release) {
    let other = |release| if release == older { newer } else { older };
    for number in 0..8 {
        let pick = |bit: u32| if number >> bit & 1 == 0 { older } else { newer };
        let first = Releases { agent: pick(0), keeper: pick(1), mounter: pick(2) };
        mix(first, other).unwrap_or_else(|error| panic!("{first:?}: {error:#}"));
    }
}

#[test]
fn every_mix_of_this_release_and_the_next_one_serves_through_crashes_and_upgrades() {
    every_mix(Release::This, Release::Next);
}

#[test]
fn every_mix_of_a_release_that_writes_a_new_format_and_the_one_before_it_serves_through_crashes_and_upgrades()
{
    every_mix(Release::Next, Release::AfterNext);
}

#[test]
fn a_mounter_that_cannot_read_what_is_there_is_not_taken() {
    let releases = Releases { agent: Release::Next, keeper: Release::Next, mounter: Release::AfterNext };
    let mut mixed = Mixed::new(releases).expect("a node");
    let target = mixed.volume.target.clone();
    let refused = |mixed: &mut Mixed, words: &str| -> Result<()> {
        let before = mixed.build()?;
        mixed.install(Release::This)?;
        let ended = mixed.upgrade()?;
        let said = format!("{}{}", ended.stdout, ended.stderr);
        ensure!(ended.code == Some(1) && said.contains(words), "{said}\n{}", mixed.node.log());
        ensure!(mixed.build()? == before, "it was taken");
        mixed.crash()
    };
    let disturb = || -> Result<()> {
        // Its stand-by sees that already.
        refused(&mut mixed, "has format 2; this program reads 1 to 1")?;
        // A journal is looked at only when nobody serves any more.
        hide_slots_number(mixed.server()?)?;
        refused(&mut mixed, "has journal format 2; this program reads 1 to 1")
    };
    under_load(&target, disturb).expect("no call fails");
    mixed.end().expect("nothing is left");
}

/// As if the release that serves had raised the journal's number, but not that of the slots.
fn hide_slots_number(server: u32) -> Result<()> {
    let open = fs::read_dir(format!("/proc/{server}/fd"))?.flatten().map(|entry| entry.path());
    let is_slots = |path: &PathBuf| {
        fs::read_link(path).is_ok_and(|name| name.to_string_lossy().starts_with("/memfd:tarbox-slots"))
    };
    let slots = open.into_iter().find(is_slots).context("slots")?;
    // Behind the magic word: see `slots.rs`.
    Ok(File::options().write(true).open(slots)?.write_all_at(&1_u32.to_ne_bytes(), 8)?)
}

// === Plain tarbox-mount ===

/// Begins with one release, goes to the other one, back by a crash, there again, and back.
fn hung_up(first: Release, other: Release) {
    let mut volume = Volume::prepare(Database::Sqlite, &[]);
    let installed = volume.scratch().sub("bin").expect("a directory").join("tarbox-mount");
    let install = |release: Release| -> Result<Option<(u64, u64)>> {
        let draft = installed.with_extension("new");
        fs::copy(release.program("tarbox-mount"), &draft)?;
        fs::rename(draft, &installed)?;
        Ok(program(&installed))
    };
    let old = install(first).expect("installed");
    volume.plan().program = Some(installed.clone());
    volume.start();
    let serving = |wanted: Option<(u64, u64)>, ask: bool| {
        wait_for("the other release to serve", LIMIT, || {
            if executed_by(volume.mount().pid()) == wanted {
                return fs::symlink_metadata(volume.path()).is_ok().then_some(());
            }
            // Refused as long as the one before is on probation.
            ask.then(|| volume.mount().signal(Signal::SIGHUP));
            None
        })
        .with_context(|| volume.mount().said())
    };
    let written = |release: Release| {
        let is_written = || journal_numbers(volume.scratch().path()).contains(&release.written());
        wait_for("a record of the other release", LIMIT, || is_written().then_some(()))
    };
    under_load(volume.path(), || {
        let new = install(other)?;
        serving(new, true)?;
        written(other)?;
        // It has not proved itself yet: the first one reads what it has left.
        kill_if_there(volume.mount().pid());
        serving(old, false)?;
        serving(new, true)?;
        let back = install(first)?;
        serving(back, true)?;
        written(first)
    })
    .unwrap_or_else(|error| panic!("from {first:?} to {other:?}: {error:#}"));
    volume.stop();
    volume.fsck();
}

#[test]
fn a_plain_mount_goes_to_the_next_release_and_back() {
    hung_up(Release::This, Release::Next);
}

#[test]
fn a_plain_mount_of_the_next_release_goes_back_to_this_one_and_on() {
    hung_up(Release::Next, Release::This);
}

#[test]
fn a_plain_mount_goes_to_a_release_that_writes_a_new_format_and_back() {
    hung_up(Release::Next, Release::AfterNext);
}

#[test]
fn a_plain_mount_of_a_release_that_writes_a_new_format_goes_back_to_the_one_before_it_and_on() {
    hung_up(Release::AfterNext, Release::Next);
}
