//! What was staged, as it is kept on disk beside the supervisor's record.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::mount::{MntFlags, umount2};
use serde::{Deserialize, Serialize};
use tarbox_rpc::csi::{capability::MountWish, native::NativeMount, parameters::Parameters};
use tarbox_supervisor::{Connection, Record, State, Stopping};
use tarbox_types::{ByteSize, TenantId, database_url};

use super::{resolve, table};
use crate::{failure::AgentError, host::sentry};

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
    /// The role of the database that its mounters have; `None` = the driver's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) login: Option<String>,
    /// Further options of the mounter: flag and value.
    pub(crate) options: Vec<(String, String)>,
    /// Those of them that were changed since the volume was made.
    #[serde(default)]
    pub(crate) changed: Parameters,
    /// Who the mounter runs as; `None` = as the agent does.
    pub(crate) user: Option<u32>,
    /// Directories of the host that are shown in it, in the order in which they are mounted.
    #[serde(default)]
    pub(crate) native: Vec<NativeMount>,
    /// The memory that it is promised.
    #[serde(default)]
    pub(crate) memory: ByteSize,
    /// Where it is published.
    #[serde(default)]
    pub(crate) published: BTreeMap<PathBuf, Publication>,
    /// Of a volume that a pod asked for itself: the kubelet's id for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) inline: Option<String>,
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
    /// Whether another stage request asks for the same; what is published plays no part, nor what an agent with other settings had
    /// promised, or given its mounters to log in with, nor for which pod's group the volume is, which is a matter of publishing it.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let plain = |staged: &Self| Self {
            published: BTreeMap::new(),
            memory: ByteSize::default(),
            login: None,
            wish: MountWish { group: None, ..staged.wish.clone() },
            ..staged.clone()
        };
        plain(self) == plain(other)
    }
}

/// What holds of an earlier boot's record: what is wanted. Its times, processes and mounts mean nothing now.
pub(crate) fn reborn(record: &Record) -> Record {
    // An unstage that the boot cut off ends: there is nothing to flush with. What its journal may hold the next stage replays.
    let state = match record.wanted {
        Some(_) => State::Absent,
        None => State::Stopping { stage: Stopping::Ending, since: Duration::ZERO },
    };
    Record {
        wanted: record.wanted.clone(),
        build: record.build.clone(),
        memory: record.memory,
        // Kept as known until it is looked at: the mount is gone with the boot.
        connection: Connection::None,
        state,
        ..Record::default()
    }
}

/// Whether a tenant of an earlier boot has to be staged anew before it can be served: what its mounters logged in with was in memory. The
/// kubelet has that done once its pod starts again; before, it looks at the staging path, and for ever where something is mounted there that
/// nobody can serve. Of a volume that a pod asked for itself the path is the agent's own. Pure.
pub(crate) fn awaits_password(staged: &Staged) -> bool {
    database_url::has_users(&staged.database_url) && staged.inline.is_none()
}

/// What of an earlier boot may still be seen where the tenant was: file systems that nobody serves, and what lies under them.
pub(crate) fn clear_earlier(staged: &Staged) -> Result<(), AgentError> {
    [&staged.staging_path].into_iter().chain(staged.published.keys()).try_for_each(|path| clear_stale(path))
}

/// Takes away what lies at a path of ours: no task knows it, so nobody serves it.
///
/// # Errors
/// As umount2(2).
pub(crate) fn clear_stale(path: &Path) -> Result<(), AgentError> {
    let Ok(path) = resolve(path) else { return Ok(()) };
    while table()?.top(&path).is_some_and(|mount| mount.is_tarbox()) {
        umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
            .map_err(|errno| AgentError::io("clear away the dead mount at", &path)(errno.into()))?;
    }
    // Somebody else's mount stands where it is, and on whatever it stands.
    if table()?.top(&path).is_some() { Ok(()) } else { sentry::remove(&path) }
}

#[cfg(test)]
mod tests {
    use tarbox_supervisor::{
        Build, Event, Mounter, Observation, Order, Outcome, Policy, Process, Stage, Tenant, Wanted,
    };

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

    #[test]
    fn an_unstage_that_a_boot_cut_off_ends() {
        let cut_off = Record {
            state: State::Stopping { stage: Stopping::Flushing, since: Duration::from_secs(9) },
            connection: Connection::Alive,
            served: true,
            ..Record::default()
        };
        let nothing = Observation { connection: Connection::None, mounters: vec![] };
        let now = Duration::from_secs(1);
        let (mut machine, effects) = Tenant::resume(Policy::default(), reborn(&cut_off), now, nothing);
        let forget = effects.iter().find(|effect| matches!(effect.order, Order::ForgetState));
        let id = forget.expect("what is left is forgotten").id;
        machine.step(now, Event::EffectDone { id, outcome: Outcome::Done });
        assert_eq!(machine.record().state, State::Gone);
    }
}
