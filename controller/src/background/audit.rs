//! Audit events of volumes, older than they are to be kept.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tarbox_store::{Database, StoreError, VolumeRecord};
use tarbox_types::TenantId;
use tokio::time::Instant;

use super::of_one;
use crate::{failure::Result, volume::Description};

/// Days, where nothing is said.
const RETENTION: u64 = 90;

/// How long a volume's events are kept; `None` = for ever. Pure.
fn kept(description: &Description) -> Option<Duration> {
    let said = description.given("auditRetentionDays").and_then(|days| days.parse().ok());
    let days: u64 = said.unwrap_or(RETENTION);
    (days > 0).then(|| Duration::from_secs(days * 24 * 3600))
}

/// Removes them, until all volumes were looked at or the time is over. Each round begins at another volume, so that each has its turn.
pub(super) async fn expire(
    database: &dyn Database,
    records: &[VolumeRecord],
    round: u64,
    until: Instant,
) -> Result<()> {
    let first = round.checked_rem(records.len() as u64).unwrap_or(0) as usize;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    for record in records[first..].iter().chain(&records[..first]) {
        let Some(kept) = kept(&Description::read(&record.description)) else { continue };
        let before = now.saturating_sub(kept).as_micros() as u64;
        of_one(record.id, expire_one(database, record.id, before, until).await)?;
        if Instant::now() >= until {
            break;
        }
    }
    Ok(())
}

async fn expire_one(database: &dyn Database, volume: TenantId, before: u64, until: Instant) -> Result<()> {
    let store = match database.open_tenant(volume).await {
        // It is not made yet, or is gone: its events went with it.
        Err(StoreError::NoTenant(_)) => return Ok(()),
        store => store?,
    };
    let mut gone = 0;
    while Instant::now() < until {
        match store.expire_audit(before).await? {
            0 => break,
            some => gone += some,
        }
    }
    if gone > 0 {
        tracing::info!(%volume, gone, "old audit events are gone");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_kept_as_long_as_the_volume_says() {
        let kept = |said: &[(&str, &str)]| {
            let parameters = said.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
            kept(&Description { parameters, ..Description::default() }).map(|kept| kept.as_secs() / 86_400)
        };
        assert_eq!(kept(&[]), Some(90));
        assert_eq!(kept(&[("auditRetentionDays", "365")]), Some(365));
        assert_eq!(kept(&[("auditRetentionDays", "0")]), None);
    }

    #[test]
    fn what_was_changed_later_counts() {
        let days = |days: &str| [("auditRetentionDays".to_owned(), days.to_owned())].into();
        let changed = Description { parameters: days("30"), mutable: days("365"), ..Description::default() };
        assert_eq!(kept(&changed), Some(Duration::from_secs(365 * 24 * 3600)));
    }
}
