//! Directories to work in: on the disk's ext4, on tmpfs, on a small loop device.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statfs::{EXT4_SUPER_MAGIC, statfs},
};
use tempfile::TempDir;

use crate::command::succeed;

const LIMIT: Duration = Duration::from_secs(60);

/// Fails the test unless it runs as root: mounting, other users and device nodes need it.
///
/// # Panics
/// If it does not.
pub fn require_root() {
    assert!(nix::unistd::geteuid().is_root(), "the whole-system tests need root");
}

/// A directory of a test's own, removed with all in it. What is mounted on it is unmounted first.
#[derive(Debug)]
pub struct Scratch {
    mounted: Option<PathBuf>,
    root: PathBuf,
    // Last: fields are dropped in this order, and nothing may be mounted in it any more.
    _dir: TempDir,
}

impl Scratch {
    /// A directory on the disk: below `TESTS_DIR`, else `/var/tmp`.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn on_disk() -> Result<Self> {
        let base = std::env::var("TESTS_DIR").unwrap_or_else(|_| "/var/tmp".into());
        let dir = tempfile::Builder::new().prefix("tarbox-test-").tempdir_in(base)?;
        // Other users have to get through it.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        Ok(Self { mounted: None, root: dir.path().to_owned(), _dir: dir })
    }

    /// A directory on ext4: the disk, or where that is something else, an ext4 in a loop device.
    ///
    /// # Errors
    /// If neither can be had.
    pub fn on_ext4() -> Result<Self> {
        let disk = Self::on_disk()?;
        if statfs(disk.path())?.filesystem_type() == EXT4_SUPER_MAGIC {
            Ok(disk)
        } else {
            Self::loop_ext4(4096)
        }
    }

    /// A tmpfs of its own, so large.
    ///
    /// # Errors
    /// If it cannot be mounted.
    pub fn tmpfs(mib: u64) -> Result<Self> {
        let mut disk = Self::on_disk()?;
        let at = disk.sub("tmpfs")?;
        let options = format!("size={mib}m,mode=755");
        mount(Some("tmpfs"), &at, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))?;
        disk.mounted = Some(at.clone());
        disk.root = at;
        Ok(disk)
    }

    /// An ext4 of its own in a file, so large.
    ///
    /// # Errors
    /// If it cannot be made or mounted.
    pub fn loop_ext4(mib: u64) -> Result<Self> {
        let mut disk = Self::on_disk()?;
        let (image, at) = (disk.path().join("image"), disk.sub("ext4")?);
        fs::File::create(&image)?.set_len(mib << 20)?;
        succeed(Command::new("mkfs.ext4").arg("-q").arg(&image), LIMIT)?;
        succeed(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at), LIMIT)
            .context("loop mount")?;
        disk.mounted = Some(at.clone());
        disk.root = at;
        Ok(disk)
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// A directory in it, made if it is missing.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn sub(&self, name: &str) -> Result<PathBuf> {
        ensure!(!name.starts_with('/'), "a name inside the scratch directory");
        let path = self.root.join(name);
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(at) = self.mounted.take() {
            let _ = umount2(&at, MntFlags::MNT_DETACH);
        }
    }
}
