//! Volumes that pods ask for themselves: made, staged and published in one call, ended and deleted in one.
//!
//! What is noted in the database is made first, and what is known here goes last: whoever is cut off between is found by one of them, by
//! the repeated call or, where that never comes, by the controller's leader.

use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind as Io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tarbox_rpc::csi::{
    RequestError, capability::MountWish, inline::Inline, parameters::Parameters, request::VolumeRef,
};
use tarbox_store::{
    Compression, DEFAULT_BLOCK_SIZE, InUse, Limits, NewTenant, StoreError, VolumeRecord, mark_deleted,
    note_volume,
};
use tarbox_types::{ByteSize, ErrorKind, TenantId};

use super::{publish, publish::withdraw, stage, unstage};
use crate::{
    csi::request::{Leave, Publish, PublishInline, Stage, pod},
    failure::AgentError,
    node::Node,
    settings::Settings,
    tenant::{clear_stale, mounter_dir},
};

/// Capacity where the pod says nothing, as far as the node allows it.
const USUAL: ByteSize = ByteSize::mib(1 << 10);
/// As an emptyDir has it: the volume is its pod's alone, whoever runs in that.
const ROOT_MODE: u32 = 0o777;

/// Makes the volume, unless it is made, and shows it at the target.
///
/// # Errors
/// Where the node does not allow what the pod asks for; those of staging and publishing.
pub(crate) async fn publish_inline(
    node: &Arc<Node>,
    request: PublishInline,
    limit: Duration,
) -> Result<(), AgentError> {
    let PublishInline { id, target_path, wish, asked } = request;
    let limits = allowed(&node.settings, &asked)?;
    let deadline = Instant::now() + limit;
    let left = || deadline.saturating_duration_since(Instant::now());
    let url = database_url(node)?;
    let tenant = within(left(), url, make(node, url, &id, limits, &asked.pod)).await?;
    // Its end was cut off, and the pod is there again.
    if let Some(earlier) = node.tenant_of(&VolumeRef::Inline(id.clone())).filter(|other| *other != tenant) {
        end(node, earlier, left()).await?;
    }
    let pod = pod(|key| asked.pod.get(key));
    let staging_path = staging_path(&node.settings, tenant);
    make_directory(&staging_path)?;
    let staged = Stage {
        tenant,
        attached_to: None,
        staging_path: staging_path.clone(),
        wish: MountWish { read_only: false, ..wish.clone() },
        parameters: asked.parameters,
        changed: Parameters::default(),
        native: Vec::new(),
        inline: Some(id),
    };
    if let Err(error) = stage(node, staged, left()).await {
        // Nobody will ask for it again where the pod is given up.
        if node.tenant(tenant).is_none() {
            within(left(), url, delete(node, url, tenant)).await?;
            forget(&node.settings, tenant)?;
        }
        return Err(error);
    }
    let target = target_path.clone();
    let published = Publish { tenant, attached_to: None, staging_path, target_path, alone: true, wish, pod };
    let outcome = publish(node, published, left()).await;
    if outcome.as_ref().is_err_and(|error| is_final(error.kind())) {
        // As above: the kubelet takes it for nothing that would have to be ended.
        let ended = async {
            withdraw(node, Some(tenant), target, left()).await?;
            end(node, tenant, left()).await
        };
        if let Err(error) = ended.await {
            tracing::warn!(%tenant, error = error.report(), "a volume is left that nobody will end");
        }
    }
    outcome
}

/// Whether the kubelet takes an answer for the end of a call, rather than for something that may still be under way. Pure.
fn is_final(kind: ErrorKind) -> bool {
    !matches!(kind, ErrorKind::Unavailable | ErrorKind::Concurrent | ErrorKind::Exhausted)
}

/// Ends a volume that is published nowhere any more: its data goes in the background.
///
/// # Errors
/// Where that cannot be done in time: the call can be repeated.
pub(super) async fn end(node: &Arc<Node>, tenant: TenantId, limit: Duration) -> Result<(), AgentError> {
    let Some(handle) = node.tenant(tenant) else { return Ok(()) };
    let staged = handle.snapshot.borrow().staged.clone();
    if !staged.published.is_empty() {
        return Ok(());
    }
    let deadline = Instant::now() + limit;
    let url = database_url(node)?;
    within(limit, url, delete(node, url, tenant)).await?;
    let leave = Leave { volume: Some(VolumeRef::Tenant(tenant)), path: staged.staging_path.clone() };
    unstage(node, leave, deadline.saturating_duration_since(Instant::now())).await
}

/// What the volume may hold. Pure.
fn allowed(settings: &Settings, asked: &Inline) -> Result<Limits, AgentError> {
    if !settings.ephemeral {
        return Err(AgentError::Denied(
            "this node offers no volumes that pods ask for themselves (ephemeral = `false`)".to_owned(),
        ));
    }
    let most = |key: &str, bytes: u64, most: ByteSize| match bytes <= most.bytes() {
        true => Ok(()),
        false => {
            let allowed = format!("at most {most} on this node");
            Err(RequestError::value(format!("volume_context.{key}"), ByteSize(bytes), allowed))
        }
    };
    let bytes = asked.bytes.unwrap_or(USUAL.min(settings.ephemeral_max_size).bytes());
    most("size", bytes, settings.ephemeral_max_size)?;
    most("cacheSize", asked.parameters.cache_bytes.unwrap_or(0), settings.ephemeral_max_cache)?;
    Ok(Limits { bytes, inodes: Limits::inodes_of(bytes), file_bytes: 0 })
}

/// On the host, seen by nobody else, and there after a restart of the machine.
fn staging_path(settings: &Settings, tenant: TenantId) -> PathBuf {
    settings.state_dir.join("inline").join(tenant.to_string())
}

/// Removes directories of volumes that never came to be staged: whoever made them was cut off. Only for who does not serve yet.
pub(crate) fn clear(node: &Node) {
    for tenant in all(&node.settings).into_iter().filter(|tenant| node.tenant(*tenant).is_none()) {
        // What something is mounted on is not removed by this.
        if let Err(error) = forget(&node.settings, tenant) {
            tracing::warn!(%tenant, error = error.report(), "a directory is left");
        }
    }
}

/// The volumes that have a directory. What is mounted there is not looked at: it may not answer.
fn all(settings: &Settings) -> Vec<TenantId> {
    let entries = fs::read_dir(settings.state_dir.join("inline")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Makes a directory where it is missing, and looks at nothing: what is mounted there may not answer.
fn make_directory(path: &Path) -> Result<(), AgentError> {
    let parent = path.parent().into_iter();
    for directory in parent.chain([path]) {
        match fs::create_dir(directory) {
            Err(error) if error.kind() != Io::AlreadyExists => {
                return Err(AgentError::io("make the directory", directory)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Removes what is left of a volume of a pod that is gone, a journal as well: what is in it is nobody's. The directory by which it is known
/// goes last. Of another volume nothing is removed.
///
/// # Errors
/// As rmdir(2).
pub(crate) fn forget(settings: &Settings, tenant: TenantId) -> Result<(), AgentError> {
    if !all(settings).contains(&tenant) {
        return Ok(());
    }
    // What an agent that was cut off had put under a mount that never came.
    clear_stale(&staging_path(settings, tenant))?;
    let (journal, staging) = (mounter_dir(&settings.run_dir, tenant), staging_path(settings, tenant));
    for (path, removed) in [(&journal, fs::remove_dir_all(&journal)), (&staging, fs::remove_dir(&staging))] {
        match removed {
            Err(error) if error.kind() != Io::NotFound => return Err(AgentError::io("remove", path)(error)),
            _ => {}
        }
    }
    Ok(())
}

fn database_url(node: &Node) -> Result<&str, AgentError> {
    node.settings.database_url.as_deref().ok_or_else(|| {
        AgentError::Precondition(
            "a volume of a pod lies in the driver's database, and the agent's databaseURL names none"
                .to_owned(),
        )
    })
}

pub(super) async fn within<T>(
    limit: Duration,
    url: &str,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, AgentError> {
    let done = tokio::time::timeout(limit, work).await;
    let late = |_| {
        let url = tarbox_types::database_url::public(url).0;
        Err(StoreError::Unavailable { url, source: "it does not answer in time".into() })
    };
    done.unwrap_or_else(late).map_err(AgentError::from)
}

/// Notes the volume, and makes its tenant.
async fn make(
    node: &Node,
    url: &str,
    id: &str,
    limits: Limits,
    pod: &BTreeMap<String, String>,
) -> Result<TenantId, StoreError> {
    let database = node.databases.at(url).await?;
    let description = serde_json::json!({ "parameters": pod }).to_string();
    let new = VolumeRecord::inline(id, description);
    let (VolumeRecord { id, .. }, made) = note_volume(&*database, &new).await?;
    if made.is_some() {
        return Ok(id);
    }
    let new = NewTenant {
        id,
        name: format!("inline-{}", id.0.simple()),
        limits,
        block_size: DEFAULT_BLOCK_SIZE,
        compression: Compression::None,
        root_uid: 0,
        root_gid: 0,
        root_mode: ROOT_MODE,
    };
    database.create_tenant(&new).await.map(|tenant| tenant.id)
}

/// Marks the tenant deleted; its holder goes on until it gives the lease back.
async fn delete(node: &Node, url: &str, tenant: TenantId) -> Result<(), StoreError> {
    let database = node.databases.at(url).await?;
    mark_deleted(&*database, tenant, InUse::GoOn).await?;
    database.forget_volume(tenant).await
}
