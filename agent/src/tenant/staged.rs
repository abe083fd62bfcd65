//! What was staged, as it is kept on disk beside the supervisor's record.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};
use tarbox_supervisor::{Connection, Record, State};
use tarbox_types::TenantId;

use crate::csi::{capability::MountWish, native::NativeMount};

/// A tenant as it was staged. Holds no secret: those are in the keeper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Staged {
    pub(crate) tenant: TenantId,
    /// Where it is mounted.
    pub(crate) staging_path: PathBuf,
    pub(crate) wish: MountWish,
    /// What the mount table shows.
    pub(crate) name: String,
    /// The database, without its password.
    pub(crate) database_url: String,
    /// Further options of the mounter: flag and value.
    pub(crate) options: Vec<(String, String)>,
    /// Who the mounter runs as; `None` = as the agent does.
    pub(crate) user: Option<u32>,
    /// Directories of the host that are shown in it, in the order in which they are mounted.
    #[serde(default)]
    pub(crate) native: Vec<NativeMount>,
    /// Where it is published.
    #[serde(default)]
    pub(crate) published: BTreeMap<PathBuf, Publication>,
}

/// A place where the tenant is published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Publication {
    pub(crate) wish: MountWish,
}

/// A tenant's state file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StateFile {
    pub(crate) staged: Staged,
    pub(crate) record: Record,
}

impl Staged {
    /// Whether another stage request asks for the same; what is published plays no part.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let plain = |staged: &Self| Self { published: BTreeMap::new(), ..staged.clone() };
        plain(self) == plain(other)
    }
}

/// What holds of an earlier boot's record: what is wanted. Its times, processes and mounts mean nothing now.
pub(crate) fn reborn(record: &Record) -> Record {
    Record {
        wanted: record.wanted.clone(),
        build: record.build.clone(),
        memory: record.memory,
        // Kept as known until it is looked at: the mount is gone with the boot.
        connection: Connection::None,
        state: State::Absent,
        ..Record::default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tarbox_supervisor::{Build, Mounter, Process, Stage, Wanted};
    use tarbox_types::ByteSize;

    use super::*;

    #[test]
    fn of_an_earlier_boot_only_what_is_wanted_is_kept() {
        let wanted = Some(Wanted { build: Build("a".into()), memory: ByteSize(7) });
        let server = Mounter {
            process: Process { pid: 1, start_time: 2 },
            build: Build("a".into()),
            stage: Stage::Serving,
            since: Duration::from_secs(9),
        };
        let record = Record {
            wanted: wanted.clone(),
            server: Some(server),
            state: State::Serving { since: Duration::from_secs(9) },
            connection: Connection::Alive,
            served: true,
            ..Record::default()
        };
        assert_eq!(reborn(&record), Record { wanted, ..Record::default() });
    }
}
