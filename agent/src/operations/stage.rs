//! Staging: the tenant is mounted, and a mounter serves it. Unstaging: nothing of it is left.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tarbox_rpc::csi::parameters::{self, Parameters};
use tarbox_types::TenantId;

use super::{inline::within, publish::refuse_anothers, wait_until};
use crate::{
    csi::request::{Leave, Stage},
    failure::AgentError,
    node::Node,
    tenant::{Command, Handle, Snapshot, blocking, clear_stale, compose, is_shown, table},
};

/// How long a stage that failed may take to be undone before its failure is answered.
const UNDO_WITHIN: Duration = Duration::from_secs(10);

/// Returns when the tenant is served, or with the reason why it cannot be.
///
/// # Errors
/// The mounter's own last words; [`AgentError::Unfinished`] where the time does not suffice: it goes on then.
pub(crate) async fn stage(node: &Arc<Node>, mut request: Stage, limit: Duration) -> Result<(), AgentError> {
    let tenant = request.tenant;
    super::check_attached(node, tenant, request.attached_to.as_deref())?;
    refuse_anothers(node, tenant, &request.staging_path)?;
    let deadline = Instant::now() + limit;
    let (allowed, native) = (node.settings.native_sources.clone(), request.native.clone());
    blocking(move || Ok(tarbox_native::check(&allowed, &native)?)).await?;
    let (begun, has_to_mount) = (Instant::now(), node.staged_as(tenant).is_none());
    if has_to_mount && request.inline.is_none() {
        request.changed = changed(node, &request, limit).await?;
    }
    let Handle { mut snapshot, .. } = node.begin_stage(request, limit).await?;
    let settled = wait_until(&mut snapshot, limit, |seen| seen.is_serving() || seen.refusal.is_some()).await;
    match settled {
        Some(Some(seen)) if seen.is_serving() => {
            if has_to_mount {
                node.numbers.mounting.observe(begun.elapsed().as_secs_f64());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            show_native(node, &seen, left, &mut snapshot).await
        }
        Some(Some(seen)) => Err(undo(node, tenant, seen, &mut snapshot).await),
        Some(None) => Err(crate::node::ending()),
        None => Err(unfinished(tenant, "staging", &snapshot.borrow())),
    }
}

/// What the volume's parameters say by now, other than when it was made: its context says what they were then.
async fn changed(node: &Node, request: &Stage, limit: Duration) -> Result<Parameters, AgentError> {
    let url = node.database_of(request)?;
    let asked = async { node.databases.at(url).await?.volume(request.tenant).await };
    let record = within(limit, url, asked).await?;
    let said = record.map(|record| record.mutable_parameters()).unwrap_or_default();
    Ok(parameters::read(&said.into_iter().collect(), &HashMap::new())?)
}

/// Mounts the tenant's native mounts. Where that is refused, a tenant that nobody uses yet is not left staged without them.
async fn show_native(
    node: &Arc<Node>,
    seen: &Snapshot,
    limit: Duration,
    snapshot: &mut tokio::sync::watch::Receiver<Snapshot>,
) -> Result<(), AgentError> {
    let Err(error) = compose(node, &seen.staged, limit).await else { return Ok(()) };
    let is_refused = !matches!(error, AgentError::Unfinished { .. });
    if is_refused && seen.staged.published.is_empty() {
        node.command(seen.staged.tenant, Command::Unstage)?;
        wait_until(snapshot, UNDO_WITHIN, Snapshot::is_gone).await;
    }
    Err(error)
}

/// What cannot be staged leaves nothing behind.
async fn undo(
    node: &Arc<Node>,
    tenant: TenantId,
    seen: Snapshot,
    snapshot: &mut tokio::sync::watch::Receiver<Snapshot>,
) -> AgentError {
    if let Err(error) = node.command(tenant, Command::Unstage) {
        return error;
    }
    if wait_until(snapshot, UNDO_WITHIN, Snapshot::is_gone).await.is_some() {
        node.log_out(&seen.staged).await;
    }
    let (kind, message) = seen.refusal.unwrap_or((tarbox_types::ErrorKind::Internal, String::new()));
    AgentError::Mounter { tenant, kind, message }
}

fn unfinished(tenant: TenantId, what: &'static str, seen: &Snapshot) -> AgentError {
    let trouble = seen.trouble();
    let last = seen.record.last_words.clone().filter(|words| !trouble.contains(words.as_str()));
    let why = match (trouble.is_empty(), last) {
        (true, None) => "it takes longer than the caller waits".to_owned(),
        (true, Some(words)) => words,
        (false, None) => trouble,
        (false, Some(words)) => format!("{trouble}; the last mounter said: {words}"),
    };
    AgentError::Unfinished { tenant, what, why }
}

/// Returns when everything is committed, the tenant unmounted and its mounter gone.
///
/// # Errors
/// While it is published; [`AgentError::Unfinished`] where the time does not suffice.
pub(crate) async fn unstage(node: &Arc<Node>, request: Leave, limit: Duration) -> Result<(), AgentError> {
    let tenant = request.volume.and_then(|volume| node.tenant_of(&volume));
    let staged = tenant.and_then(|tenant| Some((tenant, node.tenant(tenant)?)));
    let left_behind = || match node.who_has(&request.path) {
        None => clear_stale(&request.path),
        // Another volume's.
        Some(_) => Ok(()),
    };
    let Some((tenant, Handle { mut snapshot, .. })) = staged else { return left_behind() };
    let seen = snapshot.borrow().clone();
    if seen.staged.staging_path != request.path {
        return left_behind();
    }
    refuse_while_published(&seen)?;
    node.command(tenant, Command::Unstage)?;
    match wait_until(&mut snapshot, limit, Snapshot::is_gone).await {
        // A task that is over has left nothing.
        Some(_) => {
            node.log_out(&seen.staged).await;
            Ok(())
        }
        None => Err(unfinished(tenant, "unstaging", &snapshot.borrow())),
    }
}

fn refuse_while_published(seen: &Snapshot) -> Result<(), AgentError> {
    let mounts = table()?;
    // Whatever has become of the staging path: where it was published, and a file system of ours is, it is in use.
    match seen.staged.published.keys().find(|target| is_shown(&mounts, target)) {
        None => Ok(()),
        Some(target) => Err(AgentError::Precondition(format!(
            "the volume {} is still published at {}",
            seen.staged.tenant,
            target.display()
        ))),
    }
}
