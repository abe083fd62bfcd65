//! The names of one directory, as far as they are in memory.

use std::{cell::Cell, collections::BTreeMap};

use bytes::Bytes;
use rustc_hash::FxHashMap;
use tarbox_store::EntryRow;
use tarbox_types::{Cookie, Ino, Seq};

/// What is known of one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    /// 0 = there is no such name.
    pub ino: Ino,
    /// Type bits.
    pub kind: u32,
    pub cookie: Cookie,
    /// Last record that changed it.
    pub dirty: Seq,
}

impl Slot {
    pub(crate) fn is_present(&self) -> bool {
        self.ino != 0
    }
}

/// Names of a directory.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    slots: FxHashMap<Bytes, Slot>,
    /// The names that are there, by position.
    order: BTreeMap<Cookie, Bytes>,
    /// Every name that exists is here: what is not here does not exist.
    pub complete: bool,
    /// There are too many names to keep them all in memory.
    pub large: bool,
    /// Last record that changed any name.
    dirty: Seq,
    /// Used since the eviction clock's hand passed.
    pub used: Cell<bool>,
}

impl Directory {
    pub(crate) fn get(&self, name: &[u8]) -> Option<&Slot> {
        self.used.set(true);
        self.slots.get(name)
    }

    /// A name's own bytes, to be shared.
    pub(crate) fn shared_name(&self, name: &[u8]) -> Option<Bytes> {
        self.slots.get_key_value(name).map(|(name, _)| name.clone())
    }

    pub(crate) fn is_dirty(&self, committed: Seq) -> bool {
        self.dirty > committed
    }

    /// Whether a name is there; only right where the directory is complete.
    pub(crate) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// How many names that exist are in memory.
    pub(crate) fn present(&self) -> usize {
        self.order.len()
    }

    /// How many names are kept.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Names in memory beyond a position, in order.
    pub(crate) fn after(&self, cookie: Cookie) -> impl Iterator<Item = (&Bytes, &Slot)> {
        self.used.set(true);
        self.order.range(cookie + 1..).filter_map(|(_, name)| self.slots.get(name).map(|slot| (name, slot)))
    }

    pub(crate) fn load(&mut self, entry: EntryRow) {
        if !self.slots.contains_key(&entry.name) {
            self.order.insert(entry.cookie, entry.name.clone());
            self.slots.insert(
                entry.name,
                Slot { ino: entry.ino, kind: entry.kind, cookie: entry.cookie, dirty: 0 },
            );
        }
    }

    pub(crate) fn load_absent(&mut self, name: Bytes) {
        self.slots.entry(name).or_insert(Slot { ino: 0, kind: 0, cookie: 0, dirty: 0 });
    }

    pub(crate) fn put(&mut self, seq: Seq, entry: &EntryRow) {
        let slot = Slot { ino: entry.ino, kind: entry.kind, cookie: entry.cookie, dirty: seq };
        if let Some(old) = self.slots.insert(entry.name.clone(), slot)
            && old.is_present()
        {
            self.order.remove(&old.cookie);
        }
        self.order.insert(entry.cookie, entry.name.clone());
        self.dirty = seq;
    }

    pub(crate) fn remove(&mut self, seq: Seq, name: &Bytes) {
        let gone = Slot { ino: 0, kind: 0, cookie: 0, dirty: seq };
        if let Some(old) = self.slots.insert(name.clone(), gone)
            && old.is_present()
        {
            self.order.remove(&old.cookie);
        }
        self.dirty = seq;
    }

    /// Forgets what is known to be absent and committed: in a complete directory it says nothing.
    pub(crate) fn forget_absent(&mut self, committed: Seq) {
        if self.complete {
            self.slots.retain(|_, slot| slot.is_present() || slot.dirty > committed);
        }
    }

    /// Forgets all names that are committed.
    pub(crate) fn shed(&mut self, committed: Seq) {
        self.complete = false;
        self.slots.retain(|_, slot| slot.dirty > committed);
        let slots = &self.slots;
        self.order.retain(|_, name| slots.contains_key(name));
        self.slots.shrink_to_fit();
    }
}
