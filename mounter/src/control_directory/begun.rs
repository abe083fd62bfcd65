//! Commands that were begun: a process that dies over one leaves its request in a slot, and who takes that on must know how far it was.
//!
//! A note is written before anything happens. Commands take turns, so the last few are all that anybody can ask for.

use std::{fs, io, path::PathBuf};

use serde::{Deserialize, Serialize};
use tarbox_types::{BranchId, Layer};
use uuid::Uuid;

/// So many notes are kept: more than there can be results on their way into their slots.
const KEPT: usize = 32;

/// What was to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum What {
    /// The head leaves this branch.
    Switch { from: BranchId },
    /// This layer goes.
    Drop { branch: BranchId, layer: Layer },
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Note {
    request: Uuid,
    what: What,
}

/// The notes, in one file that is replaced as a whole.
#[derive(Debug)]
pub(super) struct Begun {
    path: PathBuf,
    notes: Vec<Note>,
}

impl Begun {
    pub(super) fn open(path: PathBuf) -> Self {
        let notes = fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
        Self { path, notes: notes.unwrap_or_default() }
    }

    /// What this request had begun under a predecessor.
    pub(super) fn of(&self, request: Uuid) -> Option<What> {
        self.notes.iter().find(|note| note.request == request).map(|note| note.what)
    }

    /// To be called before it happens.
    pub(super) fn note(&mut self, request: Uuid, what: What) -> io::Result<()> {
        self.notes.retain(|note| note.request != request);
        let surplus = (self.notes.len() + 1).saturating_sub(KEPT);
        self.notes.drain(..surplus);
        self.notes.push(Note { request, what });
        let draft = self.path.with_extension("new");
        fs::write(&draft, serde_json::to_vec(&self.notes).map_err(io::Error::other)?)?;
        fs::rename(&draft, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_successor_knows_what_was_begun_and_old_notes_go() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("begun.json");
        let request = |number| Uuid::from_u64_pair(7, number);
        let mut begun = Begun::open(path.clone());
        for number in 0..=KEPT as u64 {
            begun.note(request(number), What::Switch { from: number as i64 }).expect("noted");
        }
        begun.note(request(1000), What::Drop { branch: 3, layer: 9 }).expect("noted");
        let successor = Begun::open(path);
        assert_eq!(successor.of(request(1000)), Some(What::Drop { branch: 3, layer: 9 }));
        assert_eq!(successor.of(request(5)), Some(What::Switch { from: 5 }));
        assert_eq!(successor.of(request(0)), None);
        assert_eq!(successor.notes.len(), KEPT);
    }
}
