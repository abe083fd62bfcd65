//! What differs between two moments of a tenant.
//!
//! The store names the rows that may differ, so that the time goes with what has changed, not with what there is. Names are
//! compared as directories have them, inodes as they are, and only then paths are put together.

mod content;
mod names;
mod paths;
mod text;

use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};
use tarbox_store::{InodeRow, TenantStore, View};
use tarbox_types::Ino;

pub use self::text::Lines;
use self::{
    content::{Content, is_same_attributes},
    names::{Fate, fates},
    paths::Paths,
};
use crate::error::Result;

/// What became of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// It is there, and something of it is different.
    Changed,
    /// It was elsewhere before, or is there by another name; something of it may be different besides.
    Renamed {
        /// Where it was.
        from: Vec<u8>,
    },
}

/// A path that differs.
#[derive(Clone, Debug)]
pub struct Difference {
    /// From the root, without a slash at its beginning; where it was, if it is gone.
    pub path: Vec<u8>,
    /// What became of it.
    pub change: Change,
    /// As it was.
    pub before: Option<InodeRow>,
    /// As it is.
    pub after: Option<InodeRow>,
    /// The content is different (of what was added or removed: there is some).
    pub is_content: bool,
    /// Owner, mode, target, device or extended attributes are different.
    pub is_attributes: bool,
    /// Lines, where both sides are text.
    pub lines: Option<Lines>,
    /// As a unified diff, where it was asked for and both sides are text.
    pub patch: Option<String>,
}

/// Two moments, and how they are compared.
pub struct Diff {
    store: Arc<dyn TenantStore>,
    block_size: u64,
    before: View,
    after: View,
    with_patch: bool,
}

impl Diff {
    /// Compares two views of a tenant.
    pub fn new(
        store: Arc<dyn TenantStore>,
        block_size: u32,
        before: View,
        after: View,
        with_patch: bool,
    ) -> Self {
        Self { store, block_size: block_size.into(), before, after, with_patch }
    }

    /// What differs, by path.
    ///
    /// # Errors
    /// Where the database cannot be read.
    pub async fn run(&self) -> Result<Vec<Difference>> {
        let store = &*self.store;
        let changes = store.changes(&self.before, &self.after).await?;
        let mut names = Vec::with_capacity(changes.entries.len());
        for (parent, name) in &changes.entries {
            let was = store.lookup(&self.before, *parent, name).await?;
            let is = store.lookup(&self.after, *parent, name).await?;
            names.push(names::Name { parent: *parent, name: name.clone(), was, is });
        }
        let mut changed = FxHashMap::default();
        for ino in &changes.inodes {
            let rows = (store.inode(&self.before, *ino).await?, store.inode(&self.after, *ino).await?);
            if let (Some(was), Some(is)) = rows {
                changed.insert(*ino, (was, is));
            }
        }
        let mut fates = fates(names);
        self.add_changed(&mut fates, changed).await?;
        self.describe(fates).await
    }

    /// Adds inodes that have changed under a name that has not.
    async fn add_changed(
        &self,
        fates: &mut Vec<Fate>,
        changed: FxHashMap<Ino, (InodeRow, InodeRow)>,
    ) -> Result<()> {
        let inos: Vec<Ino> = changed.keys().copied().collect();
        if inos.is_empty() {
            return Ok(());
        }
        let mut names = self.store.names_of(&self.after, &inos).await?;
        if inos.contains(&tarbox_types::ROOT_INO) {
            names.push(paths::root());
        }
        let told: FxHashSet<_> = fates.iter().filter_map(|fate| fate.to.clone()).collect();
        let more: Vec<Fate> = names
            .into_iter()
            .filter_map(|name| {
                let (was, is) = changed.get(&name.ino)?;
                let at = (name.parent, name.name);
                (!told.contains(&at)).then(|| Fate {
                    from: Some(at.clone()),
                    to: Some(at),
                    was: Some(was.clone()),
                    is: Some(is.clone()),
                })
            })
            .collect();
        fates.extend(more);
        Ok(())
    }

    async fn is_same_attributes(&self, was: &InodeRow, is: &InodeRow) -> Result<bool> {
        if !is_same_attributes(was, is) {
            return Ok(false);
        }
        let old = self.store.xattrs(&self.before, was.ino).await?;
        Ok(old == self.store.xattrs(&self.after, is.ino).await?)
    }

    fn content(&self) -> Content<'_> {
        Content { store: &*self.store, block_size: self.block_size, before: &self.before, after: &self.after }
    }

    async fn describe(&self, fates: Vec<Fate>) -> Result<Vec<Difference>> {
        let mut before = Paths::new(&*self.store, &self.before);
        let mut after = Paths::new(&*self.store, &self.after);
        let mut found = Vec::with_capacity(fates.len());
        for Fate { from, to, was, is } in fates {
            // Where only a directory above it has another name, that one is told of.
            let has_moved = from != to;
            let from = match &from {
                Some((parent, name)) => Some(before.of(*parent, name).await?),
                None => None,
            };
            let to = match &to {
                Some((parent, name)) => Some(after.of(*parent, name).await?),
                None => None,
            };
            found.extend(self.difference((from, to), has_moved, was, is).await?);
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// One path; nothing where it turns out to be the same.
    async fn difference(
        &self,
        paths: (Option<Vec<u8>>, Option<Vec<u8>>),
        has_moved: bool,
        was: Option<InodeRow>,
        is: Option<InodeRow>,
    ) -> Result<Option<Difference>> {
        let content = self.content();
        let (is_content, is_attributes) = match (&was, &is) {
            (Some(was), Some(is)) => {
                (content.is_different(was, is).await?, !self.is_same_attributes(was, is).await?)
            }
            (one, other) => {
                let row = one.as_ref().or(other.as_ref());
                (row.is_some_and(|row| row.size > 0 && content::is_file(row)), false)
            }
        };
        let (path, change) = match paths {
            (None, Some(path)) => (path, Change::Added),
            (Some(path), None) => (path, Change::Removed),
            (Some(from), Some(to)) if has_moved => (to, Change::Renamed { from }),
            (Some(_), Some(to)) => (to, Change::Changed),
            (None, None) => return Ok(None),
        };
        if change == Change::Changed && !is_content && !is_attributes {
            return Ok(None);
        }
        let compared = match is_content {
            true => content.texts(was.as_ref(), is.as_ref()).await?,
            false => None,
        };
        let shown = |row: &Option<InodeRow>, side: &str, at: &[u8]| match row {
            Some(_) => format!("{side}/{}", String::from_utf8_lossy(at)),
            None => "/dev/null".to_owned(),
        };
        let old_path = if let Change::Renamed { from } = &change { from } else { &path };
        let headings = (shown(&was, "a", old_path), shown(&is, "b", &path));
        let (lines, patch) = match compared {
            Some(texts) => texts.compare(self.with_patch.then_some(&headings)),
            None => (None, None),
        };
        Ok(Some(Difference { path, change, before: was, after: is, is_content, is_attributes, lines, patch }))
    }
}

/// Paths of files that have changed under their name: in both views, with something different.
///
/// # Errors
/// Where the database cannot be read.
pub async fn paths_of_changed_files(
    store: &dyn TenantStore,
    before: &View,
    after: &View,
) -> Result<Vec<Vec<u8>>> {
    let mut changed = Vec::new();
    for ino in store.changes(before, after).await?.inodes {
        let row = store.inode(after, ino).await?.filter(content::is_file);
        if row.is_some() && store.inode(before, ino).await? != row {
            changed.push(ino);
        }
    }
    let mut found = Vec::new();
    if changed.is_empty() {
        return Ok(found);
    }
    let mut paths = Paths::new(store, after);
    for name in store.names_of(after, &changed).await? {
        found.push(paths.of(name.parent, &name.name).await?);
    }
    Ok(found)
}
