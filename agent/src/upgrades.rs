//! Replacing mounters by another build: one first, then a few at a time, none after a failure.

use std::{sync::Arc, time::Duration};

use tarbox_supervisor::{Build, State, Upgrades};
use tarbox_types::TenantId;
use tokio::task::JoinSet;

use crate::{
    failure::AgentError,
    node::Node,
    tenant::{Command, Handle, Snapshot, UpgradeOutcome, blocking},
};

/// Longest that one hand-over may take, its probation and a roll-back included.
const DONE_WITHIN: Duration = Duration::from_secs(90);

/// What became of one tenant's upgrade.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) tenant: TenantId,
    pub(crate) is_upgraded: bool,
    pub(crate) reason: String,
    pub(crate) pause: Option<Duration>,
}

/// The build that a mounter would be started from now.
///
/// # Errors
/// Where the executable cannot be read.
pub(crate) async fn wanted(node: &Arc<Node>) -> Result<Build, AgentError> {
    let node = node.clone();
    blocking(move || node.builds.install(&node.settings.mounter)).await
}

/// Whether a tenant can be given the build, and why. Pure.
pub(crate) fn verdict(seen: &Snapshot, build: &Build) -> (bool, String) {
    let runs = seen.record.server.as_ref().map(|server| &server.build);
    match (&seen.record.state, runs) {
        (State::Serving { .. }, Some(runs)) if runs == build => {
            (false, "it runs this build already".to_owned())
        }
        (State::Serving { .. }, Some(runs)) => (true, format!("it runs {}", runs.0)),
        (State::Broken { .. }, _) => (true, "no mounter can be kept running: another build may".to_owned()),
        (State::Upgrading { to, .. }, _) => (false, format!("it is being replaced by {} already", to.0)),
        (State::Stopping { .. } | State::Gone | State::Absent, _) => {
            (false, "it is being unstaged".to_owned())
        }
        (State::Starting { .. } | State::Restarting { .. }, _) | (State::Serving { .. }, None) => {
            (false, format!("no mounter serves now: {}", seen.trouble()))
        }
    }
}

/// Says what [`upgrade`] would do.
pub(crate) fn plan(node: &Node, only: Option<TenantId>, build: &Build) -> Vec<Outcome> {
    let chosen = node.all().into_iter().filter(|(tenant, _)| only.is_none_or(|only| only == *tenant));
    chosen
        .map(|(tenant, handle)| {
            let (is_upgraded, reason) = verdict(&handle.snapshot.borrow(), build);
            Outcome { tenant, is_upgraded, reason, pause: None }
        })
        .collect()
}

/// Replaces the mounters of one tenant or of all, and returns when each was replaced, was rolled back, or was left alone.
pub(crate) async fn upgrade(node: &Arc<Node>, only: Option<TenantId>, build: Build) -> Vec<Outcome> {
    let planned = plan(node, only, &build);
    let (chosen, mut outcomes): (Vec<_>, Vec<_>) =
        planned.into_iter().partition(|outcome| outcome.is_upgraded);
    let is_broken = |tenant: &TenantId| {
        node.tenant(*tenant)
            .is_some_and(|handle| matches!(handle.snapshot.borrow().record.state, State::Broken { .. }))
    };
    let (broken, served): (Vec<_>, Vec<_>) = chosen.iter().map(|outcome| outcome.tenant).partition(is_broken);
    let mut upgrades = Upgrades::new(served, broken);
    let mut running = JoinSet::new();
    loop {
        for tenant in upgrades.next(&node.policy) {
            let (node, build) = (node.clone(), build.clone());
            running.spawn(async move { one(&node, tenant, build).await });
        }
        let Some(done) = running.join_next().await else { break };
        let Ok((verdict, outcome)) = done else { continue };
        match verdict {
            Verdict::Upgraded => upgrades.upgraded(outcome.tenant),
            Verdict::Failed => upgrades.failed_at(outcome.tenant),
            Verdict::Withdrawn => upgrades.withdrawn(outcome.tenant),
        }
        outcomes.push(outcome);
    }
    let left = upgrades.waiting().map(|tenant| Outcome {
        tenant,
        is_upgraded: false,
        reason: "not begun: another tenant's upgrade failed".to_owned(),
        pause: None,
    });
    outcomes.extend(left);
    outcomes
}

/// What a tenant's upgrade says about the build.
enum Verdict {
    /// It serves.
    Upgraded,
    /// It does not.
    Failed,
    /// Nothing: the tenant was unstaged meanwhile.
    Withdrawn,
}

async fn one(node: &Arc<Node>, tenant: TenantId, build: Build) -> (Verdict, Outcome) {
    let outcome = |verdict, reason: String, pause| {
        let is_upgraded = matches!(verdict, Verdict::Upgraded);
        (verdict, Outcome { tenant, is_upgraded, reason, pause })
    };
    let unstaged = || outcome(Verdict::Withdrawn, "it was unstaged".to_owned(), None);
    let Some(Handle { mut snapshot, .. }) = node.tenant(tenant) else { return unstaged() };
    let before = snapshot.borrow().upgrades;
    match node.command(tenant, Command::Upgrade(build)) {
        Ok(true) => {}
        Ok(false) => return unstaged(),
        Err(error) => return outcome(Verdict::Failed, error.report(), None),
    }
    let is_done = |seen: &Snapshot| seen.upgrades > before || seen.is_gone();
    let seen = match tokio::time::timeout(DONE_WITHIN, snapshot.wait_for(is_done)).await {
        Ok(Ok(seen)) => seen.clone(),
        Ok(Err(_)) => return unstaged(),
        Err(_) => {
            let reason = format!("not decided within {DONE_WITHIN:?}; it goes on");
            return outcome(Verdict::Failed, reason, None);
        }
    };
    match seen.upgrade.filter(|_| seen.upgrades > before) {
        None => unstaged(),
        Some(UpgradeOutcome { build, fault: None }) => {
            outcome(Verdict::Upgraded, format!("it runs {} now", build.0), seen.last_pause)
        }
        Some(UpgradeOutcome { fault: Some(fault), .. }) => outcome(Verdict::Failed, fault, seen.last_pause),
    }
}

/// A new agent brings its own mounter: tenants that run another one are given it, as soon as they serve.
pub(crate) async fn after_start(node: Arc<Node>) {
    let serving = |seen: &Snapshot| seen.is_serving() || seen.is_gone();
    for (_, handle) in node.all() {
        let mut snapshot = handle.snapshot;
        let _ = tokio::time::timeout(DONE_WITHIN, snapshot.wait_for(serving)).await;
    }
    match wanted(&node).await {
        Ok(build) => {
            for outcome in upgrade(&node, None, build).await {
                let Outcome { tenant, is_upgraded, reason, .. } = outcome;
                tracing::info!(%tenant, is_upgraded, reason, "upgrade after the agent's start");
            }
        }
        Err(error) => tracing::warn!(error = error.report(), "the mounter's executable cannot be read"),
    }
}
