//! The end of a run: everything is compared, given back and checked, and nothing may be left.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::{Context, Result};
use serde::Serialize;

use super::{
    client::Client,
    run::{Ground, LIMIT},
};

/// How long a step that is under way may take; everything of a client's own is compared within it.
const STEP: Duration = Duration::from_secs(180);
/// A probation, and what follows a roll-back.
const UPGRADE: Duration = Duration::from_secs(30);
/// A second mounter of each tenant may be there at one end and not at the other, and calls may be under way.
const SPARE_DESCRIPTORS: usize = 12;

/// Something that has to hold at the end.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What.
    pub what: String,
    /// Why it does not; `None` where it does.
    pub fault: Option<String>,
}

/// The descriptors of agent and keeper.
#[derive(Clone, Debug)]
pub(super) struct Descriptors {
    agent: BTreeMap<String, usize>,
    keeper: BTreeMap<String, usize>,
}

impl Descriptors {
    /// Counts them when every tenant is served.
    pub(super) fn settled(ground: &mut Ground) -> Result<Self> {
        for tenant in &ground.tenants {
            ground.node.mounter_pid(&tenant.volume.id)?;
        }
        let agent = ground.node.agent_pid().context("an agent")?;
        let keeper = ground.node.keeper_pid().context("a keeper")?;
        // A stand-by belongs to the usual state.
        ground.until("a stand-by of each tenant", LIMIT, |ground| {
            let both = |id: &str| ground.node.mounters(id).len() == 2;
            ground.tenants.iter().all(|tenant| both(&tenant.volume.id)).then_some(())
        })?;
        Ok(Self { agent: descriptors(agent), keeper: descriptors(keeper) })
    }

    fn grown(&self, before: &Self) -> Option<String> {
        let sum = |of: &BTreeMap<String, usize>| of.values().sum::<usize>();
        let grown = |now, before| sum(now) > sum(before) + SPARE_DESCRIPTORS;
        let agent = grown(&self.agent, &before.agent)
            .then(|| format!("agent: {:?}, before {:?}", self.agent, before.agent));
        let keeper = grown(&self.keeper, &before.keeper)
            .then(|| format!("keeper: {:?}, before {:?}", self.keeper, before.keeper));
        agent.or(keeper)
    }
}

/// Open descriptors by what they are: the name without its number.
fn descriptors(pid: u32) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
        let target = fs::read_link(entry.path()).unwrap_or_default().display().to_string();
        let kind = target.split_once(":[").map_or(&*target, |(kind, _)| kind).to_owned();
        *found.entry(kind).or_default() += 1;
    }
    found
}

/// Ends everything, in order; what does not hold is told in the checks.
///
/// # Errors
/// If the run is interrupted.
pub(super) fn end(ground: &mut Ground, before: &Descriptors) -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    let mut check = |what: &str, outcome: Result<()>| -> Result<()> {
        eprintln!(
            "{what}: {}",
            outcome.as_ref().err().map_or("yes".to_owned(), |error| format!("{error:#}"))
        );
        let fault = outcome.err().map(|error| format!("{error:#}"));
        if fault.as_deref().is_some_and(|fault| fault.contains("interrupted")) {
            anyhow::bail!("interrupted");
        }
        checks.push(Check { what: what.to_owned(), fault });
        Ok(())
    };
    end_upgrades(ground)?;
    check("every client stops", asked(ground, Client::stop, |client| client.answers().0 >= 1))?;
    check("contents equal the models", asked(ground, Client::verify, |client| client.answers().1 >= 1))?;
    let after = Descriptors::settled(ground);
    check(
        "descriptors of agent and keeper have not grown",
        after.and_then(|after| after.grown(before).map_or(Ok(()), |text| Err(anyhow::Error::msg(text)))),
    )?;
    check("unpublished and unstaged", away(ground))?;
    check("nothing is left of the volumes", nothing_left(ground))?;
    check("tarbox fsck is clean", fsck(ground))?;
    check("staged and published again", back(ground))?;
    check(
        "contents from the database equal the models",
        asked(ground, Client::verify, |client| client.answers().1 >= 2),
    )?;
    check("unpublished and unstaged again", away(ground))?;
    check("nothing is left of the volumes again", nothing_left(ground))?;
    check("agent and keeper end, nothing is left", all_ended(ground))?;
    Ok(checks)
}

fn end_upgrades(ground: &mut Ground) -> Result<()> {
    let ended = ground.until("the end of upgrades", UPGRADE, |ground| {
        ground.reap_upgrades();
        ground.upgrades.is_empty().then_some(())
    });
    // Where one was cut off by an agent's death, its caller may be left.
    for (_, mut child) in std::mem::take(&mut ground.upgrades) {
        let _ = child.kill();
        let _ = child.wait();
        ground.upgraded.1 += 1;
    }
    ended.or_else(|error| if format!("{error:#}").contains("interrupted") { Err(error) } else { Ok(()) })
}

/// Has every client that is not lost do something, and waits until each has.
fn asked(ground: &mut Ground, order: impl Fn(&mut Client), is_done: impl Fn(&Client) -> bool) -> Result<()> {
    ground.clients.iter_mut().filter(|client| !client.is_lost()).for_each(order);
    let all = ground.until("every client", STEP, |ground| {
        ground.clients.iter().all(|client| client.is_lost() || is_done(client)).then_some(())
    });
    let names = |found: &dyn Fn(&Client) -> bool| -> Vec<String> {
        ground.clients.iter().filter(|client| found(client)).map(Client::name).collect()
    };
    all.with_context(|| format!("not done: {:?}", names(&|client| !client.is_lost() && !is_done(client))))?;
    let lost = names(&Client::is_lost);
    anyhow::ensure!(lost.is_empty(), "lost: {lost:?}");
    Ok(())
}

fn away(ground: &mut Ground) -> Result<()> {
    for tenant in &ground.tenants {
        ground.node.call("unpublish", &tenant.volume.words())?;
        ground.node.call("unstage", &tenant.volume.words())?;
    }
    Ok(())
}

fn back(ground: &mut Ground) -> Result<()> {
    for tenant in &ground.tenants {
        ground.node.call("stage", &tenant.volume.words())?;
        ground.node.call("publish", &tenant.volume.words())?;
    }
    Ok(())
}

fn fsck(ground: &mut Ground) -> Result<()> {
    ground.tenants.iter().try_for_each(|tenant| ground.node.fsck(&tenant.name).map(drop))
}

fn nothing_left(ground: &mut Ground) -> Result<()> {
    let mut found = Vec::new();
    let gone = ground.until("nothing left", LIMIT, |ground| {
        found = ground.node.left_over();
        found.is_empty().then_some(())
    });
    gone.with_context(|| format!("{found:#?}"))
}

fn all_ended(ground: &mut Ground) -> Result<()> {
    ground.node.end_agent()?;
    let mut found = Vec::new();
    let gone = ground.until("no process", LIMIT, |ground| {
        found = ground.node.processes();
        found.retain(|(_, line)| line.contains("tarbox-keeper") || line.contains("tarbox-mount"));
        found.is_empty().then_some(())
    });
    gone.with_context(|| format!("{found:?}"))
}
