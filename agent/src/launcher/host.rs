//! A keeper that the agent starts and puts outside of whatever runs the agent itself: the end of a pod, of a service or of a session is then
//! none of the mounters.
//!
//! Where systemd manages the control groups it is asked for a transient scope, over the system bus; elsewhere the keeper gets a group of its
//! own at the top of each hierarchy.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use tarbox_handover::Client;
use zbus::Variant;

use super::{Child, LISTENS_WITHIN, Launcher};
use crate::{failure::AgentError, host::mountinfo::Mounts, settings::Settings};

/// The group at the top of each hierarchy.
const GROUP: &str = "tarbox.host";
/// There where systemd runs the machine. Source: sd_booted(3).
const SYSTEMD: &str = "/run/systemd/system";
/// The system bus, where the environment names no other. Source: the D-Bus specification, "Well-known Message Bus Instances".
const BUS: &str = "/run/dbus/system_bus_socket";
/// At a shutdown: mounters are told to commit, and have so long for it.
const STOPS_WITHIN: Duration = Duration::from_secs(30);
/// How often a group is looked at that a process is to be moved into.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How a process gets out of the agent's surroundings on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// A scope of systemd's.
    Scope,
    /// A group in each of these hierarchies.
    Groups(Vec<PathBuf>),
}

/// See the module.
#[derive(Debug)]
pub struct Host {
    child: Child,
}

impl Host {
    /// A keeper of the settings' executable, at the settings' socket.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        Self { child: Child::new(settings) }
    }
}

impl Launcher for Host {
    fn name(&self) -> &'static str {
        "host"
    }

    fn connect(&self) -> Result<Client, AgentError> {
        if let Some(client) = self.child.reach()? {
            return Ok(client);
        }
        let pid = self.child.start()?;
        if let Err(error) = way().and_then(|way| way.take(pid)) {
            // It would end with the agent's surroundings, and nobody would know.
            self.child.abandon();
            return Err(error);
        }
        self.child.wait_for_it()
    }

    fn release(&self, client: Client) {
        self.child.release(client);
        if let Ok(Way::Groups(hierarchies)) = way() {
            for hierarchy in hierarchies {
                // Another agent's keeper may stand there.
                let _ = fs::remove_dir(hierarchy.join(GROUP));
            }
        }
    }
}

/// What this machine offers.
///
/// # Errors
/// Where there are no control groups.
pub(crate) fn way() -> Result<Way, AgentError> {
    if Path::new(SYSTEMD).is_dir()
        || Path::new(BUS).exists()
        || std::env::var_os("DBUS_SYSTEM_BUS_ADDRESS").is_some()
    {
        return Ok(Way::Scope);
    }
    let mounts = Mounts::read().map_err(AgentError::io("read", Path::new("/proc/self/mountinfo")))?;
    let hierarchies = hierarchies(&mounts);
    if hierarchies.is_empty() {
        return Err(AgentError::Unusable(
            "launcher `host` needs systemd or control groups, and neither is here: mount /sys/fs/cgroup, or use the launcher child or runtime"
                .to_owned(),
        ));
    }
    Ok(Way::Groups(hierarchies))
}

/// Where hierarchies are mounted as a whole: below a part of one the keeper would stay where the agent is. Pure.
fn hierarchies(mounts: &Mounts) -> Vec<PathBuf> {
    let is_one = |fs_type: &str| fs_type == "cgroup" || fs_type == "cgroup2";
    let whole = mounts.all().iter().filter(|mount| is_one(&mount.fs_type) && mount.root == Path::new("/"));
    whole.map(|mount| mount.point.clone()).collect()
}

impl Way {
    /// Moves a process. Blocks.
    fn take(&self, pid: u32) -> Result<(), AgentError> {
        match self {
            Self::Scope => take_into_scope(pid),
            Self::Groups(hierarchies) => take_into_groups(pid, hierarchies),
        }
    }
}

// === systemd ===

/// Properties of the scope. Source: org.freedesktop.systemd1(5), systemd.scope(5), systemd.resource-control(5).
fn properties(pid: u32) -> Vec<(&'static str, Variant<'static>)> {
    let stop = u64::try_from(STOPS_WITHIN.as_micros()).unwrap_or(u64::MAX);
    vec![
        ("Description", Variant::from("Tarbox: the keeper and its mounters")),
        ("PIDs", Variant::from(vec![pid])),
        // The groups of the mounters are made below it.
        ("Delegate", Variant::from(true)),
        ("TimeoutStopUSec", Variant::from(stop)),
        ("CollectMode", Variant::from("inactive-or-failed")),
    ]
}

fn take_into_scope(pid: u32) -> Result<(), AgentError> {
    let name = format!("tarbox-keeper-{pid}.scope");
    let refused = |error: zbus::Error| {
        AgentError::Unusable(format!(
            "systemd does not make the scope {name} over the system bus: {error}; in a pod, mount {BUS} of the host and set hostPID"
        ))
    };
    let ask = async {
        let bus = zbus::Connection::system().await?;
        let no_other_units: Vec<(&str, Vec<(&str, Variant<'_>)>)> = Vec::new();
        let (to, path) = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1");
        let interface = "org.freedesktop.systemd1.Manager";
        let body = (name.as_str(), "fail", properties(pid), no_other_units);
        bus.call_method(Some(to), path, Some(interface), "StartTransientUnit", &body).await
    };
    let asked = async { tokio::time::timeout(LISTENS_WITHIN, ask).await };
    match tokio::runtime::Handle::current().block_on(asked) {
        Ok(answer) => drop(answer.map_err(refused)?),
        Err(_) => {
            return Err(AgentError::Unusable(format!("systemd does not answer within {LISTENS_WITHIN:?}")));
        }
    }
    // It is only begun then.
    let place = PathBuf::from(format!("/proc/{pid}/cgroup"));
    let deadline = Instant::now() + LISTENS_WITHIN;
    loop {
        let groups = fs::read_to_string(&place).map_err(AgentError::io("read", &place))?;
        if groups.contains(&name) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(AgentError::Unusable(format!(
                "systemd has not put the keeper (pid {pid}) into {name}"
            )));
        }
        thread::sleep(LOOK_EVERY);
    }
}

// === Without systemd ===

fn take_into_groups(pid: u32, hierarchies: &[PathBuf]) -> Result<(), AgentError> {
    let mut taken = 0;
    for hierarchy in hierarchies {
        let group = hierarchy.join(GROUP);
        match enter(&group, pid) {
            Ok(()) => taken += 1,
            // Not all can be entered: `cpuset` of version 1 wants its processors named first.
            Err(error) => {
                tracing::debug!(group = %group.display(), %error, "the keeper stays where it is in this hierarchy")
            }
        }
    }
    if taken == 0 {
        return Err(AgentError::Unusable(format!(
            "launcher `host` cannot put the keeper into a group {GROUP} of its own in any of {hierarchies:?}: it has to be root, and the groups writable"
        )));
    }
    Ok(())
}

fn enter(group: &Path, pid: u32) -> io::Result<()> {
    match fs::create_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    fs::write(group.join("cgroup.procs"), pid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hierarchies_that_are_seen_whole_lead_out() {
        let mounts = Mounts::parse(
            b"1 0 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
              2 0 0:31 /docker/a /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
              3 0 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n4 0 0:33 / /tmp rw - tmpfs t rw\n",
        );
        assert_eq!(
            hierarchies(&mounts),
            [PathBuf::from("/sys/fs/cgroup/memory"), PathBuf::from("/sys/fs/cgroup/unified")]
        );
    }

    #[test]
    fn the_scope_has_the_process_and_may_have_groups_below_it() {
        let properties = properties(7);
        let of = |name: &str| &properties.iter().find(|(key, _)| *key == name).expect("there").1;
        assert_eq!(*of("PIDs"), Variant::from(vec![7_u32]));
        assert_eq!(*of("Delegate"), Variant::from(true));
        assert_eq!(of("TimeoutStopUSec").value_signature().to_string(), "t");
    }
}
