//! What keeper, procfs and the mount table say of a tenant.

use std::{collections::BTreeSet, os::fd::AsFd, sync::Arc};

use tarbox_handover::{
    Kept, ProcessId, SupervisorLink, ToMounter,
    message::Mode,
    protocol::{ROLE_SERVE, ROLE_STAND_BY},
};
use tarbox_supervisor::{Build, Connection, Observation, Observed, Process, Record, Role};
use tokio::sync::mpsc;

use super::{
    Staged,
    mounters::Child,
    mounting::{self, Belongs},
    publication,
    shell::Inbound,
};
use crate::{
    builds::Builds,
    failure::AgentError,
    host::mountinfo::{Mount, Mounts},
    node::Node,
};

/// What is there: for the machine, for talking to, and for handing on.
pub(super) type Seen = (Observation, Vec<Child>, Option<Box<Kept>>);

/// What this agent knows itself: a keeper that has just begun knows nothing.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Who can be talked to already.
    pub(super) children: BTreeSet<Process>,
    /// The descriptors, where this agent has them.
    pub(super) kept: Option<Arc<Kept>>,
    /// Everybody on the record, whoever serves first.
    pub(super) recorded: Vec<(Process, Role)>,
}

impl Known {
    /// Those of a record.
    pub(super) fn of(record: &Record) -> Self {
        let server = record.server.iter().map(|server| (server.process, Role::Serve));
        let spare = record.spare.iter().map(|spare| (spare.process, Role::StandBy));
        let strays = record.strays.iter().map(|stray| (*stray, Role::StandBy));
        Self { recorded: server.chain(spare).chain(strays).collect(), ..Self::default() }
    }
}

/// Looks.
pub(super) async fn observe(
    node: &Arc<Node>,
    staged: &Staged,
    inbox: &mpsc::Sender<Inbound>,
    known: Known,
) -> Result<Seen, AgentError> {
    let kept = match mounting::kept(node, staged).await? {
        None => recovered(node, staged, &known).await?,
        found => found,
    };
    let Known { children: known, recorded, .. } = known;
    let connected = kept.as_ref().filter(|(kept, _)| mounting::is_connected(kept));
    let connection = connection(&mounting::table()?, staged, connected.map(|(_, belongs)| belongs));
    let key = staged.tenant.to_string();
    let children = node.keeper.ask("list the mounters", |client| client.children()).await?;
    let mut mounters = Vec::new();
    let mut reached = Vec::new();
    for child in children.into_iter().filter(|child| child.key == key && child.exited.is_none()) {
        let id = ProcessId { pid: child.pid, start_time: child.start_time };
        let process = Process::from(id);
        if !id.is_alive() {
            continue;
        }
        let role = if child.role == ROLE_STAND_BY { Role::StandBy } else { Role::Serve };
        if known.contains(&process) {
            mounters.push(Observed { process, role, build: build_of(id), linked: true });
            continue;
        }
        let channel = node.keeper.ask("reach a mounter", move |client| client.reach(id)).await;
        let is_noted = recorded.iter().any(|(noted, _)| *noted == process);
        let attended = channel.ok().and_then(|spawned| {
            // Whoever started it may have been cut off before it could say with what. One that has begun takes no notice.
            if let (false, Some((kept, _))) = (is_noted, &kept) {
                let (start, descriptors) =
                    kept.start(if role == Role::StandBy { Mode::StandBy } else { Mode::Serve });
                spawned.link.send(&ToMounter::Start(start), &descriptors).ok()?;
            }
            Child::attend(process, spawned.pidfd, spawned.link, node.keeper.clone(), inbox.clone()).ok()
        });
        mounters.push(Observed { process, role, build: build_of(id), linked: attended.is_some() });
        reached.extend(attended);
    }
    for (process, role) in recorded {
        let id = ProcessId::from(process);
        let is_seen = mounters.iter().any(|seen| seen.process == process);
        if is_seen || !id.is_alive() {
            continue;
        }
        // One that this agent can talk to is given to the keeper with its link; another one's link is lost.
        let linked = known.contains(&process);
        if !linked {
            reached.extend(orphan(node, &key, id, role, inbox).await?);
        }
        mounters.push(Observed { process, role, build: build_of(id), linked });
    }
    Ok((Observation { connection, mounters }, reached, kept.map(|(kept, _)| Box::new(kept))))
}

/// What the keeper had of the tenant, had again: from this agent's duplicates, or from the mounter that serves.
async fn recovered(
    node: &Arc<Node>,
    staged: &Staged,
    known: &Known,
) -> Result<Option<(Kept, Belongs)>, AgentError> {
    let path = publication::resolve(&staged.staging_path).unwrap_or_else(|_| staged.staging_path.clone());
    if !mounting::table()?.top(&path).is_some_and(Mount::is_tarbox) {
        return Ok(None);
    }
    let server = known.recorded.iter().find(|(_, role)| *role == Role::Serve).map(|(process, _)| *process);
    let kept = match (&known.kept, server) {
        (Some(kept), _) => kept.clone(),
        (None, Some(server)) => match Kept::of_mounter(server.into()) {
            Ok(kept) => Arc::new(kept),
            Err(error) => {
                tracing::error!(tenant = %staged.tenant, %error, "the keeper has lost the descriptors, and so has the mounter");
                return Ok(None);
            }
        },
        (None, None) => return Ok(None),
    };
    tracing::warn!(tenant = %staged.tenant, "the keeper had no descriptors: it is given them again");
    mounting::put(node, staged, kept).await?;
    mounting::kept(node, staged).await
}

/// A mounter whose keeper and agent have died: its link is lost, but it can be watched, and told what to do over its control socket.
async fn orphan(
    node: &Arc<Node>,
    key: &str,
    id: ProcessId,
    role: Role,
    inbox: &mpsc::Sender<Inbound>,
) -> Result<Option<Child>, AgentError> {
    let Ok(pidfd) = id.open() else { return Ok(None) };
    // A link whose other end is closed, as the mounter's own is.
    let (link, _) = SupervisorLink::pair().map_err(AgentError::handover("make a link"))?;
    let copy = link.duplicate().map_err(AgentError::handover("duplicate a link"))?;
    let role = if role == Role::Serve { ROLE_SERVE } else { ROLE_STAND_BY };
    let key = key.to_owned();
    let watched =
        node.keeper.ask("have the mounter watched", move |client| client.watch(&key, role, id, copy.as_fd()));
    watched.await?;
    let child = Child::attend(id.into(), pidfd, link, node.keeper.clone(), inbox.clone());
    Ok(child.map(Child::without_link).ok())
}

/// What a process runs; a build of no name where that cannot be seen.
fn build_of(id: ProcessId) -> Build {
    let executable = id.identity().ok().and_then(|identity| identity.executable);
    executable.and_then(|path| Builds::of_executable(&path)).unwrap_or_else(|| Build(String::new()))
}

/// How the tenant's connection is. Pure but for links in the path.
fn connection(mounts: &Mounts, staged: &Staged, belongs: Option<&Belongs>) -> Connection {
    let path = publication::resolve(&staged.staging_path).unwrap_or_else(|_| staged.staging_path.clone());
    match (mounts.top(&path), belongs) {
        (Some(mount), Some(belongs)) if mount.device == belongs.device => Connection::Alive,
        (Some(mount), _) if mount.is_tarbox() => Connection::Dead,
        (Some(_) | None, _) => Connection::None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use tarbox_rpc::csi::capability::MountWish;

    #[test]
    fn a_connection_lives_as_long_as_the_keeper_has_the_descriptors_of_what_is_mounted() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let staging = directory.path().canonicalize().expect("path").join("s");
        let staged = Staged {
            tenant: tarbox_types::TenantId::random(),
            staging_path: staging.clone(),
            wish: MountWish {
                read_only: false,
                nosuid: false,
                nodev: false,
                noexec: false,
                group: None,
                many_readers: false,
            },
            name: String::new(),
            database_url: String::new(),
            login: None,
            options: vec![],
            changed: Default::default(),
            user: None,
            native: vec![],
            memory: tarbox_types::ByteSize(0),
            published: Default::default(),
            inline: None,
        };
        let table = |device: &str, path: &Path| {
            Mounts::parse(format!("1 0 {device} / {} rw - fuse.tarbox a rw\n", path.display()).as_bytes())
        };
        let ours = Belongs { device: "0:7".into() };
        assert_eq!(connection(&table("0:7", &staging), &staged, Some(&ours)), Connection::Alive);
        assert_eq!(connection(&table("0:8", &staging), &staged, Some(&ours)), Connection::Dead);
        assert_eq!(connection(&table("0:7", &staging), &staged, None), Connection::Dead);
        assert_eq!(connection(&table("0:7", Path::new("/e")), &staged, Some(&ours)), Connection::None);
    }
}
