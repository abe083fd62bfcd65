//! Native mounts of a plain `tarbox-mount`: directories of this machine inside the tenant, where root mounts it.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    slice,
};

use nix::unistd::Uid;
use tarbox_native::{NativeError, NativeMount, NativeSource};
use tarbox_types::{ErrorKind, TenantId};

use crate::{failure::Failure, settings::Settings};

/// What is shown, and where.
#[derive(Clone, Debug, Default)]
pub(crate) struct Native {
    /// Each beside what is allowed for it. Who starts this program may name what he likes: that is allowed, and nothing that leads out of it.
    mounts: Vec<(NativeSource, NativeMount)>,
}

impl Native {
    /// Reads what is wanted, and sees that it can be had; nothing is changed.
    ///
    /// # Errors
    /// What is wrong with it; where this process may not mount.
    pub(crate) fn of(settings: &Settings, tenant: TenantId) -> Result<Self, Failure> {
        let mounts = wanted(settings, tenant)?;
        let user = Uid::effective();
        if !mounts.is_empty() && !user.is_root() {
            let message = format!(
                "nativeMounts cannot be had: only root mounts directories of this machine inside a tenant, and this process runs as user {user}; run it as root, or leave nativeMounts out"
            );
            return Err(Failure::refused(ErrorKind::PermissionDenied, message));
        }
        let mounts: Vec<_> = mounts.into_iter().map(|mount| placed(mount, settings.read_only)).collect();
        for (allowed, mount) in &mounts {
            tarbox_native::check(slice::from_ref(allowed), slice::from_ref(mount)).map_err(failed)?;
        }
        Ok(Self { mounts })
    }

    /// Where they are, in the order in which they are mounted; absolute in the tenant.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.mounts.iter().map(|(_, mount)| mount.path.clone()).collect()
    }

    /// Mounts them over the tenant's tree. Asks whoever serves it, for as long as he takes.
    ///
    /// # Errors
    /// Why one cannot be there.
    pub(crate) async fn compose(self, point: PathBuf) -> Result<(), Failure> {
        let composed = tokio::task::spawn_blocking(move || {
            self.mounts.iter().try_for_each(|(allowed, mount)| {
                tarbox_native::compose(slice::from_ref(allowed), slice::from_ref(mount), &point)
            })
        });
        composed
            .await
            .map_err(|error| Failure::refused(ErrorKind::Internal, error.to_string()))?
            .map_err(failed)
    }
}

/// Takes them away from below a mount; what is not there is left alone, and nothing that is in them is touched.
///
/// # Errors
/// As umount(2).
pub(crate) fn take_away(point: &Path, paths: &[PathBuf]) -> Result<(), Failure> {
    tarbox_native::take_away(point, paths.iter().map(PathBuf::as_path)).map_err(failed)
}

/// The paths in the tenant where something of this machine is to be seen; nothing where that cannot be read.
pub(crate) fn paths(settings: &Settings, tenant: TenantId) -> Vec<PathBuf> {
    wanted(settings, tenant).unwrap_or_default().into_iter().map(|mount| mount.path).collect()
}

/// A link that was named is meant to be followed, now and once.
fn placed(mut mount: NativeMount, read_only: bool) -> (NativeSource, NativeMount) {
    mount.read_only |= read_only;
    mount.source = fs::canonicalize(&mount.source).unwrap_or(mount.source);
    let path = mount.source.parent().unwrap_or(&mount.source).to_owned();
    (NativeSource { path, writable: !mount.read_only }, mount)
}

fn wanted(settings: &Settings, tenant: TenantId) -> Result<Vec<NativeMount>, Failure> {
    // There is no claim here whose names a template could stand for.
    let read = tarbox_native::parse(&settings.native_mounts, &HashMap::new(), tenant);
    read.map_err(|error| Failure::Mismatch(error.to_string()))
}

fn failed(error: NativeError) -> Failure {
    Failure::Part {
        kind: error.kind(),
        doing: "show a directory of this machine".to_owned(),
        source: error.into(),
    }
}
