//! Reading through a view: from the head along the chain, until a branch knows the key.

use std::{collections::BTreeMap, ops::Range};

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row, params};
use tarbox_types::{BlockHash, BlockId, BlockIndex, BranchId, Cookie, DataId, Ino, Layer};

use super::{
    connect::in_one_state,
    fault::Outcome,
    rows::{self, inode_columns, int, number},
};
use crate::{error::StoreError, model::*};

/// A head sees every current row, and needs no history.
pub(super) fn is_head(link: &Link) -> bool {
    link.layer == Layer::MAX
}

const INODE: &str =
    concat!("SELECT ", inode_columns!(""), ", dead FROM inode WHERE branch = ?1 AND ino = ?2");
const INODE_AT: &str = concat!(
    "SELECT * FROM (SELECT ",
    inode_columns!(""),
    ", dead FROM inode WHERE branch = ?1 AND ino = ?2 AND born <= ?3)
     UNION ALL SELECT * FROM (SELECT ",
    inode_columns!(""),
    ", dead FROM inode_h
     WHERE branch = ?1 AND ino = ?2 AND died > ?3 AND born <= ?3 ORDER BY died LIMIT 1) LIMIT 1"
);
const ENTRY: &str =
    "SELECT name, ino, kind, cookie FROM dentry WHERE branch = ?1 AND parent = ?2 AND name = ?3";
const ENTRY_AT: &str = "SELECT * FROM (SELECT name, ino, kind, cookie FROM dentry
       WHERE branch = ?1 AND parent = ?2 AND name = ?3 AND born <= ?4)
     UNION ALL SELECT * FROM (SELECT name, ino, kind, cookie FROM dentry_h
       WHERE branch = ?1 AND parent = ?2 AND name = ?3 AND died > ?4 AND born <= ?4 ORDER BY died LIMIT 1) LIMIT 1";
const XATTR: &str = "SELECT data FROM xattr WHERE branch = ?1 AND ino = ?2";
const XATTR_AT: &str = "SELECT * FROM (SELECT data FROM xattr WHERE branch = ?1 AND ino = ?2 AND born <= ?3)
     UNION ALL SELECT * FROM (SELECT data FROM xattr_h
       WHERE branch = ?1 AND ino = ?2 AND died > ?3 AND born <= ?3 ORDER BY died LIMIT 1) LIMIT 1";
/// Names with their inodes in one statement: the head of a tenant that is no clone.
const LIST_JOINED: &str = concat!(
    "SELECT d.name, d.ino, d.kind, d.cookie, ", inode_columns!("i."), "
     FROM dentry d INDEXED BY dentry_cookie LEFT JOIN inode i ON i.branch = ?1 AND i.ino = d.ino AND i.dead = 0
     WHERE d.branch = ?1 AND d.parent = ?2 AND d.cookie > ?3 AND d.ino IS NOT NULL ORDER BY d.cookie LIMIT ?4"
);
const LIST: &str = "SELECT name, ino, kind, cookie FROM dentry INDEXED BY dentry_cookie
     WHERE branch = ?1 AND parent = ?2 AND cookie > ?3 AND ino IS NOT NULL ORDER BY cookie LIMIT ?4";
const LIST_AT: &str = "SELECT name, ino, kind, cookie FROM dentry
       WHERE branch = ?1 AND parent = ?2 AND cookie > ?3 AND ino IS NOT NULL AND born <= ?5
     UNION ALL SELECT name, ino, kind, cookie FROM dentry_h
       WHERE branch = ?1 AND parent = ?2 AND cookie > ?3 AND ino IS NOT NULL AND born <= ?5 AND died > ?5
     ORDER BY cookie LIMIT ?4";
const TOUCHED: &str = "SELECT EXISTS(SELECT 1 FROM dentry WHERE branch = ?1 AND parent = ?2)
     OR EXISTS(SELECT 1 FROM dentry_h WHERE branch = ?1 AND parent = ?2)";

pub(super) fn inode(connection: &Connection, view: &View, ino: Ino) -> Outcome<Option<InodeRow>> {
    for (depth, link) in view.chain.iter().enumerate() {
        let decode = |row: &Row<'_>| Ok((rows::inode(row, 0)?, row.get::<_, bool>(19)?));
        let found = if is_head(link) {
            connection.prepare_cached(INODE)?.query_row(params![link.branch, int(ino)], decode).optional()?
        } else {
            let parameters = params![link.branch, int(ino), link.layer];
            connection.prepare_cached(INODE_AT)?.query_row(parameters, decode).optional()?
        };
        if let Some((row, is_dead)) = found {
            return Ok((!is_dead).then(|| as_seen(row, depth)));
        }
        if ino >= link.ino_floor {
            break;
        }
    }
    Ok(None)
}

/// A cut counts from the fork of the branch that it was made in: where the row is inherited, the branch that looks
/// has not cut anything. What an ancestor cut from its own ancestors stands in table `cut`.
pub(super) fn as_seen(row: InodeRow, depth: usize) -> InodeRow {
    if depth == 0 { row } else { InodeRow { cut: u64::MAX >> 1, ..row } }
}

fn decode_entry(parent: Ino, row: &Row<'_>) -> rusqlite::Result<Option<EntryRow>> {
    Ok(match row.get_ref(1)?.as_i64_or_null()? {
        None => None,
        Some(ino) => Some(EntryRow {
            parent,
            name: rows::blob(row, 0)?,
            ino: ino as u64,
            kind: row.get(2)?,
            cookie: number(row, 3)?,
        }),
    })
}

/// What a branch itself says of a name: nothing, a whiteout, an entry.
fn entry_in(
    connection: &Connection,
    link: &Link,
    parent: Ino,
    name: &[u8],
) -> Outcome<Option<Option<EntryRow>>> {
    let decode = |row: &Row<'_>| decode_entry(parent, row);
    Ok(if is_head(link) {
        connection
            .prepare_cached(ENTRY)?
            .query_row(params![link.branch, int(parent), name], decode)
            .optional()?
    } else {
        let parameters = params![link.branch, int(parent), name, link.layer];
        connection.prepare_cached(ENTRY_AT)?.query_row(parameters, decode).optional()?
    })
}

pub(super) fn entry(
    connection: &Connection,
    view: &View,
    parent: Ino,
    name: &[u8],
) -> Outcome<Option<EntryRow>> {
    for link in &view.chain {
        if let Some(found) = entry_in(connection, link, parent, name)? {
            return Ok(found);
        }
        if parent >= link.ino_floor {
            break;
        }
    }
    Ok(None)
}

fn without_inode(entry: &EntryRow) -> StoreError {
    StoreError::Damaged {
        what: format!("the name {:?} in directory {}", entry.name, entry.parent),
        reason: format!("its inode {} does not exist", entry.ino),
    }
}

pub(super) fn lookup(
    connection: &Connection,
    view: &View,
    parent: Ino,
    name: &[u8],
) -> Outcome<Option<(EntryRow, InodeRow)>> {
    in_one_state(connection, |connection| {
        let Some(entry) = entry(connection, view, parent, name)? else { return Ok(None) };
        match inode(connection, view, entry.ino)? {
            Some(inode) => Ok(Some((entry, inode))),
            None => Err(without_inode(&entry).into()),
        }
    })
}

pub(super) fn list(
    connection: &Connection,
    view: &View,
    parent: Ino,
    after: Cookie,
    limit: usize,
) -> Outcome<Vec<(EntryRow, InodeRow)>> {
    let head = &view.chain[0];
    let has_ancestors = view.chain.len() > 1;
    if is_head(head) && (!has_ancestors || parent >= head.ino_floor) {
        // A new directory of a clone may still hold names of inherited inodes (moved, linked).
        return list_joined(connection, view, parent, after, limit);
    }
    in_one_state(connection, |connection| {
        let mut found = Vec::new();
        let mut nearer = Vec::new();
        for link in &view.chain {
            entries_of(connection, link, &nearer, parent, after, limit, &mut found)?;
            if parent >= link.ino_floor {
                break;
            }
            let touched = connection
                .prepare_cached(TOUCHED)?
                .query_row(params![link.branch, int(parent)], |row| row.get::<_, bool>(0))?;
            if touched {
                nearer.push(link);
            }
        }
        found.sort_unstable_by_key(|entry: &EntryRow| entry.cookie);
        found.truncate(limit);
        found
            .into_iter()
            .map(|entry| match inode(connection, view, entry.ino)? {
                Some(inode) => Ok((entry, inode)),
                None => Err(without_inode(&entry).into()),
            })
            .collect()
    })
}

fn list_joined(
    connection: &Connection,
    view: &View,
    parent: Ino,
    after: Cookie,
    limit: usize,
) -> Outcome<Vec<(EntryRow, InodeRow)>> {
    let mut statement = connection.prepare_cached(LIST_JOINED)?;
    let mut rows = statement.query(params![
        view.chain[0].branch,
        int(parent),
        int(after),
        i64::try_from(limit).unwrap_or(i64::MAX)
    ])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let Some(entry) = decode_entry(parent, row)? else { continue };
        let joined = match row.get_ref(4)? {
            rusqlite::types::ValueRef::Null => inode(connection, view, entry.ino)?,
            _ => Some(rows::inode(row, 4)?),
        };
        match joined {
            Some(inode) => found.push((entry, inode)),
            None => return Err(without_inode(&entry).into()),
        }
    }
    Ok(found)
}

/// Up to `limit` names of one branch that no nearer branch speaks of. Nearer ones hide by name, not by cookie:
/// a name that was removed and made again has another cookie than its ancestor.
fn entries_of(
    connection: &Connection,
    link: &Link,
    nearer: &[&Link],
    parent: Ino,
    mut after: Cookie,
    limit: usize,
    found: &mut Vec<EntryRow>,
) -> Outcome<()> {
    let most = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut taken = 0;
    loop {
        let page: Vec<EntryRow> = {
            let decode = |row: &Row<'_>| decode_entry(parent, row);
            let rows: rusqlite::Result<Vec<_>> = if is_head(link) {
                let mut statement = connection.prepare_cached(LIST)?;
                statement.query_map(params![link.branch, int(parent), int(after), most], decode)?.collect()
            } else {
                let mut statement = connection.prepare_cached(LIST_AT)?;
                let parameters = params![link.branch, int(parent), int(after), most, link.layer];
                statement.query_map(parameters, decode)?.collect()
            };
            rows?.into_iter().flatten().collect()
        };
        let was_full = page.len() >= limit;
        after = page.last().map_or(after, |entry| entry.cookie);
        for entry in page {
            let mut is_hidden = false;
            for link in nearer {
                is_hidden = is_hidden || entry_in(connection, link, parent, &entry.name)?.is_some();
            }
            if !is_hidden && taken < limit {
                taken += 1;
                found.push(entry);
            }
        }
        if !was_full || taken >= limit {
            return Ok(());
        }
    }
}

pub(super) fn xattrs(connection: &Connection, view: &View, ino: Ino) -> Outcome<Option<Bytes>> {
    for link in &view.chain {
        let decode = |row: &Row<'_>| Ok(row.get_ref(0)?.as_blob_or_null()?.map(Bytes::copy_from_slice));
        let found = if is_head(link) {
            connection.prepare_cached(XATTR)?.query_row(params![link.branch, int(ino)], decode).optional()?
        } else {
            let parameters = params![link.branch, int(ino), link.layer];
            connection.prepare_cached(XATTR_AT)?.query_row(parameters, decode).optional()?
        };
        if let Some(value) = found {
            return Ok(value);
        }
        if ino >= link.ino_floor {
            break;
        }
    }
    Ok(None)
}

// === Content ===

const EXT: &str = "SELECT blk, born, kind, alloc, block FROM ext
     WHERE branch = ?1 AND did = ?2 AND blk >= ?3 AND blk < ?4";
const EXT_AT: &str = "SELECT blk, born, kind, alloc, block FROM ext
       WHERE branch = ?1 AND did = ?2 AND blk >= ?3 AND blk < ?4 AND born <= ?5
     UNION ALL SELECT blk, born, kind, alloc, block FROM ext_h
       WHERE branch = ?1 AND did = ?2 AND blk >= ?3 AND blk < ?4 AND born <= ?5 AND died > ?5";
const CUT: &str =
    "SELECT blk FROM cut WHERE branch = ?1 AND did = ?2 AND born <= ?3 ORDER BY born DESC LIMIT 1";
const PATCH_SUMS: &str = "SELECT blk, born, count(*), sum(len) FROM patch
     WHERE branch = ?1 AND did = ?2 AND blk >= ?3 AND blk < ?4 GROUP BY blk, born";

/// A version of an extent row, and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) blk: BlockIndex,
    pub(super) branch: BranchId,
    pub(super) born: Layer,
    pub(super) kind: i64,
    pub(super) alloc: AllocMap,
    pub(super) block: i64,
    pub(super) patches: u32,
    pub(super) patch_bytes: u32,
}

impl Found {
    fn decode(branch: BranchId, row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            blk: number(row, 0)?,
            branch,
            born: row.get(1)?,
            kind: row.get(2)?,
            alloc: rows::alloc(row, 3)?,
            block: row.get::<_, Option<i64>>(4)?.unwrap_or(0),
            patches: 0,
            patch_bytes: 0,
        })
    }

    pub(super) fn extent(self) -> Extent {
        let kind = match self.kind {
            1 => ExtentKind::Block(self.block as u64),
            2 => ExtentKind::Inline,
            _ => ExtentKind::Hole,
        };
        Extent {
            blk: self.blk,
            alloc: self.alloc,
            kind,
            patches: self.patches,
            patch_bytes: self.patch_bytes,
        }
    }
}

/// First block of a content that is hidden by a cut at this byte.
fn cut_block(cut: u64, block_size: u32) -> BlockIndex {
    cut.div_ceil(u64::from(block_size))
}

/// Extent rows in a range, by index. To be called in one state where the chain is longer than one.
pub(super) fn found(
    connection: &Connection,
    view: &View,
    data: DataRef,
    block_size: u32,
    range: Range<BlockIndex>,
) -> Outcome<Vec<Found>> {
    let mut merged: BTreeMap<BlockIndex, Found> = BTreeMap::new();
    let (start, mut end) = (int(range.start), int(range.end));
    for (depth, link) in view.chain.iter().enumerate() {
        if start >= end {
            break;
        }
        let mut of_link = found_in(connection, link, data.did, start, end)?;
        sum_patches(connection, link.branch, data.did, start, end, &mut of_link)?;
        let is_last = data.did >= link.ino_floor || depth + 1 == view.chain.len();
        if depth == 0 && is_last {
            of_link.sort_unstable_by_key(|found| found.blk);
            return Ok(of_link);
        }
        for found in of_link {
            merged.entry(found.blk).or_insert(found);
        }
        if is_last {
            break;
        }
        if depth == 0 {
            end = end.min(int(cut_block(data.cut, block_size)));
        }
        let cut = connection
            .prepare_cached(CUT)?
            .query_row(params![link.branch, int(data.did), link.layer], |row| row.get::<_, i64>(0))
            .optional()?;
        end = end.min(cut.unwrap_or(i64::MAX));
    }
    Ok(merged.into_values().collect())
}

fn found_in(connection: &Connection, link: &Link, did: DataId, start: i64, end: i64) -> Outcome<Vec<Found>> {
    let decode = |row: &Row<'_>| Found::decode(link.branch, row);
    let rows: rusqlite::Result<Vec<_>> = if is_head(link) {
        let mut statement = connection.prepare_cached(EXT)?;
        statement.query_map(params![link.branch, int(did), start, end], decode)?.collect()
    } else {
        let mut statement = connection.prepare_cached(EXT_AT)?;
        statement.query_map(params![link.branch, int(did), start, end, link.layer], decode)?.collect()
    };
    Ok(rows?)
}

fn sum_patches(
    connection: &Connection,
    branch: BranchId,
    did: DataId,
    start: i64,
    end: i64,
    of_link: &mut [Found],
) -> Outcome<()> {
    if of_link.is_empty() {
        return Ok(());
    }
    let mut statement = connection.prepare_cached(PATCH_SUMS)?;
    let mut rows = statement.query(params![branch, int(did), start, end])?;
    let mut at = 0;
    of_link.sort_unstable_by_key(|found| found.blk);
    while let Some(row) = rows.next()? {
        let (blk, born) = (number(row, 0)?, row.get::<_, i64>(1)?);
        while at < of_link.len() && of_link[at].blk < blk {
            at += 1;
        }
        if let Some(found) = of_link.get_mut(at)
            && (found.blk, found.born) == (blk, born)
        {
            found.patches = row.get(2)?;
            found.patch_bytes = row.get(3)?;
        }
    }
    Ok(())
}

/// What a block of a file is made of, its stored bytes apart.
pub(super) struct Recipe {
    pub(super) blk: BlockIndex,
    pub(super) base: Base,
    pub(super) patches: Vec<(u32, Bytes)>,
}

/// Where the bytes below the patches are.
pub(super) enum Base {
    Nothing,
    Inline(Bytes),
    /// A block, and its header if it is there.
    Block(BlockId, Option<BlockHeader>),
}

/// Resolves blocks of a content in one state.
pub(super) fn recipes(
    connection: &Connection,
    view: &View,
    data: DataRef,
    block_size: u32,
    blks: &[BlockIndex],
) -> Outcome<Vec<Recipe>> {
    in_one_state(connection, |connection| {
        let mut out = Vec::with_capacity(blks.len());
        let is_run = blks.windows(2).all(|pair| pair[1] == pair[0] + 1);
        if let (true, Some(first)) = (is_run, blks.first()) {
            let range = *first..*first + blks.len() as u64;
            for found in found(connection, view, data, block_size, range)? {
                out.extend(recipe(connection, data.did, found)?);
            }
        } else {
            for blk in blks {
                for found in found(connection, view, data, block_size, *blk..*blk + 1)? {
                    out.extend(recipe(connection, data.did, found)?);
                }
            }
        }
        Ok(out)
    })
}

fn recipe(connection: &Connection, did: DataId, found: Found) -> Outcome<Option<Recipe>> {
    let base = match found.kind {
        1 => Base::Block(found.block as u64, header(connection, found.block)?),
        2 => Base::Inline(
            connection
                .prepare_cached("SELECT data FROM bytes WHERE id = ?1")?
                .query_row([found.block], |row| rows::blob(row, 0))
                .optional()?
                .ok_or_else(|| StoreError::Damaged {
                    what: format!("the extent at block {} of content {did}", found.blk),
                    reason: "its inline bytes are missing".into(),
                })?,
        ),
        _ if found.patches == 0 => return Ok(None),
        _ => Base::Nothing,
    };
    let mut patches = Vec::new();
    if found.patches > 0 {
        let mut statement = connection.prepare_cached(
            "SELECT p.off, b.data FROM patch p JOIN bytes b ON b.id = p.bytes
             WHERE p.branch = ?1 AND p.did = ?2 AND p.blk = ?3 AND p.born = ?4 ORDER BY p.seq, p.off",
        )?;
        let mut rows = statement.query(params![found.branch, int(did), int(found.blk), found.born])?;
        while let Some(row) = rows.next()? {
            patches.push((row.get(0)?, rows::blob(row, 1)?));
        }
        if patches.len() != found.patches as usize {
            return Err(StoreError::Damaged {
                what: format!("the extent at block {} of content {did}", found.blk),
                reason: "bytes of its patches are missing".into(),
            }
            .into());
        }
    }
    Ok(Some(Recipe { blk: found.blk, base, patches }))
}

/// The header of a block, if it is there.
pub(super) fn header(connection: &Connection, block: i64) -> Outcome<Option<BlockHeader>> {
    Ok(connection
        .prepare_cached("SELECT hash, len, codec FROM block WHERE block = ?1")?
        .query_row([block], |row| {
            let hash = row.get::<_, [u8; 32]>(0)?;
            let codec = if row.get::<_, i64>(2)? == 0 { Codec::Raw } else { Codec::Zstd };
            Ok(BlockHeader { block: block as u64, hash: BlockHash(hash), len: row.get(1)?, codec })
        })
        .optional()?)
}

/// The stored bytes of a block, if they are there.
pub(super) fn part(connection: &Connection, block: BlockId) -> Outcome<Option<Bytes>> {
    Ok(connection
        .prepare_cached("SELECT data FROM block_part WHERE block = ?1")?
        .query_row([int(block)], |row| rows::blob(row, 0))
        .optional()?)
}

/// Some of the stored bytes of a block; `None` where it, or its end, is not there.
pub(super) fn stored_range(
    connection: &Connection,
    block: BlockId,
    range: Range<u32>,
) -> Outcome<Option<Bytes>> {
    let blob = match connection.blob_open(rusqlite::MAIN_DB, "block_part", "data", int(block), true) {
        Ok(blob) => blob,
        Err(error) if is_missing(&error) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if blob.len() < range.end as usize {
        return Ok(None);
    }
    let mut bytes = vec![0; range.len()];
    blob.read_at_exact(&mut bytes, range.start as usize)?;
    Ok(Some(bytes.into()))
}

/// Whether opening a value failed because there is no such row: SQLite calls that an error without a code of its own.
fn is_missing(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|error| error.extended_code == rusqlite::ffi::SQLITE_ERROR)
}

pub(super) fn orphans(connection: &Connection, view: &View) -> Outcome<Vec<InodeRow>> {
    in_one_state(connection, |connection| {
        let mut numbers = std::collections::BTreeSet::new();
        for link in &view.chain {
            let sql = if is_head(link) {
                "SELECT ino FROM inode INDEXED BY inode_orphan WHERE branch = ?1 AND nlink = 0 AND dead = 0"
            } else {
                "SELECT ino FROM inode WHERE branch = ?1 AND nlink = 0 AND dead = 0 AND born <= ?2
                 UNION SELECT ino FROM inode_h
                   WHERE branch = ?1 AND nlink = 0 AND dead = 0 AND born <= ?2 AND died > ?2"
            };
            let mut statement = connection.prepare_cached(sql)?;
            let mut rows = if is_head(link) {
                statement.query(params![link.branch])?
            } else {
                statement.query(params![link.branch, link.layer])?
            };
            while let Some(row) = rows.next()? {
                numbers.insert(number(row, 0)?);
            }
        }
        let mut orphans = Vec::new();
        for ino in numbers {
            orphans.extend(inode(connection, view, ino)?.filter(|row| row.nlink == 0));
        }
        Ok(orphans)
    })
}
