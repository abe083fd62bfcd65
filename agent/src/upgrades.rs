//! Replacing mounters by another build: one first, then a few at a time, none after a failure.

use std::{sync::Arc, time::Duration};

use tarbox_supervisor::{Build, NodeOrder, State, Upgrades};
use tarbox_types::TenantId;
use tokio::task::JoinSet;

use crate::{
    failure::AgentError,
    node::Node,
    tenant::{Command, Snapshot, blocking},
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
    let mut upgrades = Upgrades::new(build, chosen.iter().map(|outcome| outcome.tenant));
    let mut running = JoinSet::new();
    let mut orders = upgrades.next(&node.policy);
    loop {
        for order in orders.drain(..) {
            if let NodeOrder::Upgrade { tenant, build } = order {
                let node = node.clone();
                running.spawn(async move { one(&node, tenant, build).await });
            }
        }
        let Some(done) = running.join_next().await else { break };
        let Ok(outcome) = done else { continue };
        orders = if outcome.is_upgraded {
            upgrades.upgraded(&node.policy, outcome.tenant)
        } else {
            upgrades.failed_at(outcome.tenant, outcome.reason.clone())
        };
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

async fn one(node: &Arc<Node>, tenant: TenantId, build: Build) -> Outcome {
    let outcome =
        |is_upgraded, reason: &str, pause| Outcome { tenant, is_upgraded, reason: reason.to_owned(), pause };
    let Some(handle) = node.tenant(tenant) else { return outcome(false, "it was unstaged", None) };
    let mut snapshot = handle.snapshot;
    let before = snapshot.borrow().upgrades;
    if let Err(error) = node.command(tenant, Command::Upgrade(build.clone())) {
        return outcome(false, &error.report(), None);
    }
    let is_done = |seen: &Snapshot| seen.upgrades > before || seen.is_gone();
    let seen = tokio::time::timeout(DONE_WITHIN, snapshot.wait_for(is_done)).await;
    match seen {
        Ok(Ok(seen)) => match &seen.upgrade {
            Some(done) if done.fault.is_none() => {
                let reason = format!("it runs {} now", done.build.0);
                outcome(true, &reason, seen.last_pause)
            }
            Some(done) => outcome(false, done.fault.as_deref().unwrap_or_default(), seen.last_pause),
            None => outcome(false, "it was unstaged", None),
        },
        Ok(Err(_)) => outcome(false, "it was unstaged", None),
        Err(_) => outcome(false, &format!("not decided within {DONE_WITHIN:?}; it goes on"), None),
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
