//! Paths of a view, put together from its directories.

use bytes::Bytes;
use rustc_hash::{FxHashMap, FxHashSet};
use tarbox_store::{EntryRow, TenantStore, View};
use tarbox_types::{Ino, ROOT_INO};

use crate::error::Result;

/// Names asked for at a time.
const PAGE: usize = 1024;

/// The root under no name: it has an owner and a mode, too.
pub(super) fn root() -> EntryRow {
    EntryRow { parent: ROOT_INO, name: Bytes::new(), ino: ROOT_INO, kind: libc::S_IFDIR, cookie: 0 }
}

/// See the module.
pub(super) struct Paths<'v> {
    store: &'v dyn TenantStore,
    view: &'v View,
    /// Where directories are.
    places: FxHashMap<Ino, (Ino, Bytes)>,
    /// Directories whose subdirectories are all in `places`.
    listed: FxHashSet<Ino>,
}

impl<'v> Paths<'v> {
    pub(super) fn new(store: &'v dyn TenantStore, view: &'v View) -> Self {
        Self { store, view, places: FxHashMap::default(), listed: FxHashSet::default() }
    }

    /// The path of a name in a directory.
    pub(super) async fn of(&mut self, parent: Ino, name: &Bytes) -> Result<Vec<u8>> {
        if parent == ROOT_INO && name.is_empty() {
            return Ok(b".".to_vec());
        }
        let mut parts = vec![name.clone()];
        let mut at = parent;
        while at != ROOT_INO {
            let (above, name) = self.place(at).await?;
            parts.push(name);
            at = above;
        }
        parts.reverse();
        Ok(parts.join(&b'/'))
    }

    /// Where a directory is. One that cannot be found hangs below the root by its number.
    async fn place(&mut self, directory: Ino) -> Result<(Ino, Bytes)> {
        if let Some(place) = self.places.get(&directory) {
            return Ok(place.clone());
        }
        if let Some(row) = self.store.inode(self.view, directory).await? {
            self.list(row.dir_parent).await?;
        }
        let lost = || (ROOT_INO, Bytes::from(format!("<inode {directory}>")));
        Ok(self.places.entry(directory).or_insert_with(lost).clone())
    }

    async fn list(&mut self, directory: Ino) -> Result<()> {
        if !self.listed.insert(directory) {
            return Ok(());
        }
        let mut after = 0;
        loop {
            let page = self.store.list(self.view, directory, after, PAGE).await?;
            let is_last = page.len() < PAGE;
            for (entry, _) in page {
                after = entry.cookie;
                if entry.kind == libc::S_IFDIR {
                    self.places.insert(entry.ino, (directory, entry.name));
                }
            }
            if is_last {
                return Ok(());
            }
        }
    }
}
