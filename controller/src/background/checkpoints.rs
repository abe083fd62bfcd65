//! Checkpoints that are made by themselves: one for each interval of a volume that asks for them, and none beyond its retention.
//!
//! The name says which interval it is of, so that whoever leads, and however often it is cut off, makes it once.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tarbox_checkpoints::{ByHeartbeat, Checkpoint, CheckpointError, Kind};
use tarbox_store::{Database, Purpose, SnapshotRecord, Tenant, TenantState, VolumeRecord};
use tarbox_types::{HumanDuration, TenantId};
use tokio::time::Instant;

use super::of_one;
use crate::{failure::Result, volume::Description};

/// What their names begin with; a number follows.
const PREFIX: &str = "auto-";
/// Where nothing is said.
const INTERVAL: Duration = Duration::from_secs(3600);
const RETENTION: usize = 24;
/// How long the holder of one volume may keep the others waiting; it seals by itself then.
const PATIENCE: Duration = Duration::from_millis(50);

/// What a volume asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wish {
    interval: Duration,
    retention: usize,
}

impl Wish {
    /// Pure.
    fn of(description: &Description) -> Option<Self> {
        let given = |key: &str| description.given(key);
        let interval = given("checkpointInterval").and_then(|text| text.parse::<HumanDuration>().ok());
        let retention = given("checkpointRetention").and_then(|text| text.parse().ok());
        (given("autoCheckpoint") == Some("true")).then(|| Self {
            interval: interval.map_or(INTERVAL, |interval| interval.0).max(Duration::from_secs(1)),
            retention: retention.unwrap_or(RETENTION).max(1),
        })
    }
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// Name of the one to be made.
    make: Option<String>,
    /// Names of those that are to go.
    delete: Vec<String>,
}

/// The interval that a checkpoint was made for; `None` for those of others.
fn interval_of(checkpoint: &Checkpoint) -> Option<u64> {
    let is_ours = checkpoint.kind == Kind::Checkpoint && checkpoint.tags.is_empty();
    let number = checkpoint.layer.name.strip_prefix(PREFIX).filter(|_| is_ours)?;
    number.parse().ok()
}

/// Pure. One with a tag is somebody's by now: it stays.
fn plan(wish: Wish, now: Duration, there: &[Checkpoint]) -> Plan {
    let seconds = wish.interval.as_secs();
    let current = format!("{PREFIX}{}", now.as_secs() / seconds * seconds);
    let is_made = there.iter().any(|checkpoint| checkpoint.layer.name == current);
    let mut ours: Vec<_> =
        there.iter().filter_map(|checkpoint| Some((interval_of(checkpoint)?, checkpoint))).collect();
    ours.sort_by_key(|(interval, _)| std::cmp::Reverse(*interval));
    // First there is room made for the new one.
    let kept = wish.retention - usize::from(!is_made);
    Plan {
        make: (!is_made).then_some(current),
        delete: ours.into_iter().skip(kept).map(|(_, checkpoint)| checkpoint.layer.name.clone()).collect(),
    }
}

/// Looks at those of the volumes that ask for it, until all were or the time is over.
pub(super) async fn make(database: &dyn Database, records: &[VolumeRecord], until: Instant) -> Result<()> {
    let wish = |record: &VolumeRecord| Some((record.id, Wish::of(&Description::read(&record.description))?));
    for (volume, wish) in records.iter().filter_map(wish) {
        of_one(volume, make_one(database, volume, wish).await)?;
        if Instant::now() >= until {
            break;
        }
    }
    Ok(())
}

async fn make_one(database: &dyn Database, volume: TenantId, wish: Wish) -> Result<()> {
    // To seal what a mounter that died has left would keep it from coming back: nobody waits for this one.
    let may_be_sealed = |tenant: &Tenant| tenant.state == TenantState::Live && !tenant.is_abandoned;
    match database.tenant(volume).await?.filter(may_be_sealed) {
        Some(tenant) => keep(database, &tenant, wish).await,
        None => Ok(()),
    }
}

async fn keep(database: &dyn Database, tenant: &Tenant, wish: Wish) -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let there = tarbox_checkpoints::list(database, tenant.id).await?;
    let plan = plan(wish, now, &there);
    for checkpoint in there.iter().filter(|checkpoint| plan.delete.contains(&checkpoint.layer.name)) {
        match tarbox_checkpoints::delete(database, tenant, checkpoint).await {
            // A clone begins there: it is not ours alone any more.
            Ok(()) | Err(CheckpointError::InUse { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let Some(name) = plan.make else { return Ok(()) };
    let new = SnapshotRecord::new(tenant.id, name, Purpose::Checkpoint);
    match tarbox_checkpoints::create(database, &new, PATIENCE, &ByHeartbeat).await {
        Ok(_) => tracing::info!(tenant = %tenant.id, name = new.request, "a checkpoint is made by itself"),
        // Made meanwhile; to be made by its holder; deleted at this moment.
        Err(
            CheckpointError::Taken { .. } | CheckpointError::Unfinished { .. } | CheckpointError::Gone(_),
        ) => {}
        Err(error @ (CheckpointError::TooMany { .. } | CheckpointError::HistoryFull { .. })) => {
            tracing::warn!(tenant = %tenant.id, %error, "no checkpoint is made by itself");
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tarbox_store::LayerRow;

    use super::*;

    const WISH: Wish = Wish { interval: Duration::from_secs(60), retention: 2 };

    fn checkpoint(name: &str, kind: Kind, tags: &[&str]) -> Checkpoint {
        let layer = LayerRow {
            tenant: TenantId::random(),
            branch: 1,
            layer: 1,
            name: name.to_owned(),
            sealed_at: 0,
            used_bytes: 0,
            used_inodes: 1,
        };
        let tags = tags.iter().map(ToString::to_string).collect();
        Checkpoint { layer, kind, id: None, tags, is_in_line: true }
    }

    #[test]
    fn one_is_made_for_each_interval_and_the_oldest_go() {
        let at = |seconds, there: &[Checkpoint]| plan(WISH, Duration::from_secs(seconds), there);
        let made = |name: &str| Some(name.to_owned());
        assert_eq!(at(0, &[]), Plan { make: made("auto-0"), delete: vec![] });
        let first = checkpoint("auto-0", Kind::Checkpoint, &[]);
        assert_eq!(at(59, std::slice::from_ref(&first)), Plan { make: None, delete: vec![] });
        let second = checkpoint("auto-60", Kind::Checkpoint, &[]);
        let both = [second.clone(), first.clone()];
        assert_eq!(at(119, &both), Plan { make: None, delete: vec![] });
        assert_eq!(at(120, &both), Plan { make: made("auto-120"), delete: vec!["auto-0".into()] });
        // After a pause only what is due now is made.
        assert_eq!(at(100_000, &[first]).make, made("auto-99960"));
    }

    #[test]
    fn what_is_somebody_elses_stays() {
        let others = [
            checkpoint("auto-0", Kind::Checkpoint, &["release"]),
            checkpoint("auto-1", Kind::Snapshot, &[]),
            checkpoint("auto-x", Kind::Checkpoint, &[]),
            checkpoint("mine", Kind::Checkpoint, &[]),
        ];
        assert_eq!(plan(WISH, Duration::from_secs(600), &others).delete, Vec::<String>::new());
    }

    #[test]
    fn only_who_asks_gets_them() {
        let asked = |pairs: &[(&str, &str)]| {
            let parameters = pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
            Wish::of(&Description { parameters, ..Description::default() })
        };
        assert_eq!(asked(&[]), None);
        assert_eq!(asked(&[("autoCheckpoint", "false"), ("checkpointInterval", "1m")]), None);
        assert_eq!(
            asked(&[("autoCheckpoint", "true")]),
            Some(Wish { interval: INTERVAL, retention: RETENTION })
        );
        let all = [("autoCheckpoint", "true"), ("checkpointInterval", "1m"), ("checkpointRetention", "2")];
        assert_eq!(asked(&all), Some(WISH));
    }
}
