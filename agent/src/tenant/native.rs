//! Native mounts: directories of the host over the staged tree, at the host's own speed.
//!
//! A source is found below a directory that the node's configuration allows, a mount point below the tenant's root, both without a
//! step outside: what has been looked at is what is mounted, whoever changes links meanwhile.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2},
    mount::{MntFlags, umount2},
    sys::stat::{Mode, fchmod, mkdirat},
    unistd::{Gid, Uid, fchown},
};
use parking_lot::Mutex;
use tarbox_engine::{
    mount_tree::{self, Extent, Restrictions, Tree},
    mounts,
};

use super::{Staged, blocking, resolve};
use tarbox_rpc::csi::native::NativeMount;

use crate::{failure::AgentError, node::Node, settings::NativeSource};

/// Between looking whether something is mounted and mounting it nobody else mounts: a call that was given up may still be at it.
static PUTTING: Mutex<()> = Mutex::new(());
/// How often a path is walked again that was changed meanwhile.
const WALKS: usize = 16;

/// Sees that nothing is asked for that this node does not allow; nothing is changed.
///
/// # Errors
/// [`AgentError::Denied`] for what is outside, [`AgentError::Precondition`] for what is not there.
pub(crate) fn check(allowed: &[NativeSource], wanted: &[NativeMount]) -> Result<(), AgentError> {
    wanted.iter().try_for_each(|mount| {
        let place = Place::of(allowed, mount)?;
        match place.open() {
            Err(Walk::Missing) if place.may_make => Ok(()),
            Err(why) => Err(place.refused(why)),
            Ok(_) => Ok(()),
        }
    })
}

/// Mounts what is wanted and not there yet over the staged tree. May wait for the mounter, but not beyond `limit`.
///
/// # Errors
/// As [`check`]; [`AgentError::Unfinished`] where the mounter does not answer in time.
pub(crate) async fn compose(node: &Arc<Node>, staged: &Staged, limit: Duration) -> Result<(), AgentError> {
    if staged.native.is_empty() {
        return Ok(());
    }
    let (allowed, wanted) = (node.settings.native_sources.clone(), staged.clone());
    let done = tokio::time::timeout(limit, blocking(move || compose_now(&allowed, &wanted))).await;
    done.unwrap_or_else(|_| {
        Err(AgentError::Unfinished {
            tenant: staged.tenant,
            what: "mounting the native mounts",
            why: "the tenant does not answer".to_owned(),
        })
    })
}

fn compose_now(allowed: &[NativeSource], staged: &Staged) -> Result<(), AgentError> {
    let staging = resolve(&staged.staging_path).map_err(AgentError::io("resolve", &staged.staging_path))?;
    // What is mounted below would else appear in, and go with, every place where the tenant is published.
    mount_tree::set_apart(&staging).map_err(AgentError::io("keep apart the mount at", &staging))?;
    let root = open_directory(&staging).map_err(AgentError::io("open", &staging))?;
    let owner = Owner::of(&root).map_err(AgentError::io("look at", &staging))?;
    staged.native.iter().try_for_each(|mount| put(allowed, mount, &staging, &root, &owner))
}

fn put(
    allowed: &[NativeSource],
    wanted: &NativeMount,
    staging: &Path,
    root: &OwnedFd,
    owner: &Owner,
) -> Result<(), AgentError> {
    let inside = wanted.path.strip_prefix("/").unwrap_or(&wanted.path);
    let point = staging.join(inside);
    let restrictions = Restrictions { read_only: wanted.read_only, nosuid: true, nodev: true, noexec: false };
    if is_there(&point, wanted, restrictions)? {
        return Ok(());
    }
    let place = Place::of(allowed, wanted)?;
    let source = place.open_or_make(owner)?;
    let at = mount_point(root, inside).map_err(|error| no_mount_point(wanted, error))?;
    let doing = format!("mount {} at", wanted.source.display());
    let failed = || AgentError::io(&doing, &point);
    let tree = Tree::copy(source.as_fd(), Extent::One, restrictions).map_err(failed())?;
    let _nobody_else = PUTTING.lock();
    if is_there(&point, wanted, restrictions)? {
        return Ok(());
    }
    tree.put(at.as_fd(), &point).map_err(failed())
}

/// Whether it is mounted; one that was cut off before it had its restrictions is taken away.
fn is_there(point: &Path, wanted: &NativeMount, restrictions: Restrictions) -> Result<bool, AgentError> {
    loop {
        let there = mounts::at(point).map_err(AgentError::io("read the mount at", point))?;
        let Some(there) = there else { return Ok(false) };
        if restrictions.hold_on(&there) && there.has("ro") == wanted.read_only {
            return Ok(true);
        }
        umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
            .map_err(|errno| AgentError::io("take away the half-made mount at", point)(errno.into()))?;
    }
}

// === Sources ===

/// Where on the host a source is, and what may be done there.
struct Place<'m> {
    wanted: &'m NativeMount,
    allowed: &'m NativeSource,
    /// Below the allowed directory; empty for that itself.
    rest: &'m Path,
    may_make: bool,
}

/// Why a walk did not come to a directory.
enum Walk {
    Missing,
    /// It leads out, or over a link of /proc.
    Outside,
    Other(io::Error),
}

impl From<Errno> for Walk {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::ENOENT => Self::Missing,
            Errno::EXDEV | Errno::ELOOP => Self::Outside,
            errno => Self::Other(errno.into()),
        }
    }
}

impl<'m> Place<'m> {
    /// The innermost allowed directory that holds it decides.
    fn of(allowed: &'m [NativeSource], wanted: &'m NativeMount) -> Result<Self, AgentError> {
        let holding = allowed.iter().filter(|allowed| wanted.source.starts_with(&allowed.path));
        let found = holding.max_by_key(|allowed| allowed.path.components().count()).ok_or_else(|| {
            let all: Vec<String> = allowed.iter().map(ToString::to_string).collect();
            let all = if all.is_empty() { "none".to_owned() } else { all.join(", ") };
            AgentError::Denied(format!(
                "nativeMounts: {} (for {}) is not below a directory that this node allows (nativeSources: {all})",
                wanted.source.display(),
                wanted.path.display()
            ))
        })?;
        if !wanted.read_only && !found.writable {
            return Err(AgentError::Denied(format!(
                "nativeMounts: {} (for {}) is asked for with mode \"rw\", and this node allows {found}",
                wanted.source.display(),
                wanted.path.display()
            )));
        }
        let rest = wanted.source.strip_prefix(&found.path).unwrap_or(Path::new(""));
        Ok(Self { wanted, allowed: found, rest, may_make: found.writable && !wanted.read_only })
    }

    fn root(&self) -> Result<OwnedFd, Walk> {
        open_directory(&self.allowed.path).map_err(Walk::Other)
    }

    fn open(&self) -> Result<OwnedFd, Walk> {
        let root = self.root()?;
        if self.rest.as_os_str().is_empty() { Ok(root) } else { Ok(beneath(&root, self.rest)?) }
    }

    /// A missing one is made where it may be written, for whoever the tenant's root belongs to.
    fn open_or_make(&self, owner: &Owner) -> Result<OwnedFd, AgentError> {
        match self.open() {
            Err(Walk::Missing) if self.may_make => self.make(owner),
            found => found,
        }
        .map_err(|why| self.refused(why))
    }

    fn make(&self, owner: &Owner) -> Result<OwnedFd, Walk> {
        let root = self.root()?;
        make_all(&root, self.rest, beneath, |parent, name| owner.give(parent, name))?;
        Ok(beneath(&root, self.rest)?)
    }

    fn refused(&self, why: Walk) -> AgentError {
        let (source, path) = (self.wanted.source.display(), self.wanted.path.display());
        match why {
            Walk::Missing => AgentError::Precondition(format!(
                "nativeMounts: {source} (for {path}) does not exist on this node"
            )),
            Walk::Outside => AgentError::Denied(format!(
                "nativeMounts: {source} (for {path}) leads out of {}, which is all that this node allows",
                self.allowed.path.display()
            )),
            Walk::Other(error) if error.kind() == io::ErrorKind::NotADirectory => {
                AgentError::Precondition(format!("nativeMounts: {source} (for {path}) is not a directory"))
            }
            Walk::Other(error) => {
                AgentError::io("open the source of a native mount,", &self.wanted.source)(error)
            }
        }
    }
}

/// Whom a directory belongs to that is made for a tenant.
struct Owner {
    uid: u32,
    gid: u32,
    mode: u32,
}

impl Owner {
    fn of(root: &OwnedFd) -> io::Result<Self> {
        let found = File::from(root.try_clone()?).metadata()?;
        Ok(Self { uid: found.uid(), gid: found.gid(), mode: found.mode() & 0o7777 })
    }

    fn give(&self, parent: &OwnedFd, name: &OsStr) -> nix::Result<()> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let made = openat(parent, name, flags, Mode::empty())?;
        fchown(&made, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))?;
        fchmod(&made, Mode::from_bits_truncate(self.mode))
    }
}

// === Walking ===

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    File::options().read(true).custom_flags(flags.bits()).open(path).map(OwnedFd::from)
}

fn walk(root: &OwnedFd, path: &Path, resolve: ResolveFlag) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(resolve | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let mut walked = openat2(root, path, how);
    for _ in 1..WALKS {
        // Something was renamed on the way, and the kernel cannot say whether it was left.
        if !matches!(walked, Err(Errno::EAGAIN)) {
            break;
        }
        walked = openat2(root, path, how);
    }
    walked
}

/// Refuses what leads out. (RESOLVE_IN_ROOT would lead it back in, to something else than was meant.)
fn beneath(root: &OwnedFd, path: &Path) -> nix::Result<OwnedFd> {
    walk(root, path, ResolveFlag::RESOLVE_BENEATH)
}

/// In the tenant links are not followed at all: whoever may write there would choose where a mount comes to lie.
fn in_tenant(root: &OwnedFd, path: &Path) -> nix::Result<OwnedFd> {
    walk(root, path, ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_SYMLINKS)
}

/// The directory in the tenant, made where it is missing.
fn mount_point(root: &OwnedFd, inside: &Path) -> nix::Result<OwnedFd> {
    match in_tenant(root, inside) {
        Err(Errno::ENOENT) => {
            make_all(root, inside, in_tenant, |_, _| Ok(()))?;
            in_tenant(root, inside)
        }
        found => found,
    }
}

/// Makes what is missing of a path; `last` is called with the last directory if it was.
fn make_all(
    root: &OwnedFd,
    path: &Path,
    walk: impl Fn(&OwnedFd, &Path) -> nix::Result<OwnedFd>,
    last: impl Fn(&OwnedFd, &OsStr) -> nix::Result<()>,
) -> nix::Result<()> {
    let mut done = PathBuf::from(".");
    for name in path {
        let parent = walk(root, &done)?;
        done.push(name);
        match mkdirat(&parent, name, Mode::from_bits_truncate(0o755)) {
            Ok(()) if done.ends_with(path) => last(&parent, name)?,
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn no_mount_point(wanted: &NativeMount, errno: Errno) -> AgentError {
    let path = wanted.path.display();
    match errno {
        Errno::ELOOP => AgentError::Precondition(format!(
            "nativeMounts: {path} leads over a symbolic link in the tenant: remove it, or name another path"
        )),
        Errno::ENOTDIR => {
            AgentError::Precondition(format!("nativeMounts: {path} is not a directory in the tenant"))
        }
        Errno::EROFS => AgentError::Precondition(format!(
            "nativeMounts: {path} is missing in the tenant and cannot be made: it is read-only there"
        )),
        errno => AgentError::io("make the mount point in the tenant,", &wanted.path)(errno.into()),
    }
}

#[cfg(test)]
mod tests;
