//! Native mounts: directories of the host over a tenant's tree, at the host's own speed. For the agent, and for a `tarbox-mount` of root's.
//!
//! A source is found below a directory that is allowed, a mount point below the tenant's root, both without a step outside: what has
//! been looked at is what is mounted, whoever changes links meanwhile.

use std::{
    ffi::OsStr,
    fmt,
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
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
pub use tarbox_rpc::csi::native::{NativeMount, parse};
use tarbox_types::ErrorKind;

/// Between looking whether something is mounted and mounting it nobody else mounts: a call that was given up may still be at it.
static PUTTING: Mutex<()> = Mutex::new(());
/// How often a path is walked again that was changed meanwhile.
const WALKS: usize = 16;

/// A directory of the host that tenants may show inside them, with all below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NativeSource {
    /// Where, absolute.
    pub path: PathBuf,
    /// Whether for writing as well.
    pub writable: bool,
}

impl fmt::Display for NativeSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.path.display(), if self.writable { "rw" } else { "ro" })
    }
}

/// Why a native mount is not there.
#[derive(Debug, thiserror::Error)]
pub enum NativeError {
    /// What is not allowed.
    #[error("{0}")]
    Denied(String),
    /// What is not there, or in the way.
    #[error("{0}")]
    Precondition(String),
    /// The system.
    #[error("cannot {doing}")]
    Io {
        /// What was being done, to what.
        doing: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl NativeError {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Denied(_) => ErrorKind::PermissionDenied,
            Self::Precondition(_) => ErrorKind::FailedPrecondition,
            Self::Io { source, .. } => ErrorKind::of_io(source),
        }
    }

    fn io(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let doing = format!("{doing} {}", path.display());
        move |source| Self::Io { doing, source }
    }
}

/// Sees that nothing is asked for that is not allowed; nothing is changed.
///
/// # Errors
/// [`NativeError::Denied`] for what is outside, [`NativeError::Precondition`] for what is not there.
pub fn check(allowed: &[NativeSource], wanted: &[NativeMount]) -> Result<(), NativeError> {
    wanted.iter().try_for_each(|mount| {
        let place = Place::of(allowed, mount)?;
        match place.open() {
            Err(Walk::Missing) if place.may_make => Ok(()),
            Err(why) => Err(place.refused(why)),
            Ok(_) => Ok(()),
        }
    })
}

/// Mounts what is wanted and not there yet over the tree at `root`, a mount. May wait for whoever serves it.
///
/// # Errors
/// As [`check`].
pub fn compose(allowed: &[NativeSource], wanted: &[NativeMount], root: &Path) -> Result<(), NativeError> {
    if wanted.is_empty() {
        return Ok(());
    }
    // What is mounted below would else appear in, and go with, every place where the tenant is shown.
    mount_tree::set_apart(root).map_err(NativeError::io("keep apart the mount at", root))?;
    let opened = open_directory(root).map_err(NativeError::io("open", root))?;
    let owner = Owner::of(&opened).map_err(NativeError::io("look at", root))?;
    wanted.iter().try_for_each(|mount| put(allowed, mount, root, &opened, &owner))
}

/// Takes away what was mounted over the tree at `root` at these paths of the tenant, the last first, also where it is in use: nothing in
/// it is touched. What is not there is left alone.
///
/// # Errors
/// As umount(2).
pub fn take_away<'p>(
    root: &Path,
    paths: impl DoubleEndedIterator<Item = &'p Path>,
) -> Result<(), NativeError> {
    for path in paths.rev() {
        let point = root.join(path.strip_prefix("/").unwrap_or(path));
        let is_there = mounts::at(&point).map_err(NativeError::io("read the mount at", &point))?.is_some();
        if is_there {
            umount2(&point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
                .map_err(|errno| NativeError::io("unmount", &point)(errno.into()))?;
        }
    }
    Ok(())
}

fn put(
    allowed: &[NativeSource],
    wanted: &NativeMount,
    tree: &Path,
    root: &OwnedFd,
    owner: &Owner,
) -> Result<(), NativeError> {
    let inside = wanted.path.strip_prefix("/").unwrap_or(&wanted.path);
    let point = tree.join(inside);
    let restrictions = Restrictions { read_only: wanted.read_only, nosuid: true, nodev: true, noexec: false };
    if is_there(&point, wanted, restrictions)? {
        return Ok(());
    }
    let place = Place::of(allowed, wanted)?;
    let source = place.open_or_make(owner)?;
    let at = mount_point(root, inside).map_err(|error| no_mount_point(wanted, error))?;
    let doing = format!("mount {} at", wanted.source.display());
    let failed = || NativeError::io(&doing, &point);
    let copy = Tree::copy(source.as_fd(), Extent::One, restrictions).map_err(failed())?;
    let _nobody_else = PUTTING.lock();
    if is_there(&point, wanted, restrictions)? {
        return Ok(());
    }
    copy.put(at.as_fd(), &point).map_err(failed())
}

/// Whether it is mounted; one that was cut off before it had its restrictions is taken away.
fn is_there(point: &Path, wanted: &NativeMount, restrictions: Restrictions) -> Result<bool, NativeError> {
    loop {
        let there = mounts::at(point).map_err(NativeError::io("read the mount at", point))?;
        let Some(there) = there else { return Ok(false) };
        if restrictions.hold_on(&there) && there.has("ro") == wanted.read_only {
            return Ok(true);
        }
        umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
            .map_err(|errno| NativeError::io("take away the half-made mount at", point)(errno.into()))?;
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

impl Walk {
    fn of(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::NotFound { Self::Missing } else { Self::Other(error) }
    }
}

impl<'m> Place<'m> {
    /// The innermost allowed directory that holds it decides.
    fn of(allowed: &'m [NativeSource], wanted: &'m NativeMount) -> Result<Self, NativeError> {
        let holding = allowed.iter().filter(|allowed| wanted.source.starts_with(&allowed.path));
        let found = holding.max_by_key(|allowed| allowed.path.components().count()).ok_or_else(|| {
            let all: Vec<String> = allowed.iter().map(ToString::to_string).collect();
            let all = if all.is_empty() { "none".to_owned() } else { all.join(", ") };
            NativeError::Denied(format!(
                "nativeMounts: {} (for {}) is not below a directory that this node allows (nativeSources: {all})",
                wanted.source.display(),
                wanted.path.display()
            ))
        })?;
        if !wanted.read_only && !found.writable {
            return Err(NativeError::Denied(format!(
                "nativeMounts: {} (for {}) is asked for with mode \"rw\", and this node allows {found}",
                wanted.source.display(),
                wanted.path.display()
            )));
        }
        let rest = wanted.source.strip_prefix(&found.path).unwrap_or(Path::new(""));
        Ok(Self { wanted, allowed: found, rest, may_make: found.writable && !wanted.read_only })
    }

    fn root(&self) -> Result<OwnedFd, Walk> {
        open_directory(&self.allowed.path).map_err(Walk::of)
    }

    fn open(&self) -> Result<OwnedFd, Walk> {
        let root = self.root()?;
        if self.rest.as_os_str().is_empty() { Ok(root) } else { Ok(beneath(&root, self.rest)?) }
    }

    /// A missing one is made where it may be written, for whoever the tenant's root belongs to.
    fn open_or_make(&self, owner: &Owner) -> Result<OwnedFd, NativeError> {
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

    fn refused(&self, why: Walk) -> NativeError {
        let (source, path) = (self.wanted.source.display(), self.wanted.path.display());
        match why {
            Walk::Missing => NativeError::Precondition(format!(
                "nativeMounts: {source} (for {path}) does not exist on this node"
            )),
            Walk::Outside => NativeError::Denied(format!(
                "nativeMounts: {source} (for {path}) leads out of {}, which is all that this node allows",
                self.allowed.path.display()
            )),
            Walk::Other(error) if error.kind() == io::ErrorKind::NotADirectory => {
                NativeError::Precondition(format!("nativeMounts: {source} (for {path}) is not a directory"))
            }
            Walk::Other(error) => {
                NativeError::io("open the source of a native mount,", &self.wanted.source)(error)
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

fn no_mount_point(wanted: &NativeMount, errno: Errno) -> NativeError {
    let path = wanted.path.display();
    match errno {
        Errno::ELOOP => NativeError::Precondition(format!(
            "nativeMounts: {path} leads over a symbolic link in the tenant: remove it, or name another path"
        )),
        Errno::ENOTDIR => {
            NativeError::Precondition(format!("nativeMounts: {path} is not a directory in the tenant"))
        }
        Errno::EROFS => NativeError::Precondition(format!(
            "nativeMounts: {path} is missing in the tenant and cannot be made: it is read-only there"
        )),
        errno => NativeError::io("make the mount point in the tenant,", &wanted.path)(errno.into()),
    }
}

#[cfg(test)]
mod tests;
