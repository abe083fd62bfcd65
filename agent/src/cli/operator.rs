//! What an operator asks the running agent.

use std::time::Duration;

use serde::Serialize;
use tarbox_proto::agent::v1::{
    DrainRequest, ListRequest, ListResponse, Tenant, UpgradeRequest, agent_client::AgentClient,
};
use tarbox_rpc::Refusal;
use tarbox_types::{ByteSize, ErrorKind};
use tonic::{Response, Status, transport::Channel};

use super::{
    AskCommand,
    output::{Table, show},
};
use crate::{failure::AgentError, settings::agent_socket};

/// What is only looked up is there at once.
pub(super) const LOOKS_WITHIN: Duration = Duration::from_secs(10);
/// Everything is committed, of many tenants, to a database that may be slow.
const DRAINS_WITHIN: Duration = Duration::from_secs(600);
/// An upgrade of many tenants takes its time; it says what became of each.
const UPGRADES_WITHIN: Duration = Duration::from_secs(3600);

pub(super) async fn connect(ask: &AskCommand, limit: Duration) -> Result<AgentClient<Channel>, AgentError> {
    let socket = agent_socket(&ask.state_dir);
    let channel = tarbox_rpc::connect(&socket, limit).await.map_err(|error| {
        AgentError::Precondition(format!(
            "no agent answers at {}: {error}; --state-dir names the directory of another one",
            socket.display()
        ))
    })?;
    Ok(AgentClient::new(channel))
}

fn answer<T>(answer: Result<Response<T>, Status>) -> Result<T, AgentError> {
    answer.map(Response::into_inner).map_err(|status| {
        let refusal = Refusal::from(status);
        match refusal.kind() {
            ErrorKind::NotFound => AgentError::NotFound(refusal.to_string()),
            _ => AgentError::Precondition(refusal.to_string()),
        }
    })
}

fn tenant(ask: &AskCommand) -> String {
    ask.tenant.clone().unwrap_or_default()
}

// === ps ===

#[derive(Debug, Serialize)]
struct Node {
    agent_version: String,
    agent_pid: u32,
    launcher: String,
    launcher_proof: String,
    tenants: Vec<TenantView>,
}

#[derive(Debug, Serialize)]
struct TenantView {
    tenant_id: String,
    phase: String,
    pid: Option<u32>,
    version: String,
    build: String,
    wanted_build: String,
    restarts: u64,
    hand_overs: u64,
    last_pause_ms: Option<f64>,
    longest_pause_ms: Option<f64>,
    resident_bytes: u64,
    memory_limit_bytes: u64,
    staging_path: String,
    published: Vec<String>,
    condition: String,
}

fn millis(micros: u64) -> Option<f64> {
    (micros > 0).then_some(micros as f64 / 1000.0)
}

fn view(tenant: Tenant) -> TenantView {
    TenantView {
        tenant_id: tenant.tenant_id,
        phase: tenant.phase,
        pid: (tenant.pid != 0).then_some(tenant.pid),
        version: tenant.version,
        build: tenant.build,
        wanted_build: tenant.wanted_build,
        restarts: tenant.restarts,
        hand_overs: tenant.hand_overs,
        last_pause_ms: millis(tenant.last_pause_micros),
        longest_pause_ms: millis(tenant.longest_pause_micros),
        resident_bytes: tenant.resident_bytes,
        memory_limit_bytes: tenant.memory_limit_bytes,
        staging_path: tenant.staging_path,
        published: tenant.published,
        condition: tenant.condition,
    }
}

fn table(node: &Node) -> Table {
    let mut table = Table::new(&[
        "TENANT",
        "PHASE",
        "PID",
        "VERSION",
        "BUILD",
        "RESTARTS",
        "HAND-OVERS",
        "LAST PAUSE",
        "MEMORY",
        "AT",
        "CONDITION",
    ]);
    for tenant in &node.tenants {
        let is_old = !tenant.build.is_empty() && tenant.build != tenant.wanted_build;
        table.row(vec![
            tenant.tenant_id.clone(),
            tenant.phase.clone(),
            tenant.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            tenant.version.clone(),
            format!("{}{}", tenant.build, if is_old { " (old)" } else { "" }),
            tenant.restarts.to_string(),
            tenant.hand_overs.to_string(),
            tenant.last_pause_ms.map_or_else(|| "-".to_owned(), |pause| format!("{pause:.1} ms")),
            format!("{} MiB", tenant.resident_bytes >> 20),
            tenant.published.first().unwrap_or(&tenant.staging_path).clone(),
            tenant.condition.clone(),
        ]);
    }
    table
}

pub(super) async fn ps(ask: AskCommand) -> Result<bool, AgentError> {
    let found: ListResponse =
        answer(connect(&ask, LOOKS_WITHIN).await?.list(ListRequest { tenant_id: tenant(&ask) }).await)?;
    let node = Node {
        agent_version: found.agent_version,
        agent_pid: found.agent_pid,
        launcher: found.launcher,
        launcher_proof: found.launcher_proof,
        tenants: found.tenants.into_iter().map(view).collect(),
    };
    show(ask.output, &node, table)?;
    Ok(true)
}

// === upgrade, drain ===

#[derive(Debug, Serialize)]
struct Outcome {
    tenant_id: String,
    done: bool,
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pause_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    committed_sequence: Option<u64>,
}

fn print(ask: &AskCommand, outcomes: &Vec<Outcome>) -> Result<(), AgentError> {
    show(ask.output, outcomes, |outcomes| {
        let mut table = Table::new(&["TENANT", "DONE", "PAUSE", "WHY"]);
        for outcome in outcomes {
            table.row(vec![
                outcome.tenant_id.clone(),
                if outcome.done { "yes" } else { "no" }.to_owned(),
                outcome.pause_ms.map_or_else(|| "-".to_owned(), |pause| format!("{pause:.1} ms")),
                outcome.reason.clone(),
            ]);
        }
        table
    })
}

/// Whether none was left that should have been replaced.
pub(super) async fn upgrade(ask: AskCommand, dry_run: bool) -> Result<bool, AgentError> {
    let mut agent = connect(&ask, UPGRADES_WITHIN).await?;
    let planned = answer(agent.upgrade(UpgradeRequest { tenant_id: tenant(&ask), dry_run: true }).await)?;
    let wanted = planned.outcomes.iter().filter(|outcome| outcome.upgraded).count();
    let done = match dry_run {
        true => planned,
        false => answer(agent.upgrade(UpgradeRequest { tenant_id: tenant(&ask), dry_run }).await)?,
    };
    let replaced = done.outcomes.iter().filter(|outcome| outcome.upgraded).count();
    let outcomes: Vec<Outcome> = done
        .outcomes
        .into_iter()
        .map(|outcome| Outcome {
            tenant_id: outcome.tenant_id,
            done: outcome.upgraded,
            reason: outcome.reason,
            pause_ms: millis(outcome.pause_micros),
            committed_sequence: None,
        })
        .collect();
    print(&ask, &outcomes)?;
    Ok(replaced >= wanted)
}

pub(super) async fn drain(ask: AskCommand) -> Result<bool, AgentError> {
    let done =
        answer(connect(&ask, DRAINS_WITHIN).await?.drain(DrainRequest { tenant_id: tenant(&ask) }).await)?;
    let outcomes: Vec<Outcome> = done
        .outcomes
        .into_iter()
        .map(|outcome| Outcome {
            tenant_id: outcome.tenant_id,
            done: outcome.drained,
            reason: outcome.reason,
            pause_ms: None,
            committed_sequence: outcome.drained.then_some(outcome.committed_sequence),
        })
        .collect();
    print(&ask, &outcomes)?;
    Ok(outcomes.iter().all(|outcome| outcome.done))
}

/// Free space, as people read it.
pub(super) fn size(bytes: u64) -> String {
    ByteSize(bytes >> 20 << 20).to_string()
}
