//! Going back to a checkpoint under the work: one mounter changes the head and ends, its successor tells the kernel.
//!
//! Between them lies a note in the mounter's directory: what the head looked through before. It is written before anything
//! happens and taken away when the kernel's caches are right, whoever dies meanwhile.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tarbox_fs::FileSystem;
use tarbox_store::{Link, View};
use tarbox_types::{BranchId, ErrorKind, Ino, Layer};

use crate::{
    control::subject::{Ordered, Subject},
    failure::{Chain, Failure},
};

/// How long what is being executed may take to finish before the successor takes it on.
const DRAIN_WITHIN: Duration = Duration::from_secs(5);

/// A link of a view, as it is noted.
#[derive(Serialize, Deserialize)]
struct Noted {
    branch: BranchId,
    layer: Layer,
    ino_floor: Ino,
}

fn path(directory: &Path) -> PathBuf {
    directory.join("restoring.json")
}

fn note(directory: &Path, view: &View) -> Result<(), Failure> {
    let noted: Vec<Noted> = view
        .chain
        .iter()
        .map(|&Link { branch, layer, ino_floor }| Noted { branch, layer, ino_floor })
        .collect();
    let (target, draft) = (path(directory), directory.join("restoring.json.new"));
    let text = serde_json::to_vec(&noted).map_err(io::Error::other);
    text.and_then(|text| fs::write(&draft, text))
        .and_then(|()| fs::rename(&draft, &target))
        .map_err(Failure::io("write", &target))
}

/// What the head looked through before a restore of which the kernel has not been told.
#[must_use]
pub fn left_unfinished(directory: &Path) -> Option<View> {
    let noted: Vec<Noted> = serde_json::from_slice(&fs::read(path(directory)).ok()?).ok()?;
    let link = |Noted { branch, layer, ino_floor }| Link { branch, layer, ino_floor };
    Some(View { chain: noted.into_iter().map(link).collect() })
}

/// Changes the head, and lets this process end.
///
/// # Errors
/// Where it cannot: then nothing has happened, and it serves on.
pub(crate) async fn begin(
    subject: &Subject,
    directory: &Path,
    branch: BranchId,
    layer: Layer,
) -> Result<(), Failure> {
    if subject.is_alone() {
        let message = "nobody supervises this mounter, so that none could go on: unmount the tenant first";
        return Err(Failure::refused(ErrorKind::FailedPrecondition, message));
    }
    if left_unfinished(directory).is_some() {
        return Err(Failure::refused(ErrorKind::Concurrent, "an earlier restore is still being finished"));
    }
    let file_system = subject.file_system();
    note(directory, &file_system.view())?;
    if let Err(error) = file_system.restore(branch, layer).await {
        let _ = fs::remove_file(path(directory));
        return Err(Failure::Part { kind: error.kind(), doing: "restore".to_owned(), source: error.into() });
    }
    tracing::info!(branch, layer, "the head has been put on a checkpoint; a successor goes on from there");
    subject.order(Ordered::Drain(DRAIN_WITHIN)).await;
    Ok(())
}

/// Tells the kernel what differs from `before`. Where the database cannot be read, the next mounter tries again.
pub(crate) async fn finish(file_system: Arc<FileSystem>, directory: PathBuf, before: View) {
    match file_system.forget_changed(&before).await {
        Ok(()) => {
            let _ = fs::remove_file(path(&directory));
        }
        Err(error) => {
            tracing::error!(error = %Chain(&error), "the kernel may show what was there before a restore: unmount and mount again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_reads_back_and_is_found_by_a_successor() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(left_unfinished(directory.path()), None);
        let link = |branch, layer| Link { branch, layer, ino_floor: 1 << 40 };
        let view = View { chain: vec![link(7, Layer::MAX), link(3, 12)] };
        note(directory.path(), &view).expect("written");
        assert_eq!(left_unfinished(directory.path()), Some(view));
    }
}
