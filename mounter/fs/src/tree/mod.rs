//! The tree: the tenant's head as far as it is in memory. Pure: no I/O, no clock.
//!
//! It is a cache of what is committed plus everything that is not: an item is *dirty* while the last record that
//! changed it is beyond the committed position, and only clean items may be evicted. So what memory knows of a name,
//! an inode or a range is always right, and what it does not know is in the database as committed. What was removed is
//! remembered until every query has been answered that began before the removal was committed: a late answer brings nothing back.
//!
//! All changes come through [`Tree::apply`], in the journal's order, whether they are done for the first time or
//! replayed; nothing in it depends on what happens to be loaded.

mod content;
mod directory;

use std::{cell::RefCell, collections::BTreeMap};

use bytes::Bytes;
use rustc_hash::{FxHashMap, FxHashSet};
use tarbox_store::{EntryRow, InodeRow, Limits};
use tarbox_types::{DataId, Ino, ROOT_INO, Seq};

pub(crate) use content::{Chunk, Content, Piece};
pub(crate) use directory::{Directory, Slot};

use crate::{
    effect::{Counters, Effect, Record},
    journal::Payload,
};

/// An inode in memory.
#[derive(Debug)]
pub(crate) struct Node {
    pub row: InodeRow,
    /// Last record that changed the row.
    pub dirty: Seq,
    /// Extended attributes, once known (`None` inside = there are none).
    pub xattrs: Option<Option<Bytes>>,
    /// Last record that changed them.
    pub xattrs_dirty: Seq,
    /// Used since the hand of the eviction clock passed.
    pub used: std::cell::Cell<bool>,
    /// A name that leads to it, or led to it last; `None` = none was seen.
    name: RefCell<Option<(Ino, Bytes)>>,
}

impl Node {
    fn new(row: InodeRow, dirty: Seq, xattrs: Option<Option<Bytes>>) -> Self {
        let (used, name) = (std::cell::Cell::new(true), RefCell::default());
        Self { row, dirty, xattrs, xattrs_dirty: 0, used, name }
    }
}

/// Something that memory lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    Inode(Ino),
    Name(Ino, Bytes),
    /// Every name of a directory.
    Directory(Ino),
    /// Names beyond a cookie, of a directory too large to be kept.
    Page(Ino, u64),
    Xattrs(Ino),
    /// Extents of a content in a range of blocks.
    Extents(DataId, std::ops::Range<u64>),
    /// Commits, so that the journal has room again.
    Room,
    /// Orphans that are not open any more to be removed, for their quota.
    Reaping,
}

/// Why a plan stops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    Need(Need),
    Failed(crate::error::FsError),
}

impl From<crate::error::FsError> for Stop {
    fn from(error: crate::error::FsError) -> Self {
        Self::Failed(error)
    }
}

impl From<crate::xattr::XattrError> for Stop {
    fn from(error: crate::xattr::XattrError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<crate::acl::AclError> for Stop {
    fn from(error: crate::acl::AclError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<Need> for Stop {
    fn from(need: Need) -> Self {
        Self::Need(need)
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Tree {
    pub nodes: FxHashMap<Ino, Node>,
    pub directories: FxHashMap<Ino, Directory>,
    pub contents: FxHashMap<DataId, Content>,
    /// Inodes removed by a record that the database, or an answer of it that is under way, may not know of yet.
    removed: FxHashMap<Ino, Seq>,
    /// Where the database stood when each of the queries began that are under way, and how many of them.
    queries: BTreeMap<Seq, usize>,
    /// Unlinked inodes that may still be open.
    pub orphans: FxHashSet<Ino>,
    /// Whether those are all: what predecessors left unlinked is loaded beside serving.
    pub all_orphans: bool,
    /// Whether there were none to be removed a moment ago: a plan is to do with the room there is.
    pub reaped_in_vain: bool,
    pub counters: Counters,
    pub limits: Limits,
    pub block_size: u64,
    /// Position up to which the database has everything.
    pub committed: Seq,
    /// Grows with each eviction, so that a load that began before it is not taken for current.
    pub evictions: u64,
}

impl Tree {
    pub(crate) fn new(block_size: u32, limits: Limits, counters: Counters, committed: Seq) -> Self {
        Self {
            nodes: FxHashMap::default(),
            directories: FxHashMap::default(),
            contents: FxHashMap::default(),
            removed: FxHashMap::default(),
            queries: BTreeMap::new(),
            orphans: FxHashSet::default(),
            all_orphans: false,
            reaped_in_vain: false,
            counters,
            limits,
            block_size: u64::from(block_size),
            committed,
            evictions: 0,
        }
    }

    // === What is known ===

    /// The inode, if it is in memory.
    pub(crate) fn node(&self, ino: Ino) -> Result<&Node, Stop> {
        match self.nodes.get(&ino) {
            Some(node) => {
                node.used.set(true);
                Ok(node)
            }
            None if self.removed.contains_key(&ino) || ino == 0 => Err(crate::error::FsError::Stale.into()),
            None => Err(Need::Inode(ino).into()),
        }
    }

    /// What a name leads to; `None` = there is no such name.
    pub(crate) fn name(&self, parent: Ino, name: &[u8]) -> Result<Option<&Slot>, Stop> {
        let need = || Need::Name(parent, Bytes::copy_from_slice(name));
        let Some(directory) = self.directories.get(&parent) else { return Err(need().into()) };
        match directory.get(name) {
            Some(slot) => Ok(slot.is_present().then_some(slot)),
            None if directory.complete => Ok(None),
            None => Err(need().into()),
        }
    }

    /// Extended attributes of an inode.
    pub(crate) fn xattrs(&self, ino: Ino) -> Result<Option<&Bytes>, Stop> {
        match &self.node(ino)?.xattrs {
            Some(value) => Ok(value.as_ref()),
            None => Err(Need::Xattrs(ino).into()),
        }
    }

    /// A name of an inode that is in memory, if one was seen.
    pub(crate) fn name_of(&self, ino: Ino) -> Option<(Ino, Bytes)> {
        self.nodes.get(&ino).and_then(|node| node.name.borrow().clone())
    }

    /// An inode was reached by this name.
    pub(crate) fn reached_by(&self, ino: Ino, parent: Ino, name: &[u8]) {
        let Some(node) = self.nodes.get(&ino) else { return };
        let mut known = node.name.borrow_mut();
        if known.as_ref().is_none_or(|known| known.0 != parent || known.1 != name) {
            let shared = self.directories.get(&parent).and_then(|directory| directory.shared_name(name));
            *known = Some((parent, shared.unwrap_or_else(|| Bytes::copy_from_slice(name))));
        }
    }

    /// A name of an inode, unless a better one is known.
    pub(crate) fn suggest_name(&self, ino: Ino, (parent, name): &(Ino, Bytes)) {
        if let Some(node) = self.nodes.get(&ino) {
            node.name.borrow_mut().get_or_insert_with(|| (*parent, name.clone()));
        }
    }

    // === Loading what is committed ===

    /// A query is about to be sent; the position that its answer has at least.
    pub(crate) fn query_begins(&mut self) -> Seq {
        *self.queries.entry(self.committed).or_default() += 1;
        self.committed
    }

    /// The answer of a query that began at `since` has been used, or there will be none.
    pub(crate) fn query_ends(&mut self, since: Seq) {
        if let Some(count) = self.queries.get_mut(&since) {
            *count -= 1;
            if *count == 0 {
                self.queries.remove(&since);
            }
        }
    }

    /// How many removals are remembered.
    #[cfg(test)]
    pub(crate) fn remembered(&self) -> usize {
        self.removed.len()
            + self.directories.values().map(|names| names.len() - names.present()).sum::<usize>()
    }

    /// What was changed up to here may be forgotten: the database has it, and so has every answer that is still to come.
    fn known_everywhere(&self) -> Seq {
        self.queries.keys().next().map_or(self.committed, |since| self.committed.min(*since))
    }

    /// Takes over a committed row, unless memory already has the inode (then memory is newer or the same).
    pub(crate) fn load_inode(&mut self, row: InodeRow) {
        if self.removed.contains_key(&row.ino) {
            return;
        }
        let node = self.nodes.entry(row.ino).or_insert_with(|| Node::new(row, 0, None));
        let InodeRow { ino, did, nlink, .. } = node.row;
        if did != 0 {
            let (block_size, version) = (self.block_size, self.version());
            self.contents.entry(did).or_insert_with(|| Content::new(block_size, version));
        }
        if nlink == 0 {
            self.orphans.insert(ino);
        }
    }

    /// Takes over all unlinked inodes that the database has. What is in memory and in `removed` is newer.
    pub(crate) fn load_orphans(&mut self, rows: Vec<InodeRow>) {
        rows.into_iter().for_each(|row| self.load_inode(row));
        self.all_orphans = true;
    }

    /// Whether unlinked inodes may still take space.
    pub(crate) fn may_have_orphans(&self) -> bool {
        !self.reaped_in_vain && (!self.all_orphans || !self.orphans.is_empty())
    }

    /// Takes over a committed name.
    pub(crate) fn load_entry(&mut self, entry: EntryRow) {
        self.directories.entry(entry.parent).or_default().load(entry);
    }

    /// Takes over that a name is not there.
    pub(crate) fn load_absent(&mut self, parent: Ino, name: Bytes) {
        self.directories.entry(parent).or_default().load_absent(name);
    }

    /// Takes over extended attributes.
    pub(crate) fn load_xattrs(&mut self, ino: Ino, value: Option<Bytes>) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.xattrs.get_or_insert(value);
        }
    }

    /// Where versions of contents begin: beyond those of contents that were evicted, whose extents may still be on their way.
    fn version(&self) -> u64 {
        self.evictions << 32
    }

    /// The same tenant over what the database has now, with nothing in memory; who is unlinked is to be asked again. What is on its way is void.
    pub(crate) fn anew(&self, found: Seq) -> Self {
        let counters = Counters { next_ino: u64::MAX, ..self.counters };
        Self {
            queries: self.queries.clone(),
            evictions: self.evictions + 1,
            ..Self::new(self.block_size as u32, self.limits, counters, found)
        }
    }

    // === Changing ===

    /// Applies a record. Right from any state of what is loaded, and right a second time.
    pub(crate) fn apply(&mut self, seq: Seq, record: &Record, payload: &Payload) {
        let fresh_from = self.counters.next_ino;
        for effect in &record.effects {
            self.apply_effect(seq, fresh_from, effect, payload);
        }
        self.counters = record.counters;
    }

    fn apply_effect(&mut self, seq: Seq, fresh_from: Ino, effect: &Effect, payload: &Payload) {
        match effect {
            Effect::Inode(row) => self.put_inode(seq, fresh_from, row),
            Effect::RemoveInode(ino) => {
                self.nodes.remove(ino);
                self.directories.remove(ino);
                self.orphans.remove(ino);
                self.removed.insert(*ino, seq);
            }
            Effect::Entry(entry) => {
                self.directories.entry(entry.parent).or_default().put(seq, entry);
                if let Some(node) = self.nodes.get_mut(&entry.ino) {
                    *node.name.get_mut() = Some((entry.parent, entry.name.clone()));
                }
            }
            Effect::RemoveEntry { parent, name, .. } => {
                self.directories.entry(*parent).or_default().remove(seq, name);
            }
            Effect::Xattrs { ino, value } => {
                if let Some(node) = self.nodes.get_mut(ino) {
                    node.xattrs = Some(value.clone());
                    node.xattrs_dirty = seq;
                }
            }
            Effect::Write { did, offset, at, len } => {
                self.content(*did, fresh_from).write(
                    seq,
                    *offset,
                    payload.slice(*at as usize..(*at + *len) as usize),
                );
            }
            Effect::Zero { did, from, to, deallocate } => {
                self.content(*did, fresh_from).zero(seq, *from..*to, *deallocate);
            }
            Effect::Truncate { did, from } => self.content(*did, fresh_from).truncate(seq, *from),
            Effect::RemoveData(did) => {
                self.contents.remove(did);
            }
            Effect::Seal(_) => {}
        }
    }

    fn put_inode(&mut self, seq: Seq, fresh_from: Ino, row: &InodeRow) {
        if row.did != 0 {
            self.content(row.did, fresh_from);
        }
        if row.nlink == 0 {
            self.orphans.insert(row.ino);
        } else {
            self.orphans.remove(&row.ino);
        }
        let fresh = row.ino >= fresh_from;
        if fresh && row.mode & libc::S_IFMT == libc::S_IFDIR {
            self.directories.entry(row.ino).or_default().complete = true;
        }
        match self.nodes.get_mut(&row.ino) {
            Some(node) => {
                node.row = row.clone();
                node.dirty = seq;
            }
            None => {
                self.nodes.insert(row.ino, Node::new(row.clone(), seq, fresh.then_some(None)));
            }
        }
    }

    /// The content of an id, made known where it is not; one that is born now has nothing in the database.
    fn content(&mut self, did: DataId, fresh_from: Ino) -> &mut Content {
        let (block_size, version) = (self.block_size, self.version());
        self.contents.entry(did).or_insert_with(|| {
            let mut content = Content::new(block_size, version);
            content.complete = did >= fresh_from;
            content
        })
    }

    // === After a commit ===

    /// The database has everything up to `seq`.
    pub(crate) fn set_committed(&mut self, seq: Seq) {
        self.committed = seq;
        let known = self.known_everywhere();
        self.removed.retain(|_, at| *at > known);
    }

    // === Keeping memory bounded ===

    /// Drops clean inodes not used since the last call, with their extents, and clean names, until at most `max` inodes and
    /// `max` names are left (or nothing more can go). The root always stays.
    pub(crate) fn evict(&mut self, max: usize) {
        if self.nodes.len() > max {
            self.evict_nodes(self.nodes.len() - max * 7 / 8);
            self.evictions += 1;
        }
        let known = self.known_everywhere();
        for directory in self.directories.values_mut() {
            directory.forget_absent(known);
        }
        let mut names: usize = self.directories.values().map(Directory::len).sum();
        for spare_used in [true, false] {
            if names <= max {
                return;
            }
            self.evictions += 1;
            self.directories.retain(|_, directory| {
                if names <= max || directory.used.replace(false) && spare_used {
                    return true;
                }
                names -= directory.len();
                directory.shed(known);
                names += directory.len();
                directory.is_dirty(known)
            });
        }
    }

    fn evict_nodes(&mut self, mut surplus: usize) {
        let known = self.known_everywhere();
        let mut contents = Vec::new();
        self.nodes.retain(|&ino, node| {
            let keep = surplus == 0
                || ino == ROOT_INO
                || node.row.nlink == 0
                || node.dirty > known
                || node.xattrs_dirty > known
                || node.used.replace(false);
            if !keep {
                surplus -= 1;
                contents.push(node.row.did);
            }
            keep
        });
        for did in contents {
            if self.contents.get(&did).is_some_and(|content| !content.is_dirty()) {
                self.contents.remove(&did);
            }
        }
    }

    /// Forgets the committed extents of contents that have very many.
    pub(crate) fn evict_extents(&mut self, max: usize) {
        for content in self.contents.values_mut() {
            if content.known_extents() > max {
                content.forget_committed();
            }
        }
    }
}
