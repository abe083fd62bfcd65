//! A control group per tenant, below the keeper's own: memory limits, and a handle on all of a tenant's processes. Versions 1 and 2.
//!
//! Of version 1 only the memory hierarchy is used. Nothing is written above the groups that are made here, with one exception: version 2
//! hands a controller down only from a group without processes, so those in the keeper's own group move one level down first.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use parking_lot::Mutex;
use tarbox_types::ByteSize;

use super::mountinfo::{Mount, Mounts};
use crate::failure::AgentError;

/// Where those processes go that stood where groups are made (version 2).
const OWN: &str = "tarbox-keeper";
/// How often an emptying group is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Which interface a hierarchy has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// The memory controller's own hierarchy.
    V1,
    /// The unified hierarchy.
    V2,
}

/// The place below which tenants get their groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroups {
    version: Version,
    parent: PathBuf,
}

/// Every place below which this agent has made groups: what is left below one that was left behind has to go as well.
#[derive(Debug, Default)]
pub struct Places(Mutex<Vec<Cgroups>>);

/// One tenant's group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    version: Version,
    directory: PathBuf,
}

impl Cgroups {
    /// Finds the group of a process: what is mounted, and where in it the process stands. None where no memory controller is mounted, or
    /// not where the process stands.
    ///
    /// # Errors
    /// Where the process is gone.
    pub fn of(pid: u32) -> Result<Option<Self>, AgentError> {
        let path = PathBuf::from(format!("/proc/{pid}/cgroup"));
        let membership = fs::read_to_string(&path).map_err(AgentError::io("read", &path))?;
        let mounts = Mounts::read().map_err(AgentError::io("read", Path::new("/proc/self/mountinfo")))?;
        Ok(find(mounts.all(), &membership, |directory| {
            fs::read_to_string(directory.join("cgroup.controllers")).unwrap_or_default()
        }))
    }

    /// Groups below this directory.
    #[must_use]
    pub fn below(version: Version, parent: PathBuf) -> Self {
        Self { version, parent }
    }

    /// Which interface it is.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Makes a tenant's group, or finds it.
    ///
    /// # Errors
    /// Where the parent may not be written.
    pub fn make(&self, name: &str) -> Result<Cgroup, AgentError> {
        if self.version == Version::V2 {
            self.hand_down()?;
        }
        let group = self.group(name);
        match fs::create_dir(&group.directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(AgentError::io("make the control group", &group.directory)(error))
            }
            Ok(()) | Err(_) => Ok(group),
        }
    }

    /// The group for a tenant's next mounter. There are two, so that a stand-by has its own limit beside the one that serves.
    ///
    /// # Errors
    /// Where the parent may not be written.
    pub fn vacant(&self, tenant: &str) -> Result<Cgroup, AgentError> {
        let [first, second] = self.both(tenant);
        // Where both are in use, one of the two is about to end.
        let name =
            if first.processes().is_empty() || !second.processes().is_empty() { first } else { second };
        self.make(&name.directory.file_name().unwrap_or_default().to_string_lossy())
    }

    /// Both groups of a tenant, whether they are there or not.
    #[must_use]
    pub fn both(&self, tenant: &str) -> [Cgroup; 2] {
        [0, 1].map(|number| self.group(&format!("tarbox-{tenant}-{number}")))
    }

    /// A tenant's group, whether it is there or not.
    #[must_use]
    pub fn group(&self, name: &str) -> Cgroup {
        Cgroup { version: self.version, directory: self.parent.join(name) }
    }

    /// Lets groups below have the memory controller.
    fn hand_down(&self) -> Result<(), AgentError> {
        let control = self.parent.join("cgroup.subtree_control");
        let given = fs::read_to_string(&control).map_err(AgentError::io("read", &control))?;
        if given.split_whitespace().any(|controller| controller == "memory") {
            return Ok(());
        }
        let own = self.parent.join(OWN);
        fs::create_dir_all(&own).map_err(AgentError::io("make the control group", &own))?;
        for pid in processes(&self.parent) {
            // One that has ended meanwhile needs no place.
            let _ = fs::write(own.join("cgroup.procs"), pid.to_string());
        }
        fs::write(&control, "+memory").map_err(AgentError::io("hand the memory controller down in", &control))
    }
}

impl Places {
    /// Where the process's groups are made now.
    ///
    /// # Errors
    /// Where it is gone, or stands where no memory controller is mounted.
    pub fn current(&self, pid: u32) -> Result<Cgroups, AgentError> {
        let found = self.look(pid)?;
        found.ok_or_else(|| {
            AgentError::Unusable(format!(
                "no memory controller is mounted where process {pid} stands (neither a version 1 hierarchy `memory` nor version 2 with \
                 the controller `memory`)"
            ))
        })
    }

    /// Both groups of a tenant in every place.
    ///
    /// # Errors
    /// Where the process is gone: its place may be one that is not known yet.
    pub fn groups(&self, pid: u32, tenant: &str) -> Result<Vec<Cgroup>, AgentError> {
        self.look(pid)?;
        Ok(self.known(tenant))
    }

    /// How often the kernel has killed a mounter of the tenant for want of memory, in every place that is known.
    #[must_use]
    pub fn oom_kills(&self, pid: u32, tenant: &str) -> u64 {
        // Where the process is gone, the count has to be that of the places before: one that shrinks would be taken for a kill when it is back.
        let _ = self.look(pid);
        self.known(tenant).iter().map(Cgroup::oom_kills).sum()
    }

    fn known(&self, tenant: &str) -> Vec<Cgroup> {
        self.0.lock().iter().flat_map(|place| place.both(tenant)).collect()
    }

    fn look(&self, pid: u32) -> Result<Option<Cgroups>, AgentError> {
        let found = Cgroups::of(pid)?;
        let mut known = self.0.lock();
        if let Some(place) = found.as_ref().filter(|place| !known.contains(place)) {
            known.push(place.clone());
        }
        drop(known);
        Ok(found)
    }
}

impl Cgroup {
    /// Its directory: what a mounter's start has to name.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Limits the memory, bytes. A limit below what is in use makes the kernel reclaim, then kill.
    ///
    /// # Errors
    /// Where the group is not there.
    pub fn limit_memory(&self, limit: ByteSize) -> Result<(), AgentError> {
        let file = self.directory.join(match self.version {
            Version::V1 => "memory.limit_in_bytes",
            Version::V2 => "memory.max",
        });
        fs::write(&file, limit.bytes().to_string()).map_err(AgentError::io("limit the memory by", &file))?;
        if self.version == Version::V2 {
            // The whole mounter or nothing: half of its threads' work is of no use.
            let group = self.directory.join("memory.oom.group");
            fs::write(&group, "1").map_err(AgentError::io("write", &group))?;
        }
        Ok(())
    }

    /// How often the kernel has killed here for want of memory. Compare before and after: it only grows.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        let file = match self.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        let text = fs::read_to_string(self.directory.join(file)).unwrap_or_default();
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    }

    /// The processes in it, in this process's namespace.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        processes(&self.directory)
    }

    /// Kills all processes in it and removes it. One that is not there is removed already.
    ///
    /// # Errors
    /// Where somebody does not die within `limit`; the message names them.
    pub fn remove(&self, limit: Duration) -> Result<(), AgentError> {
        let deadline = Instant::now() + limit;
        loop {
            match fs::remove_dir(&self.directory) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) if error.kind() != io::ErrorKind::ResourceBusy => {
                    return Err(AgentError::io("remove the control group", &self.directory)(error));
                }
                Err(_) if Instant::now() < deadline => self.kill(),
                Err(error) => {
                    let doing = format!(
                        "remove the control group, which holds the processes {:?},",
                        self.processes()
                    );
                    return Err(AgentError::io(&doing, &self.directory)(error));
                }
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    fn kill(&self) {
        if self.version == Version::V2 && fs::write(self.directory.join("cgroup.kill"), "1").is_ok() {
            return;
        }
        for pid in
            self.processes().into_iter().filter_map(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0)
        {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

fn processes(directory: &Path) -> Vec<u32> {
    let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|pid| pid.parse().ok()).collect()
}

/// The directory of a process's memory group. Pure, but for `controllers`, which reads a directory's `cgroup.controllers`.
///
/// The memory hierarchy of version 1 where there is one: a controller is in one hierarchy only.
fn find(mounts: &[Mount], membership: &str, controllers: impl Fn(&Path) -> String) -> Option<Cgroups> {
    // `4:memory:/path` of version 1, `0::/path` of version 2. Source: cgroups(7).
    let path_of = |wanted: &dyn Fn(&str) -> bool| {
        membership.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let is_it = wanted(fields.next()?);
            fields.next().filter(|_| is_it).map(PathBuf::from)
        })
    };
    let has_memory = |list: &str| list.split([',', ' ', '\n']).any(|name| name == "memory");
    let v1 = mounts.iter().filter(|mount| mount.fs_type == "cgroup" && mount.point.ends_with("memory"));
    let v1 = v1.chain(mounts.iter().filter(|mount| mount.fs_type == "cgroup" && has_memory(&named(mount))));
    let v1 = v1.last().zip(path_of(&|names| has_memory(names)));
    if let Some(directory) = v1.and_then(|(mount, path)| inside(mount, &path)) {
        return Some(Cgroups::below(Version::V1, directory));
    }
    let v2 = mounts.iter().rfind(|mount| mount.fs_type == "cgroup2");
    let directory = v2.zip(path_of(&str::is_empty)).and_then(|(mount, path)| inside(mount, &path))?;
    has_memory(&controllers(&directory)).then(|| Cgroups::below(Version::V2, directory))
}

/// The controllers that a hierarchy of version 1 is named after: `cpu,memory`.
fn named(mount: &Mount) -> String {
    mount.point.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Where a group is seen: a mount may show only a part of its hierarchy. Who was moved down still belongs where it was.
fn inside(mount: &Mount, path: &Path) -> Option<PathBuf> {
    let path = if path.ends_with(OWN) { path.parent()? } else { path };
    let rest = path.strip_prefix(&mount.root).ok()?;
    // `join("")` would leave a slash at the end.
    Some(if rest.as_os_str().is_empty() { mount.point.clone() } else { mount.point.join(rest) })
}

#[cfg(test)]
mod tests;
