//! Publishing: a staged tenant is seen at a pod's path. Unpublishing: it is not, and all is committed.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::mount::{MntFlags, umount2};
use tarbox_rpc::csi::request::VolumeRef;
use tarbox_supervisor::{Condition, State};
use tarbox_types::{ErrorKind, TenantId};
use tokio::sync::oneshot;

use super::inline;
use crate::{
    csi::request::{Leave, Publish},
    failure::AgentError,
    node::{Node, ending},
    tenant::{
        Command, Place, Publication, Snapshot, bind, blocking, compose, give_group, is_shown, mounter_dir,
        place, pods, resolve, table, unbind,
    },
};

/// Shows a staged tenant at the target.
///
/// # Errors
/// Where it is not staged there, or something else is at the target.
pub(crate) async fn publish(node: &Arc<Node>, request: Publish, limit: Duration) -> Result<(), AgentError> {
    let Publish { tenant, attached_to, staging_path, target_path, alone, wish, pod } = request;
    super::check_attached(node, tenant, attached_to.as_deref())?;
    let seen = staged(node, tenant, &staging_path)?;
    let mounts = table()?;
    // One that was noted, and then could not be mounted, keeps nobody out.
    let is_elsewhere = |other: &&PathBuf| **other != target_path && is_shown(&mounts, other);
    if let Some(other) = seen.staged.published.keys().filter(|_| alone).find(is_elsewhere) {
        return Err(AgentError::Precondition(format!(
            "the volume {tenant} is for one place at a time (SINGLE_NODE_SINGLE_WRITER), and is published at {}",
            other.display()
        )));
    }
    if let Some(pod) = pod {
        let directory = mounter_dir(&node.settings.run_dir, tenant);
        let noted = blocking(move || {
            pods::note(&directory, &pod).map_err(AgentError::io("note the pod in", &directory))
        });
        noted.await?;
    }
    let staging = resolve(&staging_path).map_err(AgentError::io("resolve", &staging_path))?;
    let target = resolve(&target_path).map_err(|_| {
        AgentError::Precondition(format!("the directory of {} is not there", target_path.display()))
    })?;
    refuse_anothers(node, tenant, &target_path)?;
    let device = mounts.top(&staging).filter(|mount| mount.is_tarbox()).map(|mount| mount.device.clone());
    let device = device.ok_or_else(|| not_staged(tenant, &staging_path))?;
    match place(&mounts, &device, &target) {
        Place::Free => {}
        Place::Ours { .. }
            if seen.staged.published.get(&target_path).is_some_and(|there| there.wish != wish) =>
        {
            return Err(AgentError::Conflict(format!(
                "the volume {tenant} is published at {} already, with other options",
                target.display()
            )));
        }
        // Cut off between the two steps of a bind mount: it has not got its options yet.
        Place::Ours { read_only } if read_only != (wish.read_only || seen.staged.wish.many_readers) => {
            take_away(target.clone()).await?;
        }
        Place::Ours { .. } => return note(node, tenant, target_path, Publication { wish }).await,
        Place::Stale => take_away(target.clone()).await?,
        Place::Foreign { fs_type } => {
            return Err(AgentError::Precondition(format!(
                "somebody else has mounted a {fs_type} at {}",
                target.display()
            )));
        }
    }
    note(node, tenant, target_path, Publication { wish: wish.clone() }).await?;
    // They went with a mount that was lost since.
    compose(node, &seen.staged, limit).await?;
    if let Some(group) = wish.group.filter(|_| !seen.staged.wish.many_readers) {
        let root = staging.clone();
        let given = blocking(move || {
            give_group(&root, group).map_err(AgentError::io(&format!("give to the group {group}"), &root))
        });
        let why = "the tenant is walked through for `volume_mount_group`".to_owned();
        let late = |_| Err(AgentError::Unfinished { tenant, what: "publishing", why });
        tokio::time::timeout(limit, given).await.unwrap_or_else(late)?;
    }
    blocking(move || bind(&staging, &target, &wish)).await
}

/// Whatever is mounted at the path of another volume is not to be cleared away for this one.
pub(super) fn refuse_anothers(node: &Node, tenant: TenantId, path: &Path) -> Result<(), AgentError> {
    match node.who_has(path).filter(|other| *other != tenant) {
        None => Ok(()),
        Some(other) => {
            Err(AgentError::Precondition(format!("the volume {other} is mounted at {}", path.display())))
        }
    }
}

/// The tenant, if it is staged at the path and has been served.
fn staged(node: &Node, tenant: TenantId, staging_path: &Path) -> Result<Snapshot, AgentError> {
    let seen = node.tenant(tenant).map(|handle| handle.snapshot.borrow().clone());
    seen.filter(|seen| seen.staged.staging_path == staging_path)
        .filter(|seen| seen.record.served && seen.record.wanted.is_some())
        .ok_or_else(|| not_staged(tenant, staging_path))
}

fn not_staged(tenant: TenantId, staging_path: &Path) -> AgentError {
    AgentError::Precondition(format!("the volume {tenant} is not staged at {}", staging_path.display()))
}

async fn note(
    node: &Arc<Node>,
    tenant: TenantId,
    target: PathBuf,
    publication: Publication,
) -> Result<(), AgentError> {
    let (reply, answer) = oneshot::channel();
    node.command(tenant, Command::Publish { target, publication, reply })?;
    answer.await.unwrap_or_else(|_| Err(ending()))
}

async fn take_away(target: PathBuf) -> Result<(), AgentError> {
    blocking(move || {
        umount2(&target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
            .map_err(|errno| AgentError::io("unmount", &target)(errno.into()))
    })
    .await
}

/// Takes the tenant away from the target, once all that was acknowledged is committed. A volume that the pod asked for itself ends with it.
///
/// # Errors
/// Where that cannot be done in time: it stays published then, and the call can be repeated.
pub(crate) async fn unpublish(node: &Arc<Node>, request: Leave, limit: Duration) -> Result<(), AgentError> {
    let tenant = request.volume.as_ref().and_then(|volume| node.tenant_of(volume));
    let deadline = Instant::now() + limit;
    withdraw(node, tenant, request.path, limit).await?;
    match (tenant, request.volume) {
        (Some(tenant), Some(VolumeRef::Inline(_))) => {
            inline::end(node, tenant, deadline.saturating_duration_since(Instant::now())).await
        }
        _ => Ok(()),
    }
}

pub(super) async fn withdraw(
    node: &Arc<Node>,
    tenant: Option<TenantId>,
    path: PathBuf,
    limit: Duration,
) -> Result<(), AgentError> {
    // What another volume has there is none of this one's.
    if node.who_has(&path).is_some_and(|other| Some(other) != tenant) {
        return Ok(());
    }
    let known = tenant.and_then(|tenant| Some((tenant, node.tenant(tenant)?)));
    // Without the directory above it there is nothing at the target; that it was published is forgotten all the same.
    if let Ok(target) = resolve(&path) {
        let top = table()?.top(&target).cloned();
        if top.as_ref().is_some_and(|mount| !mount.is_tarbox()) {
            return Err(AgentError::Precondition(format!(
                "something that is not ours is mounted at {}: unmount it first",
                target.display()
            )));
        }
        if let (Some((tenant, handle)), Some(_)) = (&known, top) {
            let seen = handle.snapshot.borrow().clone();
            barrier(node, *tenant, &seen, limit).await?;
        }
        blocking(move || unbind(&target)).await?;
    }
    let Some((tenant, _)) = known else { return Ok(()) };
    let (reply, answer) = oneshot::channel();
    if node.command(tenant, Command::Unpublished { target: path, reply })? {
        return answer.await.unwrap_or_else(|_| Err(ending()));
    }
    Ok(())
}

/// Commits everything. Where no mounter can be kept running, or where the database refuses it for good, nobody can: the journal keeps it.
async fn barrier(
    node: &Arc<Node>,
    tenant: TenantId,
    seen: &Snapshot,
    limit: Duration,
) -> Result<(), AgentError> {
    // An agent that has just begun may not have looked at what it takes up yet: that is served.
    let is_absent = matches!(seen.record.state, State::Absent | State::Gone);
    let has_nobody = matches!(seen.condition, Condition::Broken { .. })
        || is_absent && matches!(seen.condition, Condition::Absent);
    if seen.staged.wish.many_readers || has_nobody {
        return Ok(());
    }
    let deadline = tokio::time::Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        match node.control(tenant).flush(left).await {
            Ok(sequence) => {
                tracing::debug!(%tenant, sequence, "committed before unpublishing");
                return Ok(());
            }
            // Another node has the tenant, or it is no more: a pod that waits for this would never end.
            Err(error) if error.kind() == ErrorKind::Fenced => {
                tracing::error!(%tenant, error = error.report(), "unpublished without what could not be committed");
                return Ok(());
            }
            // Between two mounters there is nobody to ask: the next one answers.
            Err(_) if left > AGAIN => tokio::time::sleep(AGAIN).await,
            Err(error) => return Err(error),
        }
    }
}

/// How soon a flush is asked for again that nobody answered.
const AGAIN: Duration = Duration::from_millis(50);
