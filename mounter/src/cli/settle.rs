//! Seeing to it that the database has what applications have been told was done.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tarbox_store::{Database, Tenant};
use tarbox_types::ErrorKind;

use super::context::Context;
use crate::{
    control::client::Mounter,
    failure::Failure,
    mount_point::{self, Health},
    mounts, offline, serve, settings,
    tenant_dir::{self, TenantDir},
};

/// How long a mounter may take to commit what it has.
const FLUSH_WITHIN: Duration = Duration::from_secs(60);
/// How long the successor of a mounter that died may take to come.
const SUCCESSOR_WITHIN: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Has everything committed: by a living mounter on this machine, or, where one left a journal, by this process. What is returned keeps
/// others on this machine from mounting the tenant meanwhile.
pub(super) async fn whole(
    context: &Context,
    database: &Arc<dyn Database>,
    tenant: &Tenant,
) -> Result<Option<TenantDir>, Failure> {
    let state_dir = &context.settings.state_dir;
    settings::ensure_state_dir(state_dir)?;
    loop {
        match take_up(context, database, tenant).await? {
            Left::Nothing => return TenantDir::lock_writer(state_dir, tenant.id),
            Left::TakenUp(directory) => return Ok(Some(directory)),
            Left::Served => {
                let flushed =
                    Mounter::flush(FLUSH_WITHIN, || Mounter::writer_of(state_dir, tenant.id)).await?;
                if flushed.is_some() {
                    return Ok(None);
                }
            }
        }
    }
}

/// What a mounter that died has left on this machine.
pub(super) enum Left {
    /// Nothing that the database lacks.
    Nothing,
    /// A journal, which has been replayed; the tenant is kept from being mounted as long as this lives.
    TakenUp(TenantDir),
    /// A mount that a living mounter serves.
    Served,
}

impl Left {
    /// Lets the tenant be mounted again, where that was kept from happening.
    pub(super) fn release(self) {
        if let Self::TakenUp(directory) = self {
            directory.clear();
        }
    }
}

/// Replays what a dead mounter left, unless another one is to go on with it: that one has to answer its requests as well.
pub(super) async fn take_up(
    context: &Context,
    database: &Arc<dyn Database>,
    tenant: &Tenant,
) -> Result<Left, Failure> {
    let state_dir = &context.settings.state_dir;
    let path = tenant_dir::of(state_dir, tenant.id);
    let deadline = Instant::now() + SUCCESSOR_WITHIN;
    loop {
        if Mounter::writer_of(state_dir, tenant.id).is_some_and(|mounter| !mounter.is_gone()) {
            return Ok(Left::Served);
        }
        if !offline::has_journal(&path) {
            return Ok(Left::Nothing);
        }
        if !is_mounted(&path)? {
            break;
        }
        if Instant::now() >= deadline {
            let message = format!(
                "tenant `{}` is mounted, and nobody serves it now: try again, or unmount it with `tarbox umount`",
                tenant.name
            );
            return Err(Failure::refused(ErrorKind::Unavailable, message));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    let directory = serve::lock(database, &context.settings, tenant).await?;
    if offline::has_journal(directory.path()) {
        offline::open(database, context, tenant, &directory).await?.close().await?;
    }
    Ok(Left::TakenUp(directory))
}

/// Whether somebody keeps the mount that was noted there alive.
fn is_mounted(directory: &Path) -> Result<bool, Failure> {
    let Some(note) = tenant_dir::read_note(directory) else { return Ok(false) };
    let mount =
        mounts::at(&note.mount_point).map_err(Failure::io("read", Path::new("/proc/self/mountinfo")))?;
    let is_ours = mount.is_some_and(|mount| mount.is_tarbox());
    Ok(is_ours && mount_point::health(&note.mount_point) != Health::Dead)
}
