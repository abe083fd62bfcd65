//! What a batch's records say that is to be told: events whose paths are still to be found, and directories that move meanwhile. Pure.

use bytes::Bytes;
use tarbox_store::EntryRow;
use tarbox_types::Ino;

use super::{note::Note, operation::Operation};
use crate::effect::{Effect, Outcome, Record};

/// A name in a directory.
pub(crate) type Place = (Ino, Bytes);

/// One thing after the other, as it happened.
#[derive(Debug)]
pub(crate) enum Step {
    /// A directory is there now.
    Moved(Ino, Place),
    Noted(Box<Noted>),
}

/// An event whose path is still to be found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Noted {
    pub(crate) note: Note,
    pub(crate) ino: Ino,
    /// A name of it; `None` = none is known here.
    pub(crate) place: Option<Place>,
    /// Its name afterwards.
    pub(crate) to: Option<Place>,
    /// It is known to have no name.
    pub(crate) is_nameless: bool,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    pub(crate) steps: Vec<Step>,
    /// How many of them are events.
    pub(crate) events: usize,
}

impl Gathered {
    /// Adds the next record, with its payload.
    pub(crate) fn add(&mut self, record: &Record, payload: &[u8]) {
        if let Some(note) = Note::of(record, payload) {
            self.events += 1;
            self.steps.push(Step::Noted(Box::new(noted(note, record))));
        }
        for effect in &record.effects {
            if let Effect::Entry(entry) = effect
                && entry.kind == libc::S_IFDIR
            {
                self.steps.push(Step::Moved(entry.ino, place(entry)));
            }
        }
    }
}

fn place(entry: &EntryRow) -> Place {
    (entry.parent, entry.name.clone())
}

fn noted(note: Note, record: &Record) -> Noted {
    let mut entries = record.effects.iter().filter_map(|effect| match effect {
        Effect::Entry(entry) => Some(entry),
        _ => None,
    });
    let removed = record.effects.iter().find_map(|effect| match effect {
        Effect::RemoveEntry { parent, name, .. } => Some((*parent, name.clone())),
        _ => None,
    });
    let told = match record.outcome {
        Outcome::Inode(ino) => ino,
        Outcome::Done | Outcome::Count(_) => 0,
    };
    let (ino, found, to) = match note.operation {
        Operation::Unlink | Operation::Rmdir => (gone(record, removed.as_ref()), removed, None),
        // Exchanged: the first entry is what now has the old name, the second one what had it.
        Operation::Rename => match (removed, entries.next(), entries.next()) {
            (Some(from), Some(to), _) => (to.ino, Some(from), Some(place(to))),
            (None, Some(from), Some(to)) => (to.ino, Some(place(from)), Some(place(to))),
            _ => (note.ino, None, None),
        },
        _ => match entries.next() {
            Some(entry) => (entry.ino, Some(place(entry)), None),
            None => (note.ino.max(told), None, None),
        },
    };
    let is_nameless = record
        .effects
        .iter()
        .any(|effect| matches!(effect, Effect::Inode(row) if row.ino == ino && row.nlink == 0));
    let place = found.or_else(|| note.name.clone());
    Noted { note, ino, place, to, is_nameless }
}

/// The inode that lost its name: the other one than the directory.
fn gone(record: &Record, removed: Option<&Place>) -> Ino {
    let directory = removed.map_or(0, |(parent, _)| *parent);
    let other = record.effects.iter().find_map(|effect| match effect {
        Effect::Inode(row) if row.ino != directory => Some(row.ino),
        _ => None,
    });
    other.unwrap_or(0)
}
