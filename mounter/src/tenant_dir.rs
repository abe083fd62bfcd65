//! The state of one mounter on this machine: a directory with a lock, a note of who serves, and the control socket.
//!
//! `<state-dir>/<tenant-id>/` belongs to the writer (there is one: it holds the lock); a reader has
//! `<state-dir>/<tenant-id>/readers/<pid>/`. The lock tells a living mounter from a dead one without guessing: the
//! kernel drops it with the process.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use serde::{Deserialize, Serialize};
use tarbox_types::{SessionId, TenantId};

use crate::failure::Failure;

/// Who serves, as written beside the control socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// Process.
    pub pid: u32,
    /// Its session in the database.
    pub session: SessionId,
    /// Tenant.
    pub tenant_id: TenantId,
    /// Its name.
    pub tenant_name: String,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// Mounted for reading only.
    pub read_only: bool,
    /// The program's version.
    pub version: String,
    /// Paths in the tenant where directories of this machine are mounted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub native: Vec<PathBuf>,
}

/// A mounter's directory, locked as long as this lives.
#[derive(Debug)]
pub struct TenantDir {
    path: PathBuf,
    /// What the last mounter noted and did not clear away: it died.
    previous: Option<Note>,
    _lock: Flock<File>,
}

/// The directory of a tenant's writer.
#[must_use]
pub fn of(state_dir: &Path, tenant: TenantId) -> PathBuf {
    state_dir.join(tenant.to_string())
}

/// The directory of one that only reads.
#[must_use]
pub fn reader(state_dir: &Path, tenant: TenantId, pid: u32) -> PathBuf {
    of(state_dir, tenant).join("readers").join(pid.to_string())
}

impl TenantDir {
    /// Makes and locks the writer's directory; `None` where a living mounter has it.
    ///
    /// # Errors
    /// As mkdir(2), open(2), flock(2).
    pub fn lock_writer(state_dir: &Path, tenant: TenantId) -> Result<Option<Self>, Failure> {
        Self::lock(of(state_dir, tenant))
    }

    /// Makes and locks a reader's directory.
    ///
    /// # Errors
    /// As [`Self::lock_writer`].
    pub fn lock_reader(state_dir: &Path, tenant: TenantId) -> Result<Option<Self>, Failure> {
        Self::lock(reader(state_dir, tenant, std::process::id()))
    }

    fn lock(path: PathBuf) -> Result<Option<Self>, Failure> {
        fs::create_dir_all(&path).map_err(Failure::io("make the state directory", &path))?;
        restrict(&path).map_err(Failure::io("restrict the state directory", &path))?;
        let lock_path = path.join("lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(Failure::io("open", &lock_path))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(Self { previous: read_note(&path), path, _lock: lock })),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(Failure::io("lock", &lock_path)(errno.into())),
        }
    }

    /// What the last mounter left behind, if it died.
    #[must_use]
    pub fn previous(&self) -> Option<&Note> {
        self.previous.as_ref()
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the journal lies.
    #[must_use]
    pub fn journal(&self) -> PathBuf {
        journal(&self.path)
    }

    /// Where the control socket lies.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        socket(&self.path)
    }

    /// Where a daemon's log lies.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Writes the note, at once or not at all.
    ///
    /// # Errors
    /// As write(2), rename(2).
    pub fn write_note(&self, note: &Note) -> Result<(), Failure> {
        let target = self.path.join("mounter.json");
        let draft = self.path.join("mounter.json.new");
        let text = serde_json::to_vec_pretty(note).map_err(io::Error::other);
        text.and_then(|text| fs::write(&draft, text))
            .and_then(|()| fs::rename(&draft, &target))
            .map_err(Failure::io("write", &target))
    }

    /// Clears away what a living mounter needs. Other things, a rejected journal for instance, stay.
    pub fn clear(self) {
        // Without a mount no kernel knows of an earlier head.
        for name in ["mounter.json", "control.sock", "restoring.json"] {
            let _ = fs::remove_file(self.path.join(name));
        }
        let _ = fs::remove_dir_all(crate::control_directory::directory(&self.path));
        // The lock file stays while anything else does: removing it under a waiting locker would split the lock.
        let others = fs::read_dir(&self.path)
            .map_or(1, |entries| entries.flatten().filter(|entry| entry.file_name() != "lock").count());
        if others == 0 && self.path.parent().is_some_and(|parent| parent.ends_with("readers")) {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// The journal's directory inside a writer's directory.
#[must_use]
pub fn journal(directory: &Path) -> PathBuf {
    directory.join("journal")
}

/// The control socket inside a mounter's directory.
#[must_use]
pub fn socket(directory: &Path) -> PathBuf {
    directory.join("control.sock")
}

/// Only the owner may look inside: the control socket and the data in the journal are the tenant's.
fn restrict(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}

/// The note in a mounter's directory.
#[must_use]
pub fn read_note(directory: &Path) -> Option<Note> {
    serde_json::from_slice(&fs::read(directory.join("mounter.json")).ok()?).ok()
}

/// Whether a living mounter holds the directory's lock.
#[must_use]
pub fn is_locked(directory: &Path) -> bool {
    let Ok(file) = File::open(directory.join("lock")) else { return false };
    matches!(Flock::lock(file, FlockArg::LockSharedNonblock), Err((_, Errno::EWOULDBLOCK)))
}

/// Directories of all mounters under a state directory, readers included, living or dead.
#[must_use]
pub fn all(state_dir: &Path) -> Vec<PathBuf> {
    let children = |path: &Path| -> Vec<PathBuf> {
        fs::read_dir(path)
            .map_or_else(|_| Vec::new(), |entries| entries.flatten().map(|e| e.path()).collect())
    };
    let is_tenant = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.parse::<TenantId>().is_ok())
    };
    let mut found = Vec::new();
    for tenant in children(state_dir).into_iter().filter(is_tenant) {
        found.extend(children(&tenant.join("readers")));
        found.push(tenant);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(session: SessionId, tenant_id: TenantId) -> Note {
        Note {
            native: Vec::new(),
            pid: std::process::id(),
            session,
            tenant_id,
            tenant_name: "t".into(),
            mount_point: "/mnt".into(),
            read_only: false,
            version: "0".into(),
        }
    }

    #[test]
    fn a_second_writer_is_kept_out_while_the_first_lives_and_finds_its_note_when_it_died() {
        let state = tempfile::tempdir().expect("a temporary directory");
        let tenant = TenantId::random();
        let first = TenantDir::lock_writer(state.path(), tenant).expect("lock").expect("free");
        assert_eq!(first.previous(), None);
        let note = note(SessionId(uuid::Uuid::new_v4()), tenant);
        first.write_note(&note).expect("note");
        assert!(TenantDir::lock_writer(state.path(), tenant).expect("lock").is_none());
        assert!(is_locked(&of(state.path(), tenant)));
        assert_eq!(all(state.path()), [of(state.path(), tenant)]);
        // Dropped without `clear`: as a killed process leaves it.
        drop(first);
        assert!(!is_locked(&of(state.path(), tenant)));
        let second = TenantDir::lock_writer(state.path(), tenant).expect("lock").expect("free again");
        assert_eq!(second.previous(), Some(&note));
        second.clear();
        assert_eq!(read_note(&of(state.path(), tenant)), None);
    }

    #[test]
    fn readers_do_not_keep_anybody_out_and_leave_nothing() {
        let state = tempfile::tempdir().expect("a temporary directory");
        let tenant = TenantId::random();
        let reader = TenantDir::lock_reader(state.path(), tenant).expect("lock").expect("free");
        assert!(TenantDir::lock_writer(state.path(), tenant).expect("lock").is_some());
        let directory = reader.path.clone();
        reader.clear();
        assert!(!directory.exists());
    }
}
