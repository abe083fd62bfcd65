//! Directory streams: pages of names by position.

use bytes::Bytes;
use tarbox_store::{EntryRow, InodeRow};
use tarbox_types::{Cookie, Ino};

use super::{Planned, is_dir};
use crate::{
    error::FsError,
    tree::{Need, Slot, Tree},
};

/// One name of a directory stream.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub name: Bytes,
    pub ino: Ino,
    pub kind: u32,
    /// Where the stream goes on after this name.
    pub cookie: Cookie,
    /// The inode, where it was asked for.
    pub row: Option<InodeRow>,
}

/// Names of `.` and `..` in a stream.
const DOT: Cookie = 1;
const DOT_DOT: Cookie = 2;

impl Tree {
    /// Up to `limit` names beyond `after`. `page` is what the database has there where the directory is not complete
    /// in memory (see [`Need::Page`]); with `rows`, inodes are added as far as memory has them.
    pub(crate) fn list(
        &self,
        ino: Ino,
        after: Cookie,
        limit: usize,
        rows: bool,
        page: Option<&Page>,
    ) -> Planned<Vec<Listed>> {
        let row = &self.node(ino)?.row;
        if !is_dir(row) {
            return Err(FsError::NotDirectory.into());
        }
        let mut listed = Vec::new();
        for (cookie, name, ino) in [(DOT, &b"."[..], ino), (DOT_DOT, b"..", row.dir_parent)] {
            if after < cookie {
                listed.push(Listed {
                    name: Bytes::from_static(name),
                    ino,
                    kind: libc::S_IFDIR,
                    cookie,
                    row: None,
                });
            }
        }
        if row.nlink == 0 {
            return Ok(Vec::new());
        }
        let after = after.max(DOT_DOT);
        let limit = limit.saturating_sub(listed.len());
        match (self.directories.get(&ino), page) {
            (Some(directory), _) if directory.complete => {
                listed.extend(directory.after(after).take(limit).map(|(name, slot)| in_memory(name, slot)))
            }
            (_, None) => return Err(Need::Directory(ino).into()),
            (directory, Some(page)) => listed.extend(merge(directory, after, page).into_iter().take(limit)),
        }
        if rows {
            for entry in listed.iter_mut().filter(|entry| entry.cookie > DOT_DOT) {
                if let Some(node) = self.nodes.get(&entry.ino) {
                    entry.row = Some(node.row.clone());
                }
            }
        }
        Ok(listed)
    }
}

/// Committed names of a directory beyond a position.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    pub rows: Vec<(EntryRow, InodeRow)>,
    /// Nothing comes after them.
    pub is_last: bool,
}

/// What is committed, as changed by what memory knows, in the order of positions.
fn merge(directory: Option<&crate::tree::Directory>, after: Cookie, page: &Page) -> Vec<Listed> {
    let end = match page.rows.last() {
        _ if page.is_last => Cookie::MAX,
        Some((entry, _)) => entry.cookie,
        None => after,
    };
    let mut merged: Vec<Listed> = page
        .rows
        .iter()
        .filter(|(entry, _)| directory.is_none_or(|directory| directory.get(&entry.name).is_none()))
        .map(|(entry, row)| Listed {
            name: entry.name.clone(),
            ino: entry.ino,
            kind: entry.kind,
            cookie: entry.cookie,
            row: Some(row.clone()),
        })
        .collect();
    if let Some(directory) = directory {
        merged.extend(
            directory
                .after(after)
                .take_while(|(_, slot)| slot.cookie <= end)
                .map(|(name, slot)| in_memory(name, slot)),
        );
        merged.sort_by_key(|entry| entry.cookie);
    }
    merged
}

fn in_memory(name: &Bytes, slot: &Slot) -> Listed {
    Listed { name: name.clone(), ino: slot.ino, kind: slot.kind, cookie: slot.cookie, row: None }
}
