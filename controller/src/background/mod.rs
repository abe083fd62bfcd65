//! Background work in every database that the controller has opened, each by one leader: layers that nobody keeps any more, data of
//! deleted volumes, checkpoints that are made by themselves, what nothing refers to, chains of branches that have become long.
//!
//! Each step is a small batch that finds by itself what is left to do, so a new leader goes on where the old one was. A leader that
//! was paused and lost the lead is refused by the database at its next write.

mod audit;
mod blocks;
mod chains;
mod checkpoints;
mod inline;
mod layers;
mod orphans;
mod volumes;

use std::{sync::Arc, time::Duration};

use tarbox_store::{Database, Lead, VolumeRecord, all};
use tarbox_types::{ErrorKind, TenantId};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use self::{chains::Chains, inline::Unheld};
use crate::{
    databases::Databases,
    failure::Result,
    monitoring::{self, Monitoring},
};

/// How long the lead counts without being renewed: another takes over after that.
const TERM: Duration = Duration::from_secs(15);
/// How often it is looked for work, and whether somebody leads.
const ROUND: Duration = Duration::from_secs(2);
/// How often it is looked for what nothing refers to: every family is looked at.
const COLLECT: Duration = Duration::from_secs(60);
/// How often all volumes are looked at: whether a checkpoint is due, and which their nodes have left behind.
const VOLUMES: Duration = Duration::from_secs(10);
/// How often everything is looked through for what nothing refers to.
const ORPHANS: Duration = Duration::from_secs(6 * 3600);
/// How often volumes and snapshots are counted.
const LOOK: Duration = Duration::from_secs(20);
/// How long one kind of work may keep the others, and the lead's renewal, waiting.
const SLICE: Duration = Duration::from_secs(3);

/// What is not done in every round.
#[derive(Clone, Copy, Debug)]
struct Due {
    collect: bool,
    orphans: bool,
    volumes: bool,
    /// Counts the times that there was something to collect.
    round: u64,
}

/// Leads, or waits to lead, until the controller ends. `grace`: how long nobody may hold a pod's own volume.
pub(crate) async fn work(databases: Arc<Databases>, monitoring: Arc<Monitoring>, who: Uuid, grace: Duration) {
    let begun = Instant::now();
    let (mut collected, mut looked_through, mut searched) = (begun, begun, begun);
    let (mut unheld, mut chains) = (Unheld::new(grace), Chains::default());
    let mut collections = 0;
    let mut looked = None::<Instant>;
    loop {
        sleep(ROUND).await;
        let is_time_to_look = looked.is_none_or(|looked| looked.elapsed() >= LOOK);
        let due = Due {
            collect: collected.elapsed() >= COLLECT,
            orphans: searched.elapsed() >= ORPHANS,
            volumes: looked_through.elapsed() >= VOLUMES,
            round: collections,
        };
        if due.volumes
            && let Err(error) = databases.open_others().await
        {
            tracing::warn!(error = error.report(), "other databases are not looked for");
        }
        for database in databases.opened() {
            let done = async {
                let leads = round(&*database, who, due, &mut unheld, &mut chains).await?;
                if !leads {
                    monitoring.forget(&*database);
                    unheld.forget(&*database);
                    chains.forget(&*database);
                } else if is_time_to_look {
                    monitoring.found(&*database, monitoring::look(&*database).await?);
                }
                Ok(())
            };
            let done: Result<()> = done.await;
            if let Err(error) = done {
                monitoring.forget(&*database);
                let database = database.display_url();
                tracing::warn!(database, error = error.report(), "background work is interrupted");
            }
        }
        if is_time_to_look {
            looked = Some(Instant::now());
        }
        if due.collect {
            collected = Instant::now();
            collections += 1;
        }
        if due.orphans {
            searched = Instant::now();
        }
        if due.volumes {
            looked_through = Instant::now();
        }
    }
}

/// Lets another lead at once.
pub(crate) async fn step_down(databases: &Databases, who: Uuid) {
    for database in databases.opened() {
        if let Err(error) = database.step_down(who).await {
            tracing::debug!(%error, "the lead runs out by itself");
        }
    }
}

/// One round, if this one leads; whether it does.
async fn round(
    database: &dyn Database,
    who: Uuid,
    due: Due,
    unheld: &mut Unheld,
    chains: &mut Chains,
) -> Result<bool> {
    let Some(lead) = database.lead(who, TERM).await? else { return Ok(false) };
    let led = database.led_by(&lead);
    layers::settle(&*led).await?;
    layers::clear(&*led, Instant::now() + SLICE).await?;
    volumes::reap(&*led, Instant::now() + SLICE).await?;
    if due.volumes {
        let records =
            all(|record: &VolumeRecord| record.id, |after, limit| led.volumes(after, limit)).await?;
        unheld.delete(&*led, &records).await?;
        checkpoints::make(&*led, &records, Instant::now() + SLICE).await?;
    }
    if due.collect {
        let records =
            all(|record: &VolumeRecord| record.id, |after, limit| led.volumes(after, limit)).await?;
        audit::expire(&*led, &records, due.round, Instant::now() + SLICE).await?;
        blocks::collect(&*led, || renewed(database, lead)).await?;
        chains.flatten(&*led, || renewed(database, lead)).await?;
    }
    if due.orphans && renewed(database, lead).await? {
        orphans::remove(&*led, Instant::now() + SLICE).await?;
    }
    Ok(true)
}

/// What goes wrong with one volume is said, and keeps no other waiting.
///
/// # Errors
/// Where nothing can be done for any volume: without the database, or the lead.
fn of_one(volume: TenantId, outcome: Result<()>) -> Result<()> {
    match outcome {
        Err(error) if !matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Fenced) => {
            tracing::warn!(%volume, error = error.report(), "background work for this volume is put off");
            Ok(())
        }
        outcome => outcome,
    }
}

/// Renews the lead in the middle of long work; whether it is still the same.
async fn renewed(database: &dyn Database, lead: Lead) -> Result<bool> {
    Ok(database.lead(lead.who, TERM).await? == Some(lead))
}

#[cfg(test)]
mod tests {
    use tarbox_store::StoreError;

    use super::*;

    #[test]
    fn what_goes_wrong_with_one_volume_ends_the_round_only_where_it_concerns_all() {
        let of_one = |error: StoreError| of_one(TenantId::random(), Err(error.into()));
        assert!(of_one(StoreError::Refused("of this one".to_owned())).is_ok());
        assert!(of_one(StoreError::NoTenant("t".to_owned())).is_ok());
        assert!(matches!(
            of_one(StoreError::NotLeading),
            Err(crate::failure::ControllerError::Store(StoreError::NotLeading))
        ));
    }
}
