//! One commit: the fence, then each table in the order of the storage model. Everything in one transaction.

use std::collections::hash_map::Entry;

use rusqlite::{Connection, OptionalExtension, Row, params};
use rustc_hash::FxHashMap;
use tarbox_types::{BlockIndex, BranchId, Cookie, DataId, Ino, Layer};

use super::{
    audit,
    fault::Outcome,
    read,
    rows::{self, TenantRow, alloc_bytes, int, number},
};
use crate::{codec, error::StoreError, model::*};

/// Where a commit writes: what the fence returned from the row it locked.
pub(super) struct Target<'a> {
    pub(super) connection: &'a Connection,
    pub(super) branch: BranchId,
    pub(super) layer: Layer,
    /// Rows born up to here are seen by a kept view.
    pub(super) last_view: Layer,
    /// Keys with numbers from here on are unknown to ancestors.
    pub(super) ino_floor: Ino,
    pub(super) block_size: u32,
}

/// As [`FENCE`], where nothing but the audit changes.
const SILENT_FENCE: &str =
    "UPDATE tenant SET seq = ?6, commit_epoch = epoch, next_ino = max(next_ino, ?7), used_bytes = ?8, used_inodes = ?9,
     silent_from = CASE silent_to WHEN ?5 THEN silent_from ELSE ?5 END, silent_to = ?6
     WHERE id = ?1 AND token = ?2 AND epoch = ?3 AND session = ?4 AND held = 1 AND seq = ?5
     RETURNING head_branch, cur_layer, last_view, quota_bytes, quota_inodes, max_file, block_size";
const FENCE: &str =
    "UPDATE tenant SET seq = ?6, commit_epoch = epoch, next_ino = max(next_ino, ?7), used_bytes = ?8, used_inodes = ?9
     WHERE id = ?1 AND token = ?2 AND epoch = ?3 AND session = ?4 AND held = 1 AND seq = ?5
     RETURNING head_branch, cur_layer, last_view, quota_bytes, quota_inodes, max_file, block_size";

/// Commits a batch.
pub(super) fn commit(connection: &Connection, fence: &Fence, batch: &Batch) -> Outcome<Committed> {
    let (target, limits) = pass_fence(connection, fence, batch)?;
    target.blocks(batch)?;
    target.remove(batch)?;
    target.put_inodes(&batch.inodes)?;
    target.put_entries(&batch.entries)?;
    target.put_xattrs(&batch.xattrs)?;
    for (did, from) in &batch.truncated {
        target.truncate(*did, *from)?;
    }
    for (did, blk) in &batch.removed_extents {
        target.remove_extent(*did, *blk)?;
    }
    target.put_extents(&batch.extents)?;
    target.put_patches(batch)?;
    audit::put(connection, fence.tenant, &batch.audit)?;
    let sealed = match &batch.seal {
        Some(seal) => Some(seal_in_commit(&target, fence, batch, seal)?),
        None => None,
    };
    Ok(Committed { layer: target.layer, sealed, limits })
}

fn pass_fence<'a>(connection: &'a Connection, fence: &Fence, batch: &Batch) -> Outcome<(Target<'a>, Limits)> {
    let passed = connection
        .prepare_cached(if batch.is_silent() { SILENT_FENCE } else { FENCE })?
        .query_row(
            params![
                fence.tenant.0.as_bytes(),
                fence.token.as_bytes(),
                fence.epoch,
                fence.session.0.as_bytes(),
                int(batch.from_seq),
                int(batch.to_seq),
                int(batch.next_ino),
                int(batch.used_bytes),
                int(batch.used_inodes)
            ],
            |row| {
                let limits =
                    Limits { bytes: number(row, 3)?, inodes: number(row, 4)?, file_bytes: number(row, 5)? };
                let target = Target {
                    connection,
                    branch: row.get(0)?,
                    layer: row.get(1)?,
                    last_view: row.get(2)?,
                    ino_floor: 0,
                    block_size: row.get(6)?,
                };
                Ok((target, limits))
            },
        )
        .optional()?;
    match passed {
        Some((target, limits)) => {
            let ino_floor = floor(connection, target.branch)?;
            Ok((Target { ino_floor, ..target }, limits))
        }
        None => Err(refusal(connection, fence, Some(batch.from_seq))?.into()),
    }
}

pub(super) fn floor(connection: &Connection, branch: BranchId) -> Outcome<Ino> {
    Ok(connection
        .prepare_cached("SELECT ino_floor FROM branch WHERE branch = ?1")?
        .query_row([branch], |row| number(row, 0))?)
}

/// Why the fence did not let through.
pub(super) fn refusal(connection: &Connection, fence: &Fence, from: Option<u64>) -> Outcome<StoreError> {
    let Some(row) = TenantRow::find(connection, fence.tenant)? else {
        return Ok(StoreError::NoTenant(fence.tenant.to_string()));
    };
    let is_ours = row.fence() == *fence && row.is_held;
    Ok(match from {
        Some(expected) if is_ours => StoreError::Position { expected, found: row.seq },
        _ => StoreError::Fenced { tenant: fence.tenant, epoch: fence.epoch, epoch_now: row.epoch },
    })
}

// === Tables ===

const INODE_TO_HISTORY: &str =
    "INSERT INTO inode_h SELECT *, ?4 FROM inode WHERE branch = ?1 AND ino = ?2 AND born <= ?3";
const ENTRY_TO_HISTORY: &str = "INSERT INTO dentry_h SELECT *, ?5 FROM dentry
     WHERE branch = ?1 AND parent = ?2 AND name = ?3 AND born <= ?4";
const XATTR_TO_HISTORY: &str =
    "INSERT INTO xattr_h SELECT *, ?4 FROM xattr WHERE branch = ?1 AND ino = ?2 AND born <= ?3";
const EXT_TO_HISTORY: &str =
    "INSERT INTO ext_h SELECT *, ?4 FROM ext WHERE branch = ?1 AND did = ?2 AND blk = ?3";
const PUT_INODE: &str = "INSERT OR REPLACE INTO inode(branch, ino, born, dead, mode, uid, gid, rdev, nlink, size,
     atime, atime_ns, mtime, mtime_ns, ctime, ctime_ns, dir_parent, did, cut, charge, prealloc, target)
     VALUES(?1, ?2, ?3, 0, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21)";
const INODE_WHITEOUT: &str =
    "INSERT OR REPLACE INTO inode(branch, ino, born, dead, mode, uid, gid, rdev, nlink, size,
     atime, atime_ns, mtime, mtime_ns, ctime, ctime_ns, dir_parent, did, cut, charge)
     VALUES(?1, ?2, ?3, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)";
const PUT_ENTRY: &str = "INSERT INTO dentry(branch, parent, name, born, ino, kind, cookie)
     VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT(branch, parent, name)
     DO UPDATE SET born = excluded.born, ino = excluded.ino, kind = excluded.kind, cookie = excluded.cookie";
const PUT_XATTR: &str = "INSERT OR REPLACE INTO xattr(branch, ino, born, data) VALUES(?1, ?2, ?3, ?4)";
const PUT_EXT: &str = "INSERT INTO ext(branch, did, blk, born, kind, alloc, block)
     VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT(branch, did, blk)
     DO UPDATE SET born = excluded.born, kind = excluded.kind, alloc = excluded.alloc, block = excluded.block";
const CURRENT_EXT: &str = "SELECT born, kind, block FROM ext WHERE branch = ?1 AND did = ?2 AND blk = ?3";

/// The present version of an extent row of this branch.
#[derive(Clone, Copy)]
struct Current {
    born: Layer,
    kind: i64,
    block: Option<i64>,
}

impl<'a> Target<'a> {
    /// The head of a tenant whose row this transaction has locked.
    pub(super) fn of_head(connection: &'a Connection, row: &TenantRow) -> Outcome<Self> {
        Ok(Self {
            connection,
            branch: row.head_branch,
            layer: row.layer,
            last_view: row.last_view,
            ino_floor: floor(connection, row.head_branch)?,
            block_size: row.block_size,
        })
    }

    fn blocks(&self, batch: &Batch) -> Outcome<()> {
        let mut exists = self.connection.prepare_cached("SELECT 1 FROM block WHERE block = ?1")?;
        let mut gone = Vec::new();
        for block in &batch.reused {
            if !exists.exists([int(*block)])? {
                gone.push(*block);
            }
        }
        if !gone.is_empty() {
            return Err(StoreError::BlocksGone(gone).into());
        }
        let mut put = self
            .connection
            .prepare_cached("INSERT OR REPLACE INTO block(block, hash, len, codec) VALUES(?1, ?2, ?3, ?4)")?;
        for header in &batch.headers {
            let codec = i64::from(header.codec == Codec::Zstd);
            put.execute(params![int(header.block), header.hash.0, header.len, codec])?;
        }
        Ok(())
    }

    /// What is gone, before what is new.
    pub(super) fn remove(&self, batch: &Batch) -> Outcome<()> {
        let mut dead = self
            .connection
            .prepare_cached("INSERT OR IGNORE INTO dead(branch, did, died) VALUES(?1, ?2, ?3)")?;
        for did in &batch.removed_data {
            dead.execute(params![self.branch, int(*did), self.layer])?;
        }
        for ino in &batch.removed_inodes {
            self.remove_inode(*ino)?;
            self.put_xattr(*ino, None)?;
        }
        for (parent, name, cookie) in &batch.removed_entries {
            self.remove_entry(*parent, name, *cookie)?;
        }
        Ok(())
    }

    fn inode_to_history(&self, ino: Ino) -> Outcome<()> {
        if self.last_view > 0 {
            self.connection.prepare_cached(INODE_TO_HISTORY)?.execute(params![
                self.branch,
                int(ino),
                self.last_view,
                self.layer
            ])?;
        }
        Ok(())
    }

    fn remove_inode(&self, ino: Ino) -> Outcome<()> {
        self.inode_to_history(ino)?;
        if ino >= self.ino_floor {
            self.connection
                .prepare_cached("DELETE FROM inode WHERE branch = ?1 AND ino = ?2")?
                .execute(params![self.branch, int(ino)])?;
        } else {
            self.connection.prepare_cached(INODE_WHITEOUT)?.execute(params![
                self.branch,
                int(ino),
                self.layer
            ])?;
        }
        Ok(())
    }

    fn put_inodes(&self, inodes: &[InodeRow]) -> Outcome<()> {
        let mut put = self.connection.prepare_cached(PUT_INODE)?;
        for row in inodes {
            self.inode_to_history(row.ino)?;
            let prealloc = (!row.prealloc.is_empty()).then(|| codec::encode_ranges(&row.prealloc));
            let target = (!row.target.is_empty()).then_some(&row.target[..]);
            put.execute(params![
                self.branch,
                int(row.ino),
                self.layer,
                row.mode,
                row.uid,
                row.gid,
                row.rdev,
                row.nlink,
                int(row.size),
                row.atime.sec,
                row.atime.nsec,
                row.mtime.sec,
                row.mtime.nsec,
                row.ctime.sec,
                row.ctime.nsec,
                int(row.dir_parent),
                int(row.did),
                int(row.cut),
                int(row.charge),
                prealloc,
                target
            ])?;
        }
        Ok(())
    }

    fn entry_to_history(&self, parent: Ino, name: &[u8]) -> Outcome<()> {
        if self.last_view > 0 {
            self.connection.prepare_cached(ENTRY_TO_HISTORY)?.execute(params![
                self.branch,
                int(parent),
                name,
                self.last_view,
                self.layer
            ])?;
        }
        Ok(())
    }

    fn remove_entry(&self, parent: Ino, name: &[u8], cookie: Cookie) -> Outcome<()> {
        self.entry_to_history(parent, name)?;
        if parent >= self.ino_floor {
            self.connection
                .prepare_cached("DELETE FROM dentry WHERE branch = ?1 AND parent = ?2 AND name = ?3")?
                .execute(params![self.branch, int(parent), name])?;
        } else {
            self.connection.prepare_cached(PUT_ENTRY)?.execute(params![
                self.branch,
                int(parent),
                name,
                self.layer,
                None::<i64>,
                0,
                int(cookie)
            ])?;
        }
        Ok(())
    }

    fn put_entries(&self, entries: &[EntryRow]) -> Outcome<()> {
        let mut put = self.connection.prepare_cached(PUT_ENTRY)?;
        for row in entries {
            self.entry_to_history(row.parent, &row.name)?;
            put.execute(params![
                self.branch,
                int(row.parent),
                &row.name[..],
                self.layer,
                int(row.ino),
                row.kind,
                int(row.cookie)
            ])?;
        }
        Ok(())
    }

    fn put_xattrs(&self, xattrs: &[(Ino, Option<bytes::Bytes>)]) -> Outcome<()> {
        xattrs.iter().try_for_each(|(ino, value)| self.put_xattr(*ino, value.as_deref()))
    }

    fn put_xattr(&self, ino: Ino, value: Option<&[u8]>) -> Outcome<()> {
        if self.last_view > 0 {
            self.connection.prepare_cached(XATTR_TO_HISTORY)?.execute(params![
                self.branch,
                int(ino),
                self.last_view,
                self.layer
            ])?;
        }
        if value.is_none() && ino >= self.ino_floor {
            self.connection
                .prepare_cached("DELETE FROM xattr WHERE branch = ?1 AND ino = ?2")?
                .execute(params![self.branch, int(ino)])?;
        } else {
            self.connection.prepare_cached(PUT_XATTR)?.execute(params![
                self.branch,
                int(ino),
                self.layer,
                value
            ])?;
        }
        Ok(())
    }

    // === Extents ===

    fn current(&self, did: DataId, blk: BlockIndex) -> Outcome<Option<Current>> {
        let decode = |row: &Row<'_>| Ok(Current { born: row.get(0)?, kind: row.get(1)?, block: row.get(2)? });
        Ok(self
            .connection
            .prepare_cached(CURRENT_EXT)?
            .query_row(params![self.branch, int(did), int(blk)], decode)
            .optional()?)
    }

    /// Puts away the present version of a row that is about to be replaced or removed.
    fn retire(&self, did: DataId, blk: BlockIndex, current: Current) -> Outcome<()> {
        if current.born <= self.last_view {
            // Its patches belong to the version, and stay where they are.
            self.connection.prepare_cached(EXT_TO_HISTORY)?.execute(params![
                self.branch,
                int(did),
                int(blk),
                self.layer
            ])?;
            return Ok(());
        }
        let version = Version { branch: self.branch, did, blk, born: current.born };
        version.drop_content(self.connection, current.kind, current.block)
    }

    fn put_extents(&self, extents: &[ExtentRow]) -> Outcome<()> {
        let mut put = self.connection.prepare_cached(PUT_EXT)?;
        for row in extents {
            if let Some(current) = self.current(row.did, row.blk)? {
                self.retire(row.did, row.blk, current)?;
            }
            let (kind, block) = match &row.body {
                ExtentBody::Hole => (0, None),
                ExtentBody::Block(block) => (1, Some(int(*block))),
                ExtentBody::Inline(data) => (2, Some(put_bytes(self.connection, data)?)),
            };
            let alloc = alloc_bytes(&row.alloc);
            put.execute(params![self.branch, int(row.did), int(row.blk), self.layer, kind, alloc, block])?;
        }
        Ok(())
    }

    fn delete_extent(&self, did: DataId, blk: BlockIndex) -> Outcome<()> {
        self.connection
            .prepare_cached("DELETE FROM ext WHERE branch = ?1 AND did = ?2 AND blk = ?3")?
            .execute(params![self.branch, int(did), int(blk)])?;
        Ok(())
    }

    fn remove_extent(&self, did: DataId, blk: BlockIndex) -> Outcome<()> {
        if let Some(current) = self.current(did, blk)? {
            self.retire(did, blk, current)?;
        }
        if did >= self.ino_floor {
            return self.delete_extent(did, blk);
        }
        self.connection.prepare_cached(PUT_EXT)?.execute(params![
            self.branch,
            int(did),
            int(blk),
            self.layer,
            0,
            None::<&[u8]>,
            None::<i64>
        ])?;
        Ok(())
    }

    fn truncate(&self, did: DataId, from: BlockIndex) -> Outcome<()> {
        let rows: Vec<(u64, Current)> = {
            let mut statement = self.connection.prepare_cached(
                "SELECT blk, born, kind, block FROM ext WHERE branch = ?1 AND did = ?2 AND blk >= ?3",
            )?;
            let decode = |row: &Row<'_>| {
                let current = Current { born: row.get(1)?, kind: row.get(2)?, block: row.get(3)? };
                Ok((number(row, 0)?, current))
            };
            let rows = statement.query_map(params![self.branch, int(did), int(from)], decode)?;
            rows.collect::<rusqlite::Result<_>>()?
        };
        for (blk, current) in rows {
            self.retire(did, blk, current)?;
            self.delete_extent(did, blk)?;
        }
        if did < self.ino_floor {
            self.connection
                .prepare_cached(
                    "INSERT OR REPLACE INTO cut(branch, did, born, blk) SELECT ?1, ?2, ?3, min(?4,
                     coalesce((SELECT min(blk) FROM cut WHERE branch = ?1 AND did = ?2), ?4))",
                )?
                .execute(params![self.branch, int(did), self.layer, int(from)])?;
        }
        Ok(())
    }

    // === Patches ===

    fn put_patches(&self, batch: &Batch) -> Outcome<()> {
        let mut put = self.connection.prepare_cached(
            "INSERT OR REPLACE INTO patch(branch, did, blk, born, seq, off, len, bytes)
             VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?;
        // Asked for once per block, however many patches it gets.
        let mut own: FxHashMap<(DataId, BlockIndex), Layer> = FxHashMap::default();
        let mut own_version = |did, blk| match own.entry((did, blk)) {
            Entry::Occupied(known) => Ok(*known.get()),
            Entry::Vacant(new) => self.own_version(did, blk).map(|born| *new.insert(born)),
        };
        for patch in &batch.patches {
            let born = own_version(patch.did, patch.blk)?;
            let bytes = put_bytes(self.connection, &patch.data)?;
            put.execute(params![
                self.branch,
                int(patch.did),
                int(patch.blk),
                born,
                int(patch.seq),
                patch.off,
                patch.data.len() as i64,
                bytes
            ])?;
        }
        let mut set = self
            .connection
            .prepare_cached("UPDATE ext SET alloc = ?4 WHERE branch = ?1 AND did = ?2 AND blk = ?3")?;
        for (did, blk, alloc) in &batch.patched {
            own_version(*did, *blk)?;
            set.execute(params![self.branch, int(*did), int(*blk), alloc_bytes(alloc)])?;
        }
        Ok(())
    }

    /// Makes sure that the present version of an extent is one that no kept view sees and no ancestor owns,
    /// so that a patch can be added to it; returns when it was born.
    fn own_version(&self, did: DataId, blk: BlockIndex) -> Outcome<Layer> {
        let from = match self.current(did, blk)? {
            Some(current) if current.born > self.last_view => return Ok(current.born),
            Some(current) => {
                self.retire(did, blk, current)?;
                let found = self.found(did, blk)?;
                found.map(|found| (found, current.born))
            }
            None => self.found(did, blk)?.map(|found| {
                let born = found.born;
                (found, born)
            }),
        };
        match from {
            Some((found, born)) => {
                let old = Version { branch: found.branch, did, blk, born };
                let new = Version { branch: self.branch, did, blk, born: self.layer };
                old.copy_to(self.connection, &new, found.kind, &found.alloc, found.block)?;
            }
            None => {
                let hole = ExtentRow { did, blk, alloc: AllocMap::default(), body: ExtentBody::Hole };
                self.put_extents(&[hole])?;
            }
        }
        Ok(self.layer)
    }

    fn found(&self, did: DataId, blk: BlockIndex) -> Outcome<Option<read::Found>> {
        let view = rows::view(self.connection, self.branch, Layer::MAX)?;
        let data = DataRef { did, cut: u64::MAX >> 1 };
        Ok(read::found(self.connection, &view, data, self.block_size, blk..blk + 1)?.pop())
    }
}

fn put_bytes(connection: &Connection, data: &[u8]) -> Outcome<i64> {
    connection.prepare_cached("INSERT INTO bytes(data) VALUES(?1)")?.execute([data])?;
    Ok(connection.last_insert_rowid())
}

/// One version of an extent row.
pub(super) struct Version {
    pub(super) branch: BranchId,
    pub(super) did: DataId,
    pub(super) blk: BlockIndex,
    pub(super) born: Layer,
}

impl Version {
    /// Removes what only this version refers to; its block may have lost its last reference.
    pub(super) fn drop_content(&self, connection: &Connection, kind: i64, block: Option<i64>) -> Outcome<()> {
        let mut forget = connection.prepare_cached("DELETE FROM bytes WHERE id = ?1")?;
        match kind {
            1 => {
                connection
                    .prepare_cached("INSERT OR IGNORE INTO dropped(block) VALUES(?1)")?
                    .execute([block])?;
            }
            2 => {
                forget.execute([block])?;
            }
            _ => {}
        }
        let bytes: Vec<i64> = connection
            .prepare_cached(
                "DELETE FROM patch WHERE branch = ?1 AND did = ?2 AND blk = ?3 AND born = ?4 RETURNING bytes",
            )?
            .query_map(params![self.branch, int(self.did), int(self.blk), self.born], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        for id in bytes {
            forget.execute([id])?;
        }
        Ok(())
    }

    /// Makes `new` a current row with the content of this version, patches included. Blocks are shared, bytes copied.
    pub(super) fn copy_to(
        &self,
        connection: &Connection,
        new: &Self,
        kind: i64,
        alloc: &AllocMap,
        block: i64,
    ) -> Outcome<()> {
        let block = match kind {
            2 => Some(copy_bytes(connection, block)?),
            1 => Some(block),
            _ => None,
        };
        let alloc = alloc_bytes(alloc);
        let parameters = params![new.branch, int(new.did), int(new.blk), new.born, kind, alloc, block];
        connection.prepare_cached(PUT_EXT)?.execute(parameters)?;
        self.copy_patches(connection, new)
    }

    /// As [`Version::copy_to`], of a version that died; `false` where it is there already.
    pub(super) fn copy_to_history(
        &self,
        connection: &Connection,
        new: &Self,
        kind: i64,
        alloc: &AllocMap,
        block: i64,
        died: Layer,
    ) -> Outcome<bool> {
        let key = params![new.branch, int(new.did), int(new.blk), died];
        let is_there = connection
            .prepare_cached("SELECT 1 FROM ext_h WHERE branch = ?1 AND did = ?2 AND blk = ?3 AND died = ?4")?
            .exists(key)?;
        if is_there {
            return Ok(false);
        }
        let block = match kind {
            2 => Some(copy_bytes(connection, block)?),
            1 => Some(block),
            _ => None,
        };
        let alloc = alloc_bytes(alloc);
        let parameters = params![new.branch, int(new.did), int(new.blk), new.born, kind, alloc, block, died];
        connection
            .prepare_cached(
                "INSERT INTO ext_h(branch, did, blk, born, kind, alloc, block, died)
                 VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute(parameters)?;
        self.copy_patches(connection, new)?;
        Ok(true)
    }

    fn copy_patches(&self, connection: &Connection, new: &Self) -> Outcome<()> {
        let patches: Vec<(i64, i64, i64, i64)> = connection
            .prepare_cached(
                "SELECT seq, off, len, bytes FROM patch
                 WHERE branch = ?1 AND did = ?2 AND blk = ?3 AND born = ?4 ORDER BY seq, off",
            )?
            .query_map(params![self.branch, int(self.did), int(self.blk), self.born], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            })?
            .collect::<rusqlite::Result<_>>()?;
        let mut put = connection.prepare_cached(
            "INSERT OR REPLACE INTO patch(branch, did, blk, born, seq, off, len, bytes)
             VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?;
        for (seq, off, len, bytes) in patches {
            let bytes = copy_bytes(connection, bytes)?;
            put.execute(params![new.branch, int(new.did), int(new.blk), new.born, seq, off, len, bytes])?;
        }
        Ok(())
    }
}

fn copy_bytes(connection: &Connection, id: i64) -> Outcome<i64> {
    connection
        .prepare_cached("INSERT INTO bytes(data) SELECT data FROM bytes WHERE id = ?1")?
        .execute([id])?;
    Ok(connection.last_insert_rowid())
}

// === Sealing ===

fn seal_in_commit(target: &Target<'_>, fence: &Fence, batch: &Batch, seal: &Seal) -> Outcome<Layer> {
    let connection = target.connection;
    let tenant = fence.tenant.0.as_bytes();
    if let Some(layer) = connection
        .prepare_cached("SELECT layer FROM layer WHERE tenant = ?1 AND request = ?2")?
        .query_row(params![tenant, seal.request], |row| row.get(0))
        .optional()?
    {
        return Ok(layer);
    }
    // The journal has it already, and the caller its answer: a name that is taken must not stop all later commits.
    let is_taken = connection
        .prepare_cached("SELECT 1 FROM layer WHERE tenant = ?1 AND name = ?2")?
        .exists(params![tenant, seal.name])?;
    let name = if is_taken {
        format!("{}~{}.{}", seal.name, target.branch, target.layer)
    } else {
        seal.name.clone()
    };
    insert_layer(
        connection,
        &NewLayer {
            tenant,
            branch: target.branch,
            layer: target.layer,
            name: &name,
            request: &seal.request,
            used_bytes: batch.used_bytes,
            used_inodes: batch.used_inodes,
            seq: batch.to_seq,
        },
    )?;
    Ok(target.layer)
}

/// A layer to be sealed.
pub(super) struct NewLayer<'a> {
    pub(super) tenant: &'a [u8; 16],
    pub(super) branch: BranchId,
    pub(super) layer: Layer,
    pub(super) name: &'a str,
    pub(super) request: &'a str,
    pub(super) used_bytes: u64,
    pub(super) used_inodes: u64,
    pub(super) seq: u64,
}

/// Seals the tenant's present layer: the next commit writes the next one.
pub(super) fn insert_layer(connection: &Connection, new: &NewLayer<'_>) -> Outcome<()> {
    connection
        .prepare_cached(
            "INSERT INTO layer(branch, layer, tenant, name, request, sealed_at, used_bytes, used_inodes, seq)
             VALUES(?1, ?2, ?3, ?4, ?5, unixepoch(), ?6, ?7, ?8)",
        )?
        .execute(params![
            new.branch,
            new.layer,
            new.tenant,
            new.name,
            new.request,
            int(new.used_bytes),
            int(new.used_inodes),
            int(new.seq)
        ])?;
    connection
        .prepare_cached("UPDATE tenant SET cur_layer = ?2 + 1, last_view = ?2 WHERE id = ?1")?
        .execute(params![new.tenant, new.layer])?;
    Ok(())
}
