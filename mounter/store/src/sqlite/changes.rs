//! What differs between two views, and which names inodes have.

use bytes::Bytes;
use rusqlite::{Connection, params};
use rustc_hash::FxHashSet;
use tarbox_types::Ino;

use super::{
    fault::Outcome,
    read,
    rows::{self, number},
};
use crate::model::*;

/// Rows of a window: current ones born in it, and history that began or ended in it.
fn in_window(table: &str, columns: &str) -> String {
    format!(
        "SELECT {columns} FROM {table} WHERE branch = ?1 AND born > ?2 AND born <= ?3
         UNION ALL SELECT {columns} FROM {table}_h WHERE branch = ?1
           AND (born > ?2 AND born <= ?3 OR died > ?2 AND died <= ?3)"
    )
}

pub(super) fn between(connection: &Connection, one: &View, other: &View) -> Outcome<Changes> {
    let (mut inodes, mut entries) = (FxHashSet::default(), FxHashSet::default());
    for Window { branch, after, upto } in one.windows(other) {
        let mut statement = connection.prepare_cached(&in_window("inode", "ino"))?;
        for ino in statement.query_map(params![branch, after, upto], |row| number(row, 0))? {
            inodes.insert(ino?);
        }
        let mut statement = connection.prepare_cached(&in_window("dentry", "parent, name"))?;
        let decode = |row: &rusqlite::Row<'_>| Ok((number(row, 0)?, rows::blob(row, 1)?));
        for entry in statement.query_map(params![branch, after, upto], decode)? {
            entries.insert(entry?);
        }
    }
    Ok(Changes { inodes: inodes.into_iter().collect(), entries: entries.into_iter().collect() })
}

pub(super) fn names_of(connection: &Connection, view: &View, inos: &[Ino]) -> Outcome<Vec<EntryRow>> {
    const ALL: &str =
        "SELECT parent, name, ino FROM dentry WHERE branch = ?1 AND ino IS NOT NULL AND born <= ?2
         UNION ALL SELECT parent, name, ino FROM dentry_h
           WHERE branch = ?1 AND ino IS NOT NULL AND born <= ?2 AND died > ?2";
    let wanted: FxHashSet<Ino> = inos.iter().copied().collect();
    let mut candidates: FxHashSet<(Ino, Bytes)> = FxHashSet::default();
    for link in &view.chain {
        let mut statement = connection.prepare_cached(ALL)?;
        let mut found = statement.query(params![link.branch, link.layer])?;
        while let Some(row) = found.next()? {
            if wanted.contains(&number(row, 2)?) {
                candidates.insert((number(row, 0)?, rows::blob(row, 1)?));
            }
        }
    }
    let mut names = Vec::with_capacity(candidates.len());
    for (parent, name) in candidates {
        // A nearer branch may say something else of the name.
        names.extend(
            read::entry(connection, view, parent, &name)?.filter(|entry| wanted.contains(&entry.ino)),
        );
    }
    Ok(names)
}
