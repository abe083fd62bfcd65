//! Mounting and unmounting: with `mount(2)` as root, through `fusermount3` otherwise.

mod fusermount;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, umount2};
use tarbox_types::ErrorKind;

use crate::mounts;

/// The subtype: the mount table says `fuse.tarbox`.
pub const SUBTYPE: &str = "tarbox";

/// What to mount, where, for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// The directory to mount on.
    pub mountpoint: PathBuf,
    /// The source in the mount table, such as a tenant's name.
    pub fsname: String,
    /// The kernel checks permissions by mode and owner. Default true.
    pub default_permissions: bool,
    /// Others than the user who mounts may use it. Default false; without root it also takes `user_allow_other` in
    /// /etc/fuse.conf.
    pub allow_other: bool,
    /// Default false.
    pub read_only: bool,
    /// Set-user-id programs have no effect. Default true; without root it cannot be turned off.
    pub nosuid: bool,
    /// Device files have no effect. Default true; without root it cannot be turned off.
    pub nodev: bool,
    /// No program can be started from it. Default false.
    pub noexec: bool,
    /// Longest read in bytes; 0 (the default): whatever the kernel does.
    pub max_read: u32,
    /// A file system of this type may be at the directory already and is covered. Default: none may.
    pub over: Option<&'static str>,
}

impl MountOptions {
    /// The defaults, for a mount of `fsname` on `mountpoint`.
    pub fn new(mountpoint: impl Into<PathBuf>, fsname: impl Into<String>) -> Self {
        Self {
            mountpoint: mountpoint.into(),
            fsname: fsname.into(),
            default_permissions: true,
            allow_other: false,
            read_only: false,
            nosuid: true,
            nodev: true,
            noexec: false,
            max_read: 0,
            over: None,
        }
    }

    /// Options that mount(2) and fusermount3 both take in their comma-separated list.
    fn shared_list(&self) -> Vec<String> {
        let mut list = Vec::new();
        if self.default_permissions {
            list.push("default_permissions".to_owned());
        }
        if self.allow_other {
            list.push("allow_other".to_owned());
        }
        if self.max_read > 0 {
            list.push(format!("max_read={}", self.max_read));
        }
        list
    }

    fn flags(&self) -> MsFlags {
        let flags = [
            (self.read_only, MsFlags::MS_RDONLY),
            (self.nosuid, MsFlags::MS_NOSUID),
            (self.nodev, MsFlags::MS_NODEV),
            (self.noexec, MsFlags::MS_NOEXEC),
        ];
        flags.into_iter().filter(|(wanted, _)| *wanted).map(|(_, flag)| flag).collect()
    }
}

/// Why nothing was mounted or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The kernel has no FUSE, or the container was not given the device.
    #[error("/dev/fuse is missing (modprobe fuse; in a container, pass the device)")]
    NoDevice,
    /// The device is there, but not for us.
    #[error("/dev/fuse cannot be opened")]
    Device(#[source] io::Error),
    /// Without root there is no other way to mount.
    #[error("fusermount3 is not installed (package fuse3), and only root can mount without it")]
    NoFusermount,
    /// It ran and refused.
    #[error("fusermount3: {message}")]
    Fusermount {
        /// What it wrote.
        message: String,
    },
    /// There is no such directory.
    #[error("{} does not exist", .0.display())]
    NotFound(PathBuf),
    /// Something else than a directory.
    #[error("{} is not a directory", .0.display())]
    NotADirectory(PathBuf),
    /// The directory may not be looked at.
    #[error("{} cannot be read: permission denied", .0.display())]
    Unreadable(PathBuf),
    /// Something is mounted there already.
    #[error("{} is a mount point already ({fstype})", .mountpoint.display())]
    AlreadyMounted {
        /// Where.
        mountpoint: PathBuf,
        /// Type of what is mounted.
        fstype: String,
    },
    /// The process that served the mount is gone, and the mount is still there.
    #[error("{} is a FUSE mount whose process is gone; unmount it first (umount -l)", .0.display())]
    DeadMount(PathBuf),
    /// Nothing is mounted there.
    #[error("{} is not a mount point", .0.display())]
    NotMounted(PathBuf),
    /// Files are open in it, or a directory of it is somebody's working directory.
    #[error("{} is busy", .0.display())]
    Busy(PathBuf),
    /// Anything else.
    #[error("mounting or unmounting {} failed", .mountpoint.display())]
    System {
        /// Where.
        mountpoint: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl MountError {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoDevice | Self::NoFusermount | Self::DeadMount(_) | Self::NotMounted(_) => {
                ErrorKind::FailedPrecondition
            }
            Self::Device(_) | Self::Unreadable(_) | Self::Fusermount { .. } => ErrorKind::PermissionDenied,
            Self::NotFound(_) => ErrorKind::NotFound,
            Self::NotADirectory(_) => ErrorKind::InvalidArgument,
            Self::AlreadyMounted { .. } => ErrorKind::AlreadyExists,
            Self::Busy(_) => ErrorKind::Busy,
            Self::System { .. } => ErrorKind::Internal,
        }
    }
}

/// Mounts, and returns the descriptor on which the kernel's INIT waits.
///
/// # Errors
/// See [`MountError`].
pub fn mount(options: &MountOptions) -> Result<OwnedFd, MountError> {
    let root_mode = check_mountpoint(&options.mountpoint, options.over)?;
    if nix::unistd::geteuid().is_root() {
        mount_as_root(options, root_mode)
    } else {
        fusermount::mount(options)
    }
}

fn mount_as_root(options: &MountOptions, root_mode: u32) -> Result<OwnedFd, MountError> {
    let device = open_device()?;
    let mut list = vec![
        format!("fd={}", device.as_raw_fd()),
        format!("rootmode={:o}", root_mode & libc::S_IFMT),
        format!("user_id={}", nix::unistd::getuid()),
        format!("group_id={}", nix::unistd::getgid()),
    ];
    list.extend(options.shared_list());
    let fstype = format!("fuse.{SUBTYPE}");
    let target = &options.mountpoint;
    nix::mount::mount(
        Some(options.fsname.as_str()),
        target,
        Some(fstype.as_str()),
        options.flags(),
        Some(list.join(",").as_str()),
    )
    .map_err(|errno| mount_error(target, errno))?;
    Ok(device.into())
}

fn mount_error(target: &Path, errno: nix::Error) -> MountError {
    match errno {
        nix::Error::EBUSY => MountError::Busy(target.to_owned()),
        nix::Error::ENODEV => MountError::NoDevice,
        nix::Error::ENOTCONN => MountError::DeadMount(target.to_owned()),
        _ => MountError::System { mountpoint: target.to_owned(), source: errno.into() },
    }
}

fn open_device() -> Result<File, MountError> {
    File::options().read(true).write(true).open("/dev/fuse").map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => MountError::NoDevice,
        _ => MountError::Device(error),
    })
}

/// How long a directory may take to say what it is. A wedged mount never would.
const LOOK: Duration = Duration::from_secs(2);

/// The type of the file system mounted on exactly `path`, if there is one.
fn mounted_at(path: &Path) -> Option<String> {
    let path = std::path::absolute(path).ok()?;
    Some(mounts::at(&path).ok()??.fs_type)
}

/// Makes sure that `path` is a directory on which nothing is mounted, but perhaps what may be covered; returns its mode.
fn check_mountpoint(path: &Path, over: Option<&str>) -> Result<u32, MountError> {
    let mounted = mounted_at(path).filter(|fstype| Some(fstype.as_str()) != over);
    let owned = path.to_owned();
    let (sender, receiver) = mpsc::sync_channel(1);
    // In a thread of its own, which is lost if the path leads into a wedged mount.
    let looked = std::thread::Builder::new().name("mountpoint".to_owned()).spawn(move || {
        let _ = sender.send(std::fs::metadata(owned));
    });
    let seen = looked.ok().and_then(|_| receiver.recv_timeout(LOOK).ok());
    let dead = |error: &io::Error| error.raw_os_error() == Some(libc::ENOTCONN);
    match (seen, mounted) {
        (Some(Err(error)), _) if dead(&error) => Err(MountError::DeadMount(path.to_owned())),
        (_, Some(fstype)) => Err(MountError::AlreadyMounted { mountpoint: path.to_owned(), fstype }),
        (Some(Ok(metadata)), None) if metadata.is_dir() => Ok(metadata.mode()),
        (Some(Ok(_)), None) => Err(MountError::NotADirectory(path.to_owned())),
        (Some(Err(error)), None) => Err(look_error(path, error)),
        (None, None) => Err(MountError::System {
            mountpoint: path.to_owned(),
            source: io::Error::new(io::ErrorKind::TimedOut, "the directory does not answer"),
        }),
    }
}

fn look_error(path: &Path, error: io::Error) -> MountError {
    match error.kind() {
        io::ErrorKind::NotFound => MountError::NotFound(path.to_owned()),
        io::ErrorKind::NotADirectory => MountError::NotADirectory(path.to_owned()),
        io::ErrorKind::PermissionDenied => MountError::Unreadable(path.to_owned()),
        _ => MountError::System { mountpoint: path.to_owned(), source: error },
    }
}

/// Unmounts. `lazy`: now from the tree, the file system itself once it is no longer used.
///
/// # Errors
/// See [`MountError`].
pub fn unmount(path: &Path, lazy: bool) -> Result<(), MountError> {
    if !nix::unistd::geteuid().is_root() {
        return fusermount::unmount(path, lazy);
    }
    let flags = MntFlags::UMOUNT_NOFOLLOW | if lazy { MntFlags::MNT_DETACH } else { MntFlags::empty() };
    umount2(path, flags).map_err(|errno| match errno {
        nix::Error::EBUSY => MountError::Busy(path.to_owned()),
        nix::Error::EINVAL => MountError::NotMounted(path.to_owned()),
        nix::Error::ENOENT => MountError::NotFound(path.to_owned()),
        nix::Error::EACCES => MountError::Unreadable(path.to_owned()),
        _ => MountError::System { mountpoint: path.to_owned(), source: errno.into() },
    })
}
