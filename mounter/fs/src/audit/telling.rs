//! Events of a batch: paths found, changes of content summed up.

use std::collections::hash_map::Entry;

use bytes::Bytes;
use rustc_hash::{FxHashMap, FxHashSet};
use tarbox_store::StoreError;
use tarbox_types::{Ino, ROOT_INO};
use uuid::Uuid;

use super::{
    PodNames,
    event::{Event, Pod},
    gather::{Gathered, Noted, Place, Step},
    names::{Moves, Names, Source},
    note::Who,
    operation::Operation,
};

/// What is summed up in one event.
type Sum = (Operation, Ino, u32, u32, Who);

/// Puts a batch's events together; those of one file, process and operation that are summed up stand where the first of them was.
pub(crate) struct Telling<'a> {
    pub(crate) names: &'a mut Names,
    pub(crate) pods: Option<&'a dyn PodNames>,
    moves: Moves,
    events: Vec<Event>,
    sums: FxHashMap<Sum, usize>,
    /// Names of files that no note had.
    files: FxHashMap<Ino, Place>,
    /// Of the last event: mostly the next one's as well.
    process: Bytes,
    /// Pods of the batch: each is asked for once.
    seen: FxHashMap<Uuid, Pod>,
}

/// A batch's events, what it moved, and names of files that had to be looked for.
pub(crate) struct Told {
    pub(crate) events: Vec<Event>,
    pub(crate) moves: Moves,
    pub(crate) files: FxHashMap<Ino, Place>,
}

impl<'a> Telling<'a> {
    pub(crate) fn new(names: &'a mut Names, pods: Option<&'a dyn PodNames>) -> Self {
        Self {
            names,
            pods,
            moves: Moves::default(),
            events: Vec::new(),
            sums: FxHashMap::default(),
            files: FxHashMap::default(),
            process: Bytes::new(),
            seen: FxHashMap::default(),
        }
    }

    /// All of them; the database is asked for names that memory lacks.
    ///
    /// # Errors
    /// Where it cannot be asked.
    pub(crate) async fn tell(mut self, gathered: Gathered, source: &Source<'_>) -> Result<Told, StoreError> {
        let lacking = lacking(&gathered);
        if !lacking.is_empty() {
            self.files = self.names.look_everywhere(&lacking, source).await?;
        }
        for step in gathered.steps {
            match step {
                Step::Moved(ino, place) => self.moves.moved(ino, place),
                Step::Noted(noted) => {
                    if self.is_summed_up(&noted) {
                        continue;
                    }
                    let path = match self.place(&noted) {
                        Some(place) => self.names.find(&place, &self.moves, source).await?,
                        None => unnamed(&noted),
                    };
                    let to = match &noted.to {
                        Some(to) => Some(self.names.find(to, &self.moves, source).await?),
                        None => None,
                    };
                    self.push(&noted, path, to);
                }
            }
        }
        Ok(Told { events: self.events, moves: self.moves, files: self.files })
    }

    /// What memory knows of them, without asking anybody.
    pub(crate) fn guess(mut self, gathered: Gathered) -> Vec<Event> {
        for step in gathered.steps {
            match step {
                Step::Moved(ino, place) => self.moves.moved(ino, place),
                Step::Noted(noted) if !self.is_summed_up(&noted) => {
                    let find = |place: &Place| self.names.path(place, &self.moves).unwrap_or_default();
                    let path = self.place(&noted).map_or_else(|| unnamed(&noted), |place| find(&place));
                    let to = noted.to.as_ref().map(find);
                    self.push(&noted, path, to);
                }
                Step::Noted(_) => {}
            }
        }
        self.events
    }

    fn place(&self, noted: &Noted) -> Option<Place> {
        noted.place.clone().or_else(|| self.files.get(&noted.ino).cloned())
    }

    /// Adds it to the event that it belongs to, if that is there.
    fn is_summed_up(&mut self, noted: &Noted) -> bool {
        let note = &noted.note;
        if !note.is_summed {
            return false;
        }
        let sum = (note.operation, noted.ino, note.uid, note.gid, note.who);
        match self.sums.entry(sum) {
            Entry::Vacant(first) => {
                first.insert(self.events.len());
                false
            }
            Entry::Occupied(at) => {
                add(&mut self.events[*at.get()], noted);
                true
            }
        }
    }

    fn pod(&mut self, uid: Uuid) -> Pod {
        let asked = || {
            let (namespace, name) = self.pods.and_then(|pods| pods.name_of(uid)).unwrap_or_default();
            Pod { uid, namespace, name }
        };
        self.seen.entry(uid).or_insert_with(asked).clone()
    }

    fn push(&mut self, noted: &Noted, path: Bytes, to: Option<Bytes>) {
        let note = &noted.note;
        let pod = note.who.pod.map(|uid| self.pod(uid));
        if self.process != note.who.name() {
            self.process = Bytes::copy_from_slice(note.who.name());
        }
        self.events.push(Event {
            at: note.at,
            operation: note.operation,
            path,
            to,
            ino: noted.ino,
            uid: note.uid,
            gid: note.gid,
            pid: note.who.pid,
            process: self.process.clone(),
            pod,
            result: note.result,
            count: 1,
            offset: note.offset,
            end: note.offset.saturating_add(note.bytes),
            bytes: note.bytes,
            micros: note.micros,
        });
    }
}

fn add(event: &mut Event, noted: &Noted) {
    let note = &noted.note;
    event.micros = Some(event.micros.unwrap_or(0) + note.at.saturating_sub(event.at));
    event.at = event.at.max(note.at);
    event.count += 1;
    event.bytes += note.bytes;
    if note.operation == Operation::Truncate {
        (event.offset, event.end) = (note.offset, note.offset);
    } else {
        event.offset = event.offset.min(note.offset);
        event.end = event.end.max(note.offset.saturating_add(note.bytes));
    }
}

/// Inodes of which nobody has said a name, and which may have one.
fn lacking(gathered: &Gathered) -> Vec<Ino> {
    let inos = gathered.steps.iter().filter_map(|step| match step {
        Step::Noted(noted) if noted.place.is_none() && !noted.is_nameless && noted.ino > ROOT_INO => {
            Some(noted.ino)
        }
        Step::Noted(_) | Step::Moved(..) => None,
    });
    inos.collect::<FxHashSet<_>>().into_iter().collect()
}

/// The path of what has no name, or none that is known.
fn unnamed(noted: &Noted) -> Bytes {
    if noted.ino == ROOT_INO { Bytes::from_static(b"/") } else { Bytes::new() }
}
