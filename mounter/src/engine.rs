//! Mounting and driving the file system with the FUSE engine.

use std::{io, os::fd::OwnedFd, path::Path, sync::Arc};

use fuse3::raw::Filesystem;
use tarbox_engine::{
    Ended, MountError, MountOptions, Session, SessionConfig, SessionParts, SlotsLayout, create_slots, mount,
    unmount,
};
use tarbox_store::Tenant;
use tarbox_types::{ErrorKind, KernelCache};
use tokio::runtime::Handle;

use crate::{failure::Failure, mounts};

/// How far the kernel reads ahead, in KiB: one request of the largest size.
const READ_AHEAD_KIB: &str = "1024";

/// Mounts, and serves from then on. `attach` is given the kernel's caches before the first request is served.
///
/// # Errors
/// Where /dev/fuse, mount(2) or fusermount3 refuse.
pub async fn start<F: Filesystem + Send + Sync + 'static>(
    file_system: &Arc<F>,
    attach: impl FnOnce(Arc<dyn KernelCache>),
    tenant: &Tenant,
    mount_point: &Path,
    read_only: bool,
) -> Result<Session, Failure> {
    let is_root = nix::unistd::geteuid().is_root();
    let options = MountOptions {
        read_only,
        // As any file system that root mounts; a user's mount is the user's alone.
        allow_other: is_root,
        nosuid: !is_root,
        nodev: !is_root,
        ..MountOptions::new(mount_point, &tenant.name)
    };
    let doing = || format!("mount {} (see `tarbox doctor`)", mount_point.display());
    let device = mount(&options).map_err(|error: MountError| Failure::Part {
        kind: error.kind(),
        doing: doing(),
        source: error.into(),
    })?;
    let failed = |source: io::Error| Failure::Part {
        kind: ErrorKind::Internal,
        doing: doing(),
        source: source.into(),
    };
    let started = begin(file_system, attach, device).await;
    widen_read_ahead(mount_point);
    if started.is_err() {
        // Nobody would ever answer there.
        let _ = unmount(mount_point, true);
    }
    started.map_err(failed)
}

async fn begin<F: Filesystem + Send + Sync + 'static>(
    file_system: &Arc<F>,
    attach: impl FnOnce(Arc<dyn KernelCache>),
    device: OwnedFd,
) -> io::Result<Session> {
    let slots = create_slots(SlotsLayout { big: 96, ..SlotsLayout::default() })?;
    let parts = SessionParts { devices: vec![device], slots, init: None };
    let session =
        Session::start(Arc::clone(file_system), parts, SessionConfig::default(), Handle::current())?;
    attach(session.kernel_cache());
    if let Err(error) = session.serving().await
        && !matches!(session.wait().await, Ended::Unmounted)
    {
        return Err(error);
    }
    Ok(session)
}

/// Lets the kernel read further ahead than the 128 KiB that a FUSE mount begins with; only root may.
fn widen_read_ahead(mount_point: &Path) {
    let Ok(Some(mount)) = mounts::at(mount_point) else { return };
    let setting = format!("/sys/class/bdi/{}/read_ahead_kb", mount.device);
    if let Err(error) = std::fs::write(&setting, READ_AHEAD_KIB) {
        tracing::debug!(setting, %error, "the kernel's read-ahead stays as it is");
    }
}
