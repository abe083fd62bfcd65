//! Sealing a layer: at once where nobody holds the tenant, else by its holder, who finds the record with its next heartbeat.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use tarbox_runtime::Backoff;
use tarbox_store::{
    Database, Holder, LayerRow, Seal, SnapshotRecord, StoreError, Tenant, TenantState, TenantStore,
};

use crate::error::{CheckpointError, Result};

/// How long a holder that died may take to come back: its journal may hold what was acknowledged and is not committed.
const PATIENCE: Duration = Duration::from_secs(10);

/// A shorter way to who holds the tenant than its next heartbeat.
#[async_trait]
pub trait Reach: Send + Sync {
    /// Asks it to seal now. Whether that succeeds is seen by the layer; asked again, it seals nothing twice.
    async fn ask(&self, holder: &Holder, seal: &Seal);
}

/// There is none: the heartbeat will do.
#[derive(Clone, Copy, Debug)]
pub struct ByHeartbeat;

#[async_trait]
impl Reach for ByHeartbeat {
    async fn ask(&self, _: &Holder, _: &Seal) {}
}

/// What is done about a layer that is not sealed yet.
enum Step {
    /// Nobody holds the tenant: it is sealed as it is committed.
    Seal,
    /// Who holds the tenant is to seal it.
    Ask(Holder),
    /// Somebody may come back and seal it.
    Wait(String),
}

/// Has the record's layer sealed, and notes it; the layer holds everything acknowledged before the call.
///
/// # Errors
/// [`CheckpointError::Unfinished`] where the time does not suffice: it goes on then. Where the tenant is gone.
pub async fn seal(
    database: &dyn Database,
    record: &SnapshotRecord,
    limit: Duration,
    reach: &dyn Reach,
) -> Result<LayerRow> {
    if let Some(layer) = &record.layer {
        return Ok(layer.clone());
    }
    let gone = || CheckpointError::Gone(record.tenant);
    let store = match database.open_tenant(record.tenant).await {
        Err(StoreError::NoTenant(_)) => return Err(gone()),
        store => store?,
    };
    let seal = record.seal();
    let begun = Instant::now();
    let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(250));
    loop {
        if let Some(layer) = store.sealed(&seal.request).await? {
            database.settle_snapshot(record.id, &layer).await?;
            return Ok(layer);
        }
        let tenant = database.tenant(record.tenant).await?.ok_or_else(gone)?;
        let why = match step(&tenant, begun.elapsed(), limit) {
            Step::Seal => match seal_unheld(&*store, &seal).await {
                Ok(()) => continue,
                Err(StoreError::Deleted(_)) => return Err(gone()),
                // Taken at this moment: it is the new holder's to seal.
                Err(StoreError::Held { holder, .. }) => waits_for(&holder),
                Err(error) => return Err(error.into()),
            },
            Step::Ask(holder) => {
                reach.ask(&holder, &seal).await;
                // Where that was enough there is nothing to wait for.
                if store.sealed(&seal.request).await?.is_some() {
                    continue;
                }
                waits_for(&holder)
            }
            Step::Wait(why) => why,
        };
        if begun.elapsed() >= limit {
            return Err(CheckpointError::Unfinished { tenant: record.tenant, why });
        }
        tokio::time::sleep(backoff.delay()).await;
    }
}

/// Pure.
fn step(tenant: &Tenant, waited: Duration, limit: Duration) -> Step {
    // A call that is repeated begins to wait anew: its time must suffice.
    let patience = PATIENCE.min(limit / 2);
    match &tenant.holder {
        Some(holder) => Step::Ask(holder.clone()),
        None if tenant.state == TenantState::Live && tenant.is_abandoned && waited < patience => {
            Step::Wait("its mounter died, and may come back with what is not committed yet".to_owned())
        }
        None => Step::Seal,
    }
}

fn waits_for(holder: &Holder) -> String {
    format!("pid {} on {}, which has it mounted, is to seal it", holder.pid, holder.node)
}

async fn seal_unheld(store: &dyn TenantStore, seal: &Seal) -> std::result::Result<(), StoreError> {
    match store.seal(seal).await {
        // Somebody's checkpoint has the snapshot's name: it is the id that counts.
        Err(StoreError::Refused(_)) => {
            let other = Seal { name: format!("{}~{}", seal.name, seal.request), ..seal.clone() };
            store.seal(&other).await.map(drop)
        }
        done => done.map(drop),
    }
}
