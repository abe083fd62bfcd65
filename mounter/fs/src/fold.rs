//! Folds a range of journal records into what one commit changes: of each key the last state. Pure.

use bytes::Bytes;
use rustc_hash::FxHashMap;
use tarbox_store::{EntryRow, InodeRow, Seal};
use tarbox_types::{Cookie, DataId, Ino, Seq};

use crate::{
    audit::Gathered,
    effect::{Counters, Effect, Record},
    journal::Payload,
    tree::Content,
};

/// The last state of a name.
#[derive(Debug)]
pub(crate) struct FoldedEntry {
    /// `Err` = gone, with the cookie it had.
    pub last: Result<EntryRow, Cookie>,
    /// The database has a row for it.
    pub existed: bool,
}

/// Changes of one content.
#[derive(Debug)]
pub(crate) struct FoldedContent {
    /// As if nothing else existed: its changed ranges are what is to be committed.
    pub content: Content,
    /// Everything from this byte on was cut off at some point.
    pub cut: Option<u64>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Folded {
    /// Numbers from here on were handed out after the last commit: the database has no row of theirs.
    pub fresh_from: Ino,
    block_size: u64,
    pub to_seq: Seq,
    pub counters: Counters,
    /// `None` = gone.
    pub inodes: FxHashMap<Ino, Option<InodeRow>>,
    pub entries: FxHashMap<(Ino, Bytes), FoldedEntry>,
    pub xattrs: FxHashMap<Ino, Option<Bytes>>,
    pub contents: FxHashMap<DataId, FoldedContent>,
    pub removed_data: Vec<DataId>,
    /// The batch ends with this.
    pub seal: Option<Seal>,
    /// What is to be told of it.
    pub audit: Gathered,
}

impl Folded {
    pub(crate) fn new(block_size: u64, from_seq: Seq, counters: Counters) -> Self {
        Self {
            fresh_from: counters.next_ino,
            block_size,
            to_seq: from_seq,
            counters,
            inodes: FxHashMap::default(),
            entries: FxHashMap::default(),
            xattrs: FxHashMap::default(),
            contents: FxHashMap::default(),
            removed_data: Vec::new(),
            seal: None,
            audit: Gathered::default(),
        }
    }

    /// Adds the next record.
    pub(crate) fn add(&mut self, seq: Seq, record: Record, payload: &Payload) {
        self.to_seq = seq;
        self.counters = record.counters;
        self.audit.add(&record, payload.as_slice());
        for effect in record.effects {
            self.add_effect(seq, effect, payload);
        }
    }

    fn add_effect(&mut self, seq: Seq, effect: Effect, payload: &Payload) {
        match effect {
            Effect::Inode(row) => {
                self.inodes.insert(row.ino, Some(row));
            }
            Effect::RemoveInode(ino) => {
                self.xattrs.remove(&ino);
                // Born and gone within this commit: the database never hears of it.
                if ino >= self.fresh_from {
                    self.inodes.remove(&ino);
                } else {
                    self.inodes.insert(ino, None);
                }
            }
            Effect::Entry(row) => {
                let existed = row.cookie < self.fresh_from;
                self.set_entry((row.parent, row.name.clone()), existed, Ok(row));
            }
            Effect::RemoveEntry { parent, name, cookie } => {
                self.set_entry((parent, name), cookie < self.fresh_from, Err(cookie));
            }
            Effect::Xattrs { ino, value } => {
                self.xattrs.insert(ino, value);
            }
            Effect::Write { did, offset, at, len } => {
                self.content(did).content.write(seq, offset, payload.slice(at as usize..(at + len) as usize));
            }
            Effect::Zero { did, from, to, deallocate } => {
                self.content(did).content.zero(seq, from..to, deallocate);
            }
            Effect::Truncate { did, from } => {
                let folded = self.content(did);
                folded.content.truncate(seq, from);
                folded.cut = Some(folded.cut.map_or(from, |cut| cut.min(from)));
            }
            Effect::RemoveData(did) => {
                self.contents.remove(&did);
                if did < self.fresh_from {
                    self.removed_data.push(did);
                }
            }
            Effect::Seal(seal) => self.seal = Some(seal),
        }
    }

    /// `existed` counts where this is the first change of the name.
    fn set_entry(&mut self, key: (Ino, Bytes), existed: bool, last: Result<EntryRow, Cookie>) {
        match self.entries.get_mut(&key) {
            Some(entry) => entry.last = last,
            None => {
                self.entries.insert(key, FoldedEntry { last, existed });
            }
        }
    }

    fn content(&mut self, did: DataId) -> &mut FoldedContent {
        let block_size = self.block_size;
        self.contents
            .entry(did)
            .or_insert_with(|| FoldedContent { content: Content::new(block_size, 0), cut: None })
    }
}
