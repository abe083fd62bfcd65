//! The executables of mounters, by their content: an old one stays as long as it may be gone back to.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Seek, Write},
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use nix::sys::statvfs::{FsFlags, statvfs};
use parking_lot::Mutex;
use tarbox_supervisor::Build;

use crate::failure::AgentError;

/// Digits of a hash that name a build.
const NAME_LENGTH: usize = 16;
const PREFIX: &str = "tarbox-mount-";

/// A directory of executables.
#[derive(Debug)]
pub struct Builds {
    directory: PathBuf,
    /// The program that was installed last: it is asked for again and again, and reading all of it costs tens of milliseconds.
    installed: Mutex<Option<(Stamp, Build)>>,
}

/// What changes when a file's content does: device, inode, size, and the times of the last change of content and of inode.
type Stamp = (u64, u64, u64, (i64, i64), (i64, i64));

fn stamp(file: &File) -> io::Result<Stamp> {
    let found = file.metadata()?;
    let (modified, changed) = ((found.mtime(), found.mtime_nsec()), (found.ctime(), found.ctime_nsec()));
    Ok((found.dev(), found.ino(), found.len(), modified, changed))
}

impl Builds {
    /// Uses a directory, made where it is missing.
    ///
    /// # Errors
    /// As mkdir(2).
    pub fn open(directory: PathBuf) -> Result<Self, AgentError> {
        fs::create_dir_all(&directory).map_err(AgentError::io("make the directory", &directory))?;
        Ok(Self { directory, installed: Mutex::new(None) })
    }

    /// Takes a copy of a program, once.
    ///
    /// # Errors
    /// Where it cannot be read or copied.
    pub fn install(&self, program: &Path) -> Result<Build, AgentError> {
        let failed = || AgentError::io("install", program);
        let mut source =
            File::open(program).map_err(AgentError::io("open the mounter's executable", program))?;
        let stamp = stamp(&source).map_err(failed())?;
        if let Some((_, build)) = self.installed.lock().as_ref().filter(|(known, _)| *known == stamp)
            && self.path(build).exists()
        {
            return Ok(build.clone());
        }
        let mut hasher = blake3::Hasher::new();
        io::copy(&mut source, &mut hasher).map_err(failed())?;
        let build = Build(hasher.finalize().to_hex()[..NAME_LENGTH].to_owned());
        let target = self.path(&build);
        if !target.exists() {
            let mut draft = tempfile::NamedTempFile::new_in(&self.directory).map_err(failed())?;
            // The same file that was read before, whatever has been put in its place meanwhile.
            source.rewind().map_err(failed())?;
            io::copy(&mut source, draft.as_file_mut()).map_err(failed())?;
            draft.as_file_mut().flush().map_err(failed())?;
            draft.as_file().set_permissions(fs::Permissions::from_mode(0o755)).map_err(failed())?;
            draft.as_file().sync_all().map_err(failed())?;
            draft.persist(&target).map_err(|error| failed()(error.error))?;
        }
        *self.installed.lock() = Some((stamp, build.clone()));
        Ok(build)
    }

    /// A descriptor to execute a build from: of the file, or of a copy in memory where files there cannot be executed.
    ///
    /// # Errors
    /// Where it is gone.
    pub fn executable(&self, build: &Build) -> Result<OwnedFd, AgentError> {
        let path = self.path(build);
        let mut file = File::open(&path).map_err(AgentError::io("open the build", &path))?;
        let is_noexec =
            statvfs(&self.directory).is_ok_and(|found| found.flags().contains(FsFlags::ST_NOEXEC));
        if is_noexec {
            let name = format!("{PREFIX}{}", build.0);
            return tarbox_handover::sealed_executable(&name, &mut file)
                .map_err(AgentError::handover("copy the mounter's executable into memory"));
        }
        Ok(file.into())
    }

    /// The build that a process executes, by the name of its executable.
    #[must_use]
    pub fn of_executable(path: &Path) -> Option<Build> {
        let name = path.file_name()?.to_str()?;
        let hash = name.split(PREFIX).nth(1)?.split(' ').next()?;
        let is_hash = hash.len() == NAME_LENGTH && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hash.then(|| Build(hash.to_owned()))
    }

    /// Removes all builds but these.
    pub fn prune(&self, keep: &BTreeSet<Build>) {
        let Ok(entries) = fs::read_dir(&self.directory) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            if Self::of_executable(&path).is_some_and(|build| !keep.contains(&build)) {
                let _ = fs::remove_file(path);
            }
        }
    }

    fn path(&self, build: &Build) -> PathBuf {
        self.directory.join(format!("{PREFIX}{}", build.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_kept_once_under_its_content_and_goes_when_nobody_needs_it() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let builds = Builds::open(directory.path().join("builds")).expect("open");
        let program = directory.path().join("p");
        fs::write(&program, "one").expect("write");
        let one = builds.install(&program).expect("install");
        assert_eq!(builds.install(&program).expect("again"), one);
        fs::write(&program, "two").expect("write");
        let two = builds.install(&program).expect("install");
        assert_ne!(one, two);
        assert_eq!(Builds::of_executable(&builds.path(&one)), Some(one.clone()));
        builds.prune(&BTreeSet::from([two.clone()]));
        assert!(builds.executable(&one).is_err(), "pruned");
        builds.executable(&two).expect("kept");
    }

    #[test]
    fn the_build_of_a_process_is_read_from_its_executable() {
        let build = Some(Build("0123456789abcdef".into()));
        for path in ["/x/tarbox-mount-0123456789abcdef", "/memfd:tarbox-mount-0123456789abcdef (deleted)"] {
            assert_eq!(Builds::of_executable(Path::new(path)), build, "{path}");
        }
        for path in ["/usr/bin/tarbox-mount", "/x/tarbox-mount-zz", "/"] {
            assert_eq!(Builds::of_executable(Path::new(path)), None, "{path}");
        }
    }
}
