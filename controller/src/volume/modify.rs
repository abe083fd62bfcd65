//! Other parameters for a volume. What the database and the leader go by holds at once; what a mounter is started with, from the next
//! time on that the volume is staged.

use std::collections::BTreeMap;

use tarbox_store::{Database, Limits, VolumeRecord};
use tarbox_types::TenantId;

use super::{Description, find};
use crate::{
    databases::Databases,
    failure::{ControllerError, Result},
};

/// ControllerModifyVolume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Modify {
    /// The volume.
    pub(crate) volume: TenantId,
    /// Values by their keys, checked; others stay as they are.
    pub(crate) parameters: BTreeMap<String, String>,
    /// From the request's secrets.
    pub(crate) database_url: Option<String>,
}

/// Gives the volume these parameters. What was cut off between note and limits is finished by repeating it.
///
/// # Errors
/// Where there is no such volume.
pub(crate) async fn modify(databases: &Databases, asked: Modify) -> Result<()> {
    let place = databases.of_volume(asked.volume, asked.database_url.as_deref()).await?;
    let database = &*place.database;
    let volume = find(database, asked.volume).await?;
    note(database, asked.volume, &asked.parameters).await?;
    let (now, wanted) =
        (volume.tenant.limits, limits(volume.tenant.limits, &Description::changed_to(asked.parameters)));
    if wanted != now {
        database.resize_tenant(asked.volume, &wanted).await?;
    }
    Ok(())
}

/// The limits that parameters say; those they say nothing of stay. Pure.
fn limits(now: Limits, said: &Description) -> Limits {
    Limits {
        bytes: now.bytes,
        inodes: said.inodes().unwrap_or(now.inodes),
        file_bytes: said.file_bytes().unwrap_or(now.file_bytes),
    }
}

async fn note(
    database: &dyn Database,
    volume: TenantId,
    parameters: &BTreeMap<String, String>,
) -> Result<()> {
    loop {
        let record = match database.volume(volume).await? {
            Some(record) => record,
            // It was made on a command line.
            None => database.note_volume(&VolumeRecord::unasked(volume)).await?,
        };
        if record.id != volume {
            let what = "volume";
            return Err(ControllerError::Differs {
                name: record.request,
                what,
                differs: "its id".to_owned(),
            });
        }
        let mut description = Description::read(&record.description);
        description.mutable.extend(parameters.clone());
        let text = description.text();
        if text == record.description || database.describe_volume(&record, &text).await? {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_limits_that_are_spoken_of_change() {
        let now = Limits { bytes: 1, inodes: 2, file_bytes: 3 };
        let said = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned()));
            limits(now, &Description::changed_to(pairs.collect()))
        };
        assert_eq!(said(&[("cacheSize", "1Gi")]), now);
        assert_eq!(said(&[("inodes", "7")]), Limits { inodes: 7, ..now });
        assert_eq!(said(&[("maxFileSize", "1Ki")]), Limits { file_bytes: 1024, ..now });
    }
}
