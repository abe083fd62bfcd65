//! `tarbox checkpoint restore`.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use serde::Serialize;
use tarbox_checkpoints::{check_number, diff::paths_of_changed_files, find};
use tarbox_proto::control::v1::Phase;
use tarbox_store::{Database, LayerRow, StoreError, Tenant};
use tarbox_types::{ErrorKind, HumanDuration};

use crate::{
    cli::{
        context::Context,
        output::{self, Table, bytes, show},
        settle::{self, Left},
    },
    control::client::Mounter,
    failure::Failure,
    lease, restore, serve, settings,
    tenant_dir::TenantDir,
};

const LOOK_AGAIN: Duration = Duration::from_millis(10);

#[derive(Debug, Args)]
#[command(
    after_long_help = "Takes constant time, however large the tenant. What the tenant is now is kept as a checkpoint `before-restore-…`, unless nothing has changed since the last one, so that a restore can itself be undone; a tenant that has as many checkpoints as it may is refused.\n\nA tenant mounted on this machine stays mounted, and calls wait for a moment. Open files that the checkpoint has too show what it has; using one that it lacks fails with ESTALE. One mounted elsewhere is refused.\n\nExamples:\n  tarbox checkpoint restore work before-tool\n  tarbox checkpoint list work        # shows before-restore-…\n  tarbox checkpoint restore work before-restore-1.4"
)]
pub(in crate::cli) struct RestoreCommand {
    /// Name or id of the tenant
    tenant: String,

    /// Name, tag or id of the checkpoint to go back to
    checkpoint: String,

    /// How long the mounter that has the tenant may take
    #[arg(long, value_name = "DURATION", default_value = "1m")]
    timeout: HumanDuration,
}

#[derive(Debug, Serialize)]
struct Restored {
    tenant: String,
    /// Where it stands now.
    checkpoint: String,
    /// What keeps what was there before; absent where another checkpoint does already.
    before: Option<String>,
    used_bytes: u64,
    used_inodes: u64,
    /// It stayed mounted.
    mounted: bool,
}

impl RestoreCommand {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let (database, tenant) = context.tenant(&self.tenant).await?;
        let layer = find(&*database, &tenant, &self.checkpoint).await?.layer;
        // What is there now becomes one more.
        check_number(&*database, tenant.id).await?;
        let left = settle::take_up(context, &database, &tenant).await?;
        // As it is when everything is committed: what is sealed before the restore is found by it.
        let (before, mounted) = match left {
            Left::Served => {
                let restoring = self.under_the_work(context, &database, &tenant, &layer);
                (output::while_waiting("restoring", restoring).await?, true)
            }
            Left::TakenUp(directory) => (at_rest(&database, &tenant, &layer, directory).await?, false),
            Left::Nothing => {
                settings::ensure_state_dir(&context.settings.state_dir)?;
                let directory = serve::lock(&database, &context.settings, &tenant).await?;
                (at_rest(&database, &tenant, &layer, directory).await?, false)
            }
        };
        let kept = database.open_tenant(tenant.id).await?.own_layers().await?;
        let is_before = |kept: &&LayerRow| kept.branch == before.head_branch && kept.layer >= before.layer;
        let restored = Restored {
            tenant: tenant.name,
            before: kept.iter().find(is_before).map(|kept| kept.name.clone()),
            checkpoint: layer.name,
            used_bytes: layer.used_bytes,
            used_inodes: layer.used_inodes,
            mounted,
        };
        show(context.format, &restored, table)
    }

    /// Lets its mounter do it, and waits until a successor serves and the kernel knows; the tenant as it was before.
    async fn under_the_work(
        &self,
        context: &Context,
        database: &Arc<dyn Database>,
        tenant: &Tenant,
        layer: &LayerRow,
    ) -> Result<Tenant, Failure> {
        let state_dir = &context.settings.state_dir;
        let deadline = Instant::now() + self.timeout.0;
        Mounter::flush(self.timeout.0, || Mounter::writer_of(state_dir, tenant.id)).await?;
        let store = database.open_tenant(tenant.id).await?;
        let (before, old_view) = store.head().await?;
        let mounter = Mounter::writer_of(state_dir, tenant.id).ok_or_else(|| not_now(tenant))?;
        let asked = async { mounter.connect(self.timeout.0).await?.restore(layer.branch, layer.layer).await };
        let asked = asked.await;
        let (_, new_view) = store.head().await?;
        // Its answer may be lost with it: what counts is what the database has.
        if new_view.chain[0].branch == before.head_branch {
            asked?;
            return Err(not_now(tenant));
        }
        wait_for_successor(&mounter, deadline).await?;
        // The kernel has dropped what it knew of them, and learns their size by being asked: who appends to an open file needs it.
        for path in paths_of_changed_files(&*store, &old_view, &new_view).await? {
            use std::os::unix::ffi::OsStrExt;
            let path = mounter.note.mount_point.join(Path::new(std::ffi::OsStr::from_bytes(&path)));
            let _ = tokio::fs::symlink_metadata(path).await;
        }
        Ok(before)
    }
}

fn not_now(tenant: &Tenant) -> Failure {
    let message = format!("the mounter of tenant `{}` was replaced at this moment: try again", tenant.name);
    Failure::refused(ErrorKind::Unavailable, message)
}

async fn wait_for_successor(before: &Mounter, deadline: Instant) -> Result<(), Failure> {
    loop {
        let successor = Mounter::writer_of_directory(&before.directory)
            .filter(|mounter| mounter.note.session != before.note.session);
        if let Some(successor) = successor
            && restore::left_unfinished(&before.directory).is_none()
            && let Ok(mut control) = successor.connect(Duration::from_secs(5)).await
            && control.status().await.is_ok_and(|status| status.phase() == Phase::Serving)
        {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let message = format!(
                "the tenant has been restored, but at {} what was there before may still be shown: its mounter has not gone on in time",
                before.note.mount_point.display()
            );
            return Err(Failure::refused(ErrorKind::Unavailable, message));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Restores a tenant that is mounted nowhere; the tenant as it was before.
async fn at_rest(
    database: &Arc<dyn Database>,
    tenant: &Tenant,
    layer: &LayerRow,
    directory: TenantDir,
) -> Result<Tenant, Failure> {
    let session = lease::open_session(database).await?;
    let restored = async {
        let lease = lease::acquire(database, tenant.id, session, &directory).await?;
        let store = database.open_tenant(tenant.id).await?;
        let restored = store.restore(&lease.fence, layer.branch, layer.layer).await;
        restored.map(|_| lease.tenant).map_err(|error| match error {
            StoreError::NoLayer { .. } => {
                Failure::refused(ErrorKind::NotFound, format!("the checkpoint `{}` is gone", layer.name))
            }
            error => error.into(),
        })
    };
    let restored = restored.await;
    database.close_session(session).await?;
    directory.clear();
    restored
}

fn table(restored: &Restored) -> Table {
    Table::of_pairs(vec![
        ("Restored", format!("{} to {}", restored.tenant, restored.checkpoint)),
        (
            "Before",
            restored.before.clone().unwrap_or_else(|| "(unchanged since the last checkpoint)".to_owned()),
        ),
        ("Used", bytes(restored.used_bytes)),
        ("Inodes", restored.used_inodes.to_string()),
        ("Mounted", if restored.mounted { "yes, and served on" } else { "no" }.to_owned()),
    ])
}
