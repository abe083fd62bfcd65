//! One file per tenant, written whole or not at all, and good for one boot.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tarbox_types::Format;

/// The state files.
const FORMAT: Format = Format::only(1);

/// Why a state file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The disk.
    #[error("cannot {doing} the state file {}", .path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Not what we wrote.
    #[error("the state file {} cannot be understood", .path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// Where, and why.
        #[source]
        source: serde_json::Error,
    },
    /// Of another release.
    #[error("the state file {} has format {found}; this release reads {} to {}", .path.display(), FORMAT.read().start(), FORMAT.read().end())]
    Format {
        /// Which file.
        path: PathBuf,
        /// What it says.
        found: u32,
    },
}

/// A file as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved<T> {
    /// The boot in which it was written.
    pub boot_id: String,
    /// What was saved.
    pub value: T,
}

#[derive(Serialize)]
struct Envelope<'a, T> {
    format: u32,
    boot_id: &'a str,
    value: &'a T,
}

#[derive(Deserialize)]
struct Head {
    format: u32,
}

#[derive(Deserialize)]
struct Opened<T> {
    boot_id: String,
    value: T,
}

fn path(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.json"))
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |source| StateError::Io { doing, path, source }
}

/// Writes a tenant's file: after this returns it is on disk, and before, the old one is.
///
/// # Errors
/// As write(2), fsync(2), rename(2).
pub fn save<T: Serialize>(directory: &Path, name: &str, boot_id: &str, value: &T) -> Result<(), StateError> {
    write(directory, name, boot_id, value, File::sync_all)
}

/// Writes a tenant's file so that it outlives this process, but not the machine: no disk is waited for.
///
/// # Errors
/// As write(2), rename(2).
pub fn save_for_this_boot<T: Serialize>(
    directory: &Path,
    name: &str,
    boot_id: &str,
    value: &T,
) -> Result<(), StateError> {
    write(directory, name, boot_id, value, |_| Ok(()))
}

fn write<T: Serialize>(
    directory: &Path,
    name: &str,
    boot_id: &str,
    value: &T,
    sync: impl Fn(&File) -> io::Result<()>,
) -> Result<(), StateError> {
    let target = path(directory, name);
    let text = serde_json::to_vec_pretty(&Envelope { format: FORMAT.written(), boot_id, value })
        .map_err(|source| StateError::Malformed { path: target.clone(), source })?;
    let draft = directory.join(format!("{name}.json.new"));
    let written = || -> io::Result<()> {
        let mut file = File::create(&draft)?;
        file.write_all(&text)?;
        sync(&file)?;
        fs::rename(&draft, &target)?;
        sync(&File::open(directory)?)
    };
    written().map_err(failed("write", &target))
}

/// Removes a tenant's file.
///
/// # Errors
/// As unlink(2); none where it is not there.
pub fn remove(directory: &Path, name: &str) -> Result<(), StateError> {
    let target = path(directory, name);
    match fs::remove_file(&target) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &target)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Reads a tenant's file.
///
/// # Errors
/// Where it cannot be read or understood.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<Saved<T>, StateError> {
    let text = fs::read(path).map_err(failed("read", path))?;
    let malformed = |source| StateError::Malformed { path: path.to_owned(), source };
    let Head { format } = serde_json::from_slice(&text).map_err(malformed)?;
    if !FORMAT.reads(format) {
        return Err(StateError::Format { path: path.to_owned(), found: format });
    }
    let Opened { boot_id, value } = serde_json::from_slice(&text).map_err(malformed)?;
    Ok(Saved { boot_id, value })
}

/// Reads the file of this name, where it is there, can be understood and is of this boot.
#[must_use]
pub fn of_this_boot<T: DeserializeOwned>(directory: &Path, name: &str, boot_id: &str) -> Option<T> {
    let saved = load(&path(directory, name)).ok().filter(|saved| saved.boot_id == boot_id);
    saved.map(|saved| saved.value)
}

/// Reads all files of a directory, each for itself.
///
/// # Errors
/// Where the directory cannot be listed.
pub fn load_all<T: DeserializeOwned>(
    directory: &Path,
) -> Result<Vec<Result<Saved<T>, StateError>>, StateError> {
    let entries = fs::read_dir(directory).map_err(failed("list", directory))?;
    let mut paths: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "json"))
        .collect();
    paths.sort_unstable();
    Ok(paths.iter().map(|path| load(path)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_found_until_it_is_removed() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        save(directory.path(), "a", "boot", &1).expect("save");
        save(directory.path(), "a", "boot", &2).expect("again");
        let all = load_all::<i32>(directory.path()).expect("list");
        let values: Vec<_> = all.into_iter().map(|saved| saved.expect("readable").value).collect();
        assert_eq!(values, [2]);
        remove(directory.path(), "a").expect("remove");
        remove(directory.path(), "a").expect("twice");
        assert!(load_all::<i32>(directory.path()).expect("list").is_empty());
    }

    #[test]
    fn what_is_good_for_one_boot_is_found_in_no_other() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        save_for_this_boot(directory.path(), "a", "boot", &1).expect("save");
        assert_eq!(of_this_boot(directory.path(), "a", "boot"), Some(1));
        assert_eq!(of_this_boot::<i32>(directory.path(), "a", "another boot"), None);
        assert_eq!(of_this_boot::<i32>(directory.path(), "b", "boot"), None);
    }

    #[test]
    fn a_file_of_a_later_release_and_a_torn_one_are_named() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("a.json");
        fs::write(&file, r#"{"format": 9, "boot_id": "b", "value": 1}"#).expect("write");
        let error = load::<i32>(&file).expect_err("newer").to_string();
        assert!(
            error.contains("format 9") && error.contains("a.json") && error.contains("1 to 1"),
            "{error}"
        );
        fs::write(&file, r#"{"format": 1, "boot"#).expect("write");
        assert!(matches!(load::<i32>(&file), Err(StateError::Malformed { .. })));
    }
}
