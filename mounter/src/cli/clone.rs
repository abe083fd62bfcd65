//! `tarbox clone`.

use std::sync::Arc;

use clap::Args;
use serde::Serialize;
use tarbox_checkpoints::{HEAD, base, find};
use tarbox_store::{Database, LayerRow, NewTenant, Tenant, VolumeRecord};
use tarbox_types::{ByteSize, ErrorKind, HumanDuration, TenantId};

use super::{
    context::Context,
    output::{self, Table, bytes, show},
    reach::BySocket,
    settle,
    tenant::LimitOptions,
};
use crate::{
    failure::{Failure, OK},
    settings::{self, LimitChoice},
};

#[derive(Debug, Args)]
#[command(
    after_long_help = "Takes constant time, however large the tenant: the clone shares what it has in common with its source, and each changes alone. It has the source's limits, unless others are given, and outlives the source. Of a mounted tenant, it begins with all that applications had been told was done when the command began.\n\nExamples:\n  tarbox clone work attempt-1\n  tarbox clone work attempt-2 --from before-tool --quota-bytes 2Gi\n  for n in 1 2 3; do tarbox clone work try-$n && tarbox-mount --tenant try-$n --daemon ./try-$n; done"
)]
pub(super) struct CloneCommand {
    /// Name or id of the tenant
    tenant: String,

    /// Name of the new tenant: 1 to 63 of a-z, 0-9, `-`, `.` and `_`
    new: String,

    /// Name, tag or id of the checkpoint that it begins with; `head` is the present
    #[arg(long, value_name = "CHECKPOINT", default_value = HEAD)]
    from: String,

    #[command(flatten)]
    limits: LimitOptions,

    /// How long the mounter that has the tenant may take to commit
    #[arg(long, value_name = "DURATION", default_value = "1m")]
    timeout: HumanDuration,
}

#[derive(Debug, Serialize)]
struct Cloned {
    id: TenantId,
    name: String,
    source: String,
    /// Where it begins.
    from: String,
    used_bytes: u64,
    used_inodes: u64,
}

impl CloneCommand {
    pub(super) async fn run(self, context: &Context) -> Result<u8, Failure> {
        settings::tenant_name(&self.new)
            .map_err(|allowed| Failure::Usage(format!("the name `{}`: allowed is {allowed}", self.new)))?;
        let choice = self.limits.choice()?;
        let (database, source) = context.tenant(&self.tenant).await?;
        if database.tenant_by_name(&self.new).await?.is_some() {
            return Err(tarbox_store::StoreError::NameTaken(self.new).into());
        }
        let id = TenantId::random();
        // As long as this is noted, a controller does not give up what the clone is to begin with.
        database.note_volume(&VolumeRecord::unasked(id)).await?;
        let cloned = self.make(context, &database, source, id, choice).await;
        // The clone keeps its layer itself now; where it could not be made, nobody needs it.
        database.drop_snapshot(id.0).await?;
        database.forget_volume(id).await?;
        show(context.format, &cloned?, table)?;
        Ok(OK)
    }

    async fn make(
        &self,
        context: &Context,
        database: &Arc<dyn Database>,
        source: Tenant,
        id: TenantId,
        choice: LimitChoice,
    ) -> Result<Cloned, Failure> {
        let layer = match self.from.as_str() {
            HEAD => self.present(context, database, &source, id).await?,
            name => find(&**database, &source, name).await?.layer,
        };
        let limits = choice.over(source.limits);
        if limits.bytes != 0 && limits.bytes < layer.used_bytes {
            let message = format!(
                "--quota-bytes {}: it begins with {}, and needs at least that",
                ByteSize(limits.bytes),
                ByteSize(layer.used_bytes)
            );
            return Err(Failure::Usage(message));
        }
        let new = NewTenant {
            id,
            name: self.new.clone(),
            limits,
            block_size: source.block_size,
            compression: source.compression,
            // The root is the source's.
            root_uid: 0,
            root_gid: 0,
            root_mode: 0o755,
        };
        let store = database.open_tenant(source.id).await?;
        let made = store.branch_from(layer.branch, layer.layer, &new).await?;
        Ok(Cloned {
            id: made.id,
            name: made.name,
            source: source.name,
            from: self.from.clone(),
            used_bytes: layer.used_bytes,
            used_inodes: layer.used_inodes,
        })
    }

    /// Seals the source as it is now.
    async fn present(
        &self,
        context: &Context,
        database: &Arc<dyn Database>,
        source: &Tenant,
        clone: TenantId,
    ) -> Result<LayerRow, Failure> {
        let left = settle::take_up(context, database, source).await?;
        let reach = BySocket::new(context, source.id, self.timeout.0);
        let sealing = base(&**database, source.id, clone, self.timeout.0, &reach);
        let sealed = output::while_waiting("waiting for the commit", sealing).await;
        left.release();
        sealed?
            .layer
            .ok_or_else(|| Failure::refused(ErrorKind::Internal, "what the clone begins with has no layer"))
    }
}

fn table(cloned: &Cloned) -> Table {
    Table::of_pairs(vec![
        ("Cloned", format!("{} ({})", cloned.source, cloned.from)),
        ("Name", cloned.name.clone()),
        ("Id", cloned.id.to_string()),
        ("Used", bytes(cloned.used_bytes)),
        ("Inodes", cloned.used_inodes.to_string()),
    ])
}
