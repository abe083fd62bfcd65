//! Mounting and driving the file system with the FUSE engine.

use std::{io, os::fd::OwnedFd, path::Path, sync::Arc};

use fuse3::raw::Filesystem;
use tarbox_engine::{
    Ended, MountError, MountOptions, Recovered, Session, SessionConfig, SessionParts, SlotsLayout,
    create_slots, mount,
};
use tarbox_store::Tenant;
use tokio::runtime::Handle;

use crate::{failure::Failure, mounts};

/// How far the kernel reads ahead, in KiB: one request of the largest size.
const READ_AHEAD_KIB: &str = "1024";

/// Mounts; nothing is answered until somebody serves on the descriptor.
///
/// # Errors
/// Where /dev/fuse, mount(2) or fusermount3 refuse.
pub fn mount_tenant(tenant: &Tenant, mount_point: &Path, read_only: bool) -> Result<OwnedFd, Failure> {
    let is_root = nix::unistd::geteuid().is_root();
    let options = MountOptions {
        read_only,
        // As any file system that root mounts; a user's mount is the user's alone.
        allow_other: is_root,
        nosuid: !is_root,
        nodev: !is_root,
        ..MountOptions::new(mount_point, &tenant.name)
    };
    mount(&options).map_err(|error: MountError| Failure::Part {
        kind: error.kind(),
        doing: format!("mount {} (see `tarbox doctor`)", mount_point.display()),
        source: error.into(),
    })
}

/// The slots of a new mount.
///
/// # Errors
/// As memfd_create(2).
pub fn new_slots() -> io::Result<OwnedFd> {
    create_slots(SlotsLayout { big: 96, ..SlotsLayout::default() })
}

/// Serves on a connection: a new one, or one that an earlier process has served. `attach` is given the session before the
/// first request is served. Returns what was found of requests begun before.
///
/// # Errors
/// Where the descriptors are none of a connection, or the slots none of ours.
pub async fn begin<F: Filesystem + Send + Sync + 'static>(
    file_system: &Arc<F>,
    attach: impl FnOnce(&Session),
    parts: SessionParts,
    config: SessionConfig,
) -> io::Result<(Session, Recovered)> {
    let session = Session::start(Arc::clone(file_system), parts, config, Handle::current())?;
    attach(&session);
    match session.serving().await {
        Ok((_, recovered)) => Ok((session, recovered)),
        // Unmounted before it began.
        Err(_) if matches!(session.wait().await, Ended::Unmounted) => Ok((session, Recovered::default())),
        Err(error) => Err(error),
    }
}

/// Lets the kernel read further ahead than the 128 KiB that a FUSE mount begins with; only root may.
pub fn widen_read_ahead(mount_point: &Path) {
    let Ok(Some(mount)) = mounts::at(mount_point) else { return };
    let setting = format!("/sys/class/bdi/{}/read_ahead_kb", mount.device);
    if let Err(error) = std::fs::write(&setting, READ_AHEAD_KIB) {
        tracing::debug!(setting, %error, "the kernel's read-ahead stays as it is");
    }
}
