//! Paths as they were when something happened: names of directories as the database has them, changed by what a batch does.

use bytes::{BufMut, Bytes, BytesMut};
use rustc_hash::{FxHashMap, FxHashSet};
use tarbox_store::{StoreError, TenantStore, View};
use tarbox_types::{Ino, ROOT_INO};

use super::gather::Place;

/// So many names of directories are remembered; then all are forgotten.
const KEPT: usize = 100_000;
/// Directories nested deeper are not followed: as deep as PATH_MAX lets anybody go.
const DEPTH_MAX: usize = 2048;
/// A name is looked for in the first so many pages of its directory, then among all names of the tenant.
const PAGES: usize = 8;
const PAGE: usize = 2048;

/// What is known as of the last commit.
#[derive(Debug, Default)]
pub(crate) struct Names {
    directories: FxHashMap<Ino, Place>,
    /// Inodes that the database has no name for.
    nameless: FxHashSet<Ino>,
}

/// What a batch changes of it; lost with it where it is not committed.
#[derive(Debug, Default)]
pub(crate) struct Moves(FxHashMap<Ino, Place>);

impl Moves {
    pub(crate) fn moved(&mut self, ino: Ino, place: Place) {
        self.0.insert(ino, place);
    }
}

/// Where names that memory lacks are found.
pub(crate) struct Source<'s> {
    pub(crate) store: &'s dyn TenantStore,
    pub(crate) view: &'s View,
}

impl Names {
    /// The batch is committed.
    pub(crate) fn follow(&mut self, moves: Moves) {
        self.directories.extend(moves.0);
        self.bound();
    }

    /// The database is not where it was thought to be.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }

    fn bound(&mut self) {
        if self.directories.len() > KEPT || self.nameless.len() > KEPT {
            self.forget();
        }
    }

    /// The path of a name, as far as memory knows it.
    pub(crate) fn path(&self, (parent, name): &Place, moves: &Moves) -> Result<Bytes, Ino> {
        let mut names = vec![name];
        let mut at = *parent;
        while at != ROOT_INO {
            let Some((parent, name)) = moves.0.get(&at).or_else(|| self.directories.get(&at)) else {
                return Err(at);
            };
            names.push(name);
            if names.len() > DEPTH_MAX {
                return Err(0);
            }
            at = *parent;
        }
        let mut path = BytesMut::with_capacity(names.iter().map(|name| name.len() + 1).sum());
        for name in names.into_iter().rev() {
            path.put_u8(b'/');
            path.put_slice(name);
        }
        Ok(path.freeze())
    }

    /// As [`Names::path`]; the database is asked for what memory lacks. Empty where it is not known there either.
    pub(crate) async fn find(
        &mut self,
        place: &Place,
        moves: &Moves,
        source: &Source<'_>,
    ) -> Result<Bytes, StoreError> {
        loop {
            match self.path(place, moves) {
                Ok(path) => return Ok(path),
                Err(0) => return Ok(Bytes::new()),
                Err(directory) if self.nameless.contains(&directory) => return Ok(Bytes::new()),
                Err(directory) => self.load(directory, source).await?,
            }
        }
    }

    /// Takes the names of a directory and of its neighbours from the database.
    async fn load(&mut self, directory: Ino, source: &Source<'_>) -> Result<(), StoreError> {
        self.bound();
        let Some(row) = source.store.inode(source.view, directory).await? else {
            self.nameless.insert(directory);
            return Ok(());
        };
        let mut after = 0;
        for _ in 0..PAGES {
            let rows = source.store.list(source.view, row.dir_parent, after, PAGE).await?;
            let is_last = rows.len() < PAGE;
            after = rows.last().map_or(after, |(entry, _)| entry.cookie);
            for (entry, _) in rows.into_iter().filter(|(entry, _)| entry.kind == libc::S_IFDIR) {
                self.directories.entry(entry.ino).or_insert((entry.parent, entry.name));
            }
            if is_last || self.directories.contains_key(&directory) {
                break;
            }
        }
        if !self.directories.contains_key(&directory) {
            let place = self.look_everywhere(&[directory], source).await?.remove(&directory);
            if let Some(place) = place {
                self.directories.insert(directory, place);
            }
        }
        Ok(())
    }

    /// A name of each of these inodes, among all of the tenant.
    pub(crate) async fn look_everywhere(
        &mut self,
        inos: &[Ino],
        source: &Source<'_>,
    ) -> Result<FxHashMap<Ino, Place>, StoreError> {
        let unknown: Vec<Ino> = inos.iter().copied().filter(|ino| !self.nameless.contains(ino)).collect();
        if unknown.is_empty() {
            return Ok(FxHashMap::default());
        }
        let rows = source.store.names_of(source.view, &unknown).await?;
        let found: FxHashMap<Ino, Place> =
            rows.into_iter().map(|entry| (entry.ino, (entry.parent, entry.name))).collect();
        self.nameless.extend(unknown.into_iter().filter(|ino| !found.contains_key(ino)));
        Ok(found)
    }
}
