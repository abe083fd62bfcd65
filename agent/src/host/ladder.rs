//! Taking a file system away: unmount, then detach, each within a time; and who still holds it.
//!
//! No call here waits for the file system: it may hang. What could nevertheless runs on a thread of its own that is left behind.

use std::{
    collections::{BTreeSet, HashMap},
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::mpsc::{RecvTimeoutError, sync_channel},
    thread,
    time::Duration,
};

use nix::mount::{MntFlags, umount2};

use tarbox_engine::mount_tree;

use super::mountinfo::{Mount, Mounts};
use crate::failure::AgentError;

/// How hard to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// umount(2): fails where it is used.
    Normal,
    /// MNT_DETACH: out of sight at once; it lives on for those who have it open.
    Lazy,
}

/// Somebody who keeps a file system alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// Who.
    pub pid: u32,
    /// Its command's name.
    pub command: String,
    /// How.
    pub how: How,
}

/// How a file system is kept alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// Mounted in the mount namespace of the process: a private copy.
    Mounted(PathBuf),
    /// A file is open there.
    Open,
    /// A file of it is mapped.
    Mapped,
    /// It is the working directory, or the root.
    Stands(PathBuf),
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, command, how } = self;
        match how {
            How::Mounted(at) => {
                write!(f, "{command} (pid {pid}) has it mounted at {} in its own namespace", at.display())
            }
            How::Open => write!(f, "{command} (pid {pid}) has a file open"),
            How::Mapped => write!(f, "{command} (pid {pid}) has a file mapped"),
            How::Stands(at) => write!(f, "{command} (pid {pid}) stands in {}", at.display()),
        }
    }
}

/// Unmounts every mount of `what`'s file system that this process sees, those on top first, and says who keeps it alive nevertheless.
/// The mount at `last` goes last, what is mounted below it first: as long as it is there, the next attempt finds the device.
///
/// Private copies in other namespaces cannot be taken away from here; they are no reason to fail, and stand among the pins.
/// Nothing mounted is success. Blocks for up to `limit`.
///
/// # Errors
/// Where a mount is still seen afterwards: busy, or the kernel did not answer within `limit`. The message names the pins.
pub fn unmount(what: &Mount, last: &Path, step: Step, limit: Duration) -> Result<Vec<Pin>, AgentError> {
    let held = Held::now(what);
    // Where somebody stands can no longer be seen once it is detached.
    let users = (step == Step::Lazy).then(|| held.pins(Depth::Uses));
    let outcome = bounded(limit, {
        let (what, last) = (what.clone(), last.to_owned());
        move || take_away(&what, &last, step)
    });
    match outcome {
        Ok(()) => {
            // Copies that received the mount from here went with it; those that are left are private ones. After a normal unmount nobody here
            // has anything open: the kernel has just said so.
            let uses = users.into_iter().flatten().filter(|pin| !matches!(pin.how, How::Mounted(_)));
            let mut pins: Vec<Pin> = held.pins(Depth::Mounts).into_iter().chain(uses).collect();
            pins.sort_by_key(|pin| pin.pid);
            Ok(pins)
        }
        Err((point, error)) => {
            let named: Vec<_> = held.pins(Depth::Uses).iter().map(ToString::to_string).collect();
            let named = if named.is_empty() { "nobody seems to use it".to_owned() } else { named.join("; ") };
            let doing = format!("unmount the file system {} ({named}) from", what.device);
            Err(AgentError::io(&doing, &point)(error))
        }
    }
}

fn take_away(what: &Mount, last: &Path, step: Step) -> Result<(), (PathBuf, io::Error)> {
    let flags = match step {
        Step::Normal => MntFlags::UMOUNT_NOFOLLOW,
        Step::Lazy => MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH,
    };
    let unknown = |error| (PathBuf::from("/proc/self/mountinfo"), error);
    let is_ours = |mounts: &Mounts| mounts.top(last).is_some_and(|top| top.device == what.device);
    if step == Step::Normal && is_ours(&Mounts::read().map_err(unknown)?) {
        // What was mounted over the file system goes with it: native mounts. Nothing of them is lost. The lazy way takes them along,
        // and asks the file system for none of their names.
        for mount in mount_tree::below(last).map_err(unknown)? {
            umount2(&mount.point, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH)
                .map_err(|errno| (mount.point, errno.into()))?;
        }
    }
    loop {
        let mounts = Mounts::read().map_err(unknown)?;
        let others = mounts.same_as(what).rfind(|mount| mount.point != last);
        let Some(next) = others.or_else(|| mounts.same_as(what).last()) else { return Ok(()) };
        let point = next.point.clone();
        let covered =
            mounts.top(&point).filter(|top| top.device != what.device).map(|top| top.fs_type.clone());
        if let Some(fs_type) = covered {
            return Err((point, io::Error::other(format!("something else ({fs_type}) is mounted over it"))));
        }
        umount2(&point, flags).map_err(|errno| (point, errno.into()))?;
        if mounts.same_as(what).count() == 1 {
            // Not looked at again: its number may be another file system's by now.
            return Ok(());
        }
    }
}

/// Does something on a thread of its own; one that does not come back in time is left behind.
fn bounded<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> Result<T, (PathBuf, io::Error)> + Send + 'static,
) -> Result<T, (PathBuf, io::Error)> {
    // One message, and nobody may be there any more to take it.
    let (done, answer) = sync_channel(1);
    let failed = |error| (PathBuf::from("its mount point"), error);
    thread::Builder::new()
        .name("unmount".to_owned())
        .spawn(move || {
            let _ = done.send(work());
        })
        .map_err(failed)?;
    match answer.recv_timeout(limit) {
        Ok(outcome) => outcome,
        Err(RecvTimeoutError::Timeout) => Err(failed(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("the kernel did not answer within {limit:?}"),
        ))),
        Err(RecvTimeoutError::Disconnected) => {
            Err(failed(io::Error::other("the thread that unmounts has died")))
        }
    }
}

/// How closely processes are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Depth {
    /// What they have mounted.
    Mounts,
    /// Also what they have open, mapped, and where they stand.
    Uses,
}

/// A device and where this process had it mounted: what is open keeps the number of the mount it came through, also after that is gone.
struct Held {
    what: Mount,
    mounts: Vec<Mount>,
}

impl Held {
    fn now(what: &Mount) -> Self {
        let mounts = Mounts::read().unwrap_or_default().same_as(what).cloned().collect();
        Self { what: what.clone(), mounts }
    }

    /// Who keeps the device alive, besides mounts that this process sees; by files of /proc that ask no file system anything.
    fn pins(&self, depth: Depth) -> Vec<Pin> {
        // A mount's number is its own in all namespaces: those that are not ours are private copies.
        let mut seen: BTreeSet<u64> = self.mounts.iter().map(|mount| mount.id).collect();
        let mut pins = Vec::new();
        let mut tables = HashMap::new();
        for pid in pids() {
            let directory = PathBuf::from("/proc").join(pid.to_string());
            let private = self.seen_by(&directory, &mut tables);
            let copies = private.iter().filter(|mount| seen.insert(mount.id));
            let mut found: Vec<How> = copies.map(|mount| How::Mounted(mount.point.clone())).collect();
            if depth == Depth::Uses && pid != std::process::id() {
                let mounts: Vec<&Mount> = self.mounts.iter().chain(&private).collect();
                found.extend(uses(&directory, &self.what.device, &mounts));
            }
            let command = || fs::read_to_string(directory.join("comm")).unwrap_or_default().trim().to_owned();
            pins.extend(found.into_iter().map(|how| Pin { pid, command: command(), how }));
        }
        pins.sort_by_key(|pin| pin.pid);
        pins
    }

    /// Where the process with this directory in /proc sees the device mounted.
    fn seen_by(&self, directory: &Path, tables: &mut Tables) -> Vec<Mount> {
        let read = || {
            let table = fs::read(directory.join("mountinfo")).map(|table| Mounts::parse(&table));
            table.unwrap_or_default().same_as(&self.what).cloned().collect()
        };
        let place = (fs::read_link(directory.join("ns/mnt")), fs::read_link(directory.join("root")));
        match place {
            (Ok(namespace), Ok(root)) => tables.entry((namespace, root)).or_insert_with(read).clone(),
            // Not everybody may ask which namespace a process is in.
            _ => read(),
        }
    }
}

/// What processes of one namespace and root see: the same, which is read once.
type Tables = HashMap<(PathBuf, PathBuf), Vec<Mount>>;

fn pids() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Each way in which a process uses the mounts, once.
fn uses(directory: &Path, device: &str, mounts: &[&Mount]) -> Vec<How> {
    let mut found = Vec::new();
    let stands = ["cwd", "root"].iter().find_map(|link| {
        let at = fs::read_link(directory.join(link)).ok()?;
        mounts.iter().any(|mount| at.starts_with(&mount.point)).then_some(at)
    });
    found.extend(stands.map(How::Stands));
    let ids: BTreeSet<u64> = mounts.iter().map(|mount| mount.id).collect();
    let infos = fs::read_dir(directory.join("fdinfo")).into_iter().flatten().flatten();
    let mut texts = infos.filter_map(|info| fs::read_to_string(info.path()).ok());
    if !ids.is_empty() && texts.any(|text| mount_id(&text).is_some_and(|id| ids.contains(&id))) {
        found.push(How::Open);
    }
    let maps = fs::read_to_string(directory.join("maps")).unwrap_or_default();
    if maps.lines().any(|line| mapped_device(line).is_some_and(|mapped| mapped == device)) {
        found.push(How::Mapped);
    }
    found
}

/// The mount that a descriptor came through. Source: proc(5), `fdinfo`.
fn mount_id(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse().ok()
}

/// The device of a line of `maps`, in decimal as mountinfo has it; there it is hexadecimal. Source: proc(5).
fn mapped_device(line: &str) -> Option<String> {
    let (major, minor) = line.split_whitespace().nth(3)?.split_once(':')?;
    let number = |text| u32::from_str_radix(text, 16).ok();
    Some(format!("{}:{}", number(major)?, number(minor)?))
}

#[cfg(test)]
mod tests;
