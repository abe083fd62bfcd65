//! What keeper, procfs and the mount table say of a tenant.

use std::{collections::BTreeSet, sync::Arc};

use tarbox_handover::{Kept, ProcessId, protocol::ROLE_STAND_BY};
use tarbox_supervisor::{Build, Connection, Observation, Observed, Process, Role};
use tokio::sync::mpsc;

use super::{
    Staged,
    mounters::Child,
    mounting::{self, Belongs},
    publication,
    shell::Inbound,
};
use crate::{builds::Builds, failure::AgentError, host::mountinfo::Mounts, node::Node};

/// What is there: for the machine, for talking to, and for handing on.
pub(super) type Seen = (Observation, Vec<Child>, Option<Box<Kept>>);

/// Looks; those in `known` can be talked to already.
pub(super) async fn observe(
    node: &Arc<Node>,
    staged: &Staged,
    inbox: &mpsc::Sender<Inbound>,
    known: BTreeSet<Process>,
) -> Result<Seen, AgentError> {
    let kept = mounting::kept(node, staged).await?;
    let connection = connection(&mounting::table()?, staged, kept.as_ref().map(|(_, belongs)| belongs));
    let key = staged.tenant.to_string();
    let children = node.keeper.ask("list the mounters", |client| client.children()).await?;
    let mut mounters = Vec::new();
    let mut reached = Vec::new();
    for child in children.into_iter().filter(|child| child.key == key && child.exited.is_none()) {
        let id = ProcessId { pid: child.pid, start_time: child.start_time };
        let process = Process { pid: id.pid, start_time: id.start_time };
        if !id.is_alive() {
            continue;
        }
        let role = if child.role == ROLE_STAND_BY { Role::StandBy } else { Role::Serve };
        if known.contains(&process) {
            mounters.push(Observed { process, role, build: build_of(id), linked: true });
            continue;
        }
        let channel = node.keeper.ask("reach a mounter", move |client| client.reach(id)).await;
        let attended = channel.ok().and_then(|spawned| {
            Child::attend(process, spawned.pidfd, spawned.link, node.keeper.clone(), inbox.clone()).ok()
        });
        mounters.push(Observed { process, role, build: build_of(id), linked: attended.is_some() });
        reached.extend(attended);
    }
    Ok((Observation { connection, mounters }, reached, kept.map(|(kept, _)| Box::new(kept))))
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
    use crate::csi::capability::MountWish;

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
            options: vec![],
            user: None,
            native: vec![],
            memory: tarbox_types::ByteSize(0),
            published: Default::default(),
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
