//! Mounting and driving the file system with the FUSE engine.

use std::{path::Path, sync::Arc};

use tarbox_store::Tenant;

use crate::{
    failure::Failure,
    pending::{
        tarbox_engine::{self, EngineError, MountOptions, Session},
        tarbox_fs::FileSystem,
    },
};

/// Mounts, and serves from then on.
///
/// # Errors
/// Where /dev/fuse, mount(2) or fusermount3 refuse.
pub fn start(
    file_system: &Arc<FileSystem>,
    tenant: &Tenant,
    mount_point: &Path,
    read_only: bool,
) -> Result<Session, Failure> {
    let failed = |error: EngineError| Failure::Part {
        kind: error.kind(),
        doing: format!("mount {} (see `tarbox doctor`)", mount_point.display()),
        source: error.into(),
    };
    let device = tarbox_engine::mount(&MountOptions {
        mount_point: mount_point.to_owned(),
        source: tenant.name.clone(),
        read_only,
    })
    .map_err(failed)?;
    let session = Session::start(Arc::clone(file_system), device).map_err(failed)?;
    file_system.attach(session.kernel_cache());
    Ok(session)
}
