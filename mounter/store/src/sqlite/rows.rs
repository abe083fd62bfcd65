//! Columns and values: how rows stand in SQLite.

use bytes::Bytes;
use rusqlite::{Row, types::ValueRef};
use smallvec::SmallVec;
use tarbox_types::{BranchId, FamilyId, Layer, SessionId, TenantId};
use uuid::Uuid;

use super::fault::Outcome;
use crate::{codec, error::StoreError, model::*};

/// Columns of an inode, each after a prefix (`"i."` or `""`).
macro_rules! inode_columns {
    ($p:literal) => {
        concat!(
            $p,
            "ino, ",
            $p,
            "mode, ",
            $p,
            "uid, ",
            $p,
            "gid, ",
            $p,
            "rdev, ",
            $p,
            "nlink, ",
            $p,
            "size, ",
            $p,
            "atime, ",
            $p,
            "atime_ns, ",
            $p,
            "mtime, ",
            $p,
            "mtime_ns, ",
            $p,
            "ctime, ",
            $p,
            "ctime_ns, ",
            $p,
            "dir_parent, ",
            $p,
            "did, ",
            $p,
            "cut, ",
            $p,
            "charge, ",
            $p,
            "prealloc, ",
            $p,
            "target"
        )
    };
}
pub(super) use inode_columns;

/// SQLite's integers have a sign; our numbers never use the highest bit.
pub(super) fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) fn number(row: &Row<'_>, index: usize) -> rusqlite::Result<u64> {
    Ok(row.get_ref(index)?.as_i64()? as u64)
}

pub(super) fn blob(row: &Row<'_>, index: usize) -> rusqlite::Result<Bytes> {
    Ok(match row.get_ref(index)? {
        ValueRef::Null => Bytes::new(),
        value => Bytes::copy_from_slice(value.as_blob()?),
    })
}

pub(super) fn uuid(row: &Row<'_>, index: usize) -> rusqlite::Result<Uuid> {
    let bytes = row.get_ref(index)?.as_blob()?;
    Uuid::from_slice(bytes).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(index, rusqlite::types::Type::Blob, Box::new(error))
    })
}

/// An inode from `inode_columns!()` at `at`.
pub(super) fn inode(row: &Row<'_>, at: usize) -> rusqlite::Result<InodeRow> {
    let prealloc = match row.get_ref(at + 17)? {
        ValueRef::Null => Vec::new(),
        value => codec::decode_ranges(value.as_blob()?).unwrap_or_default(),
    };
    let time =
        |at: usize| -> rusqlite::Result<Time> { Ok(Time { sec: row.get(at)?, nsec: row.get(at + 1)? }) };
    Ok(InodeRow {
        ino: number(row, at)?,
        mode: row.get(at + 1)?,
        uid: row.get(at + 2)?,
        gid: row.get(at + 3)?,
        rdev: row.get(at + 4)?,
        nlink: row.get(at + 5)?,
        size: number(row, at + 6)?,
        atime: time(at + 7)?,
        mtime: time(at + 9)?,
        ctime: time(at + 11)?,
        dir_parent: number(row, at + 13)?,
        did: number(row, at + 14)?,
        cut: number(row, at + 15)?,
        charge: number(row, at + 16)?,
        prealloc,
        target: blob(row, at + 18)?,
    })
}

pub(super) fn alloc(row: &Row<'_>, index: usize) -> rusqlite::Result<AllocMap> {
    Ok(AllocMap(match row.get_ref(index)? {
        ValueRef::Null => SmallVec::new(),
        value => SmallVec::from_slice(value.as_blob()?),
    }))
}

/// An allocation map without the zero bytes at its end; nothing at all is NULL.
pub(super) fn alloc_bytes(alloc: &AllocMap) -> Option<&[u8]> {
    let bytes = &alloc.0[..codec::trimmed_len(&alloc.0)];
    (!bytes.is_empty()).then_some(bytes)
}

/// The tenant's row as it stands, `holder` apart.
#[derive(Clone, Debug)]
pub(super) struct TenantRow {
    pub(super) id: TenantId,
    pub(super) name: String,
    pub(super) state: TenantState,
    pub(super) limits: Limits,
    pub(super) block_size: u32,
    pub(super) compression: Compression,
    pub(super) head_branch: BranchId,
    pub(super) layer: Layer,
    pub(super) last_view: Layer,
    pub(super) used_bytes: u64,
    pub(super) used_inodes: u64,
    pub(super) next_ino: u64,
    pub(super) seq: u64,
    pub(super) epoch: i64,
    pub(super) token: Uuid,
    pub(super) session: SessionId,
    pub(super) is_held: bool,
    pub(super) is_wanted: bool,
}

pub(super) const TENANT_COLUMNS: &str = "SELECT id, name, state, quota_bytes, quota_inodes, max_file, block_size, compression,
     head_branch, cur_layer, last_view, used_bytes, used_inodes, next_ino, seq, epoch, token, session, held, wanted
     FROM tenant WHERE id = ?1";

impl TenantRow {
    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: TenantId(uuid(row, 0)?),
            name: row.get(1)?,
            state: state(row.get(2)?),
            limits: Limits { bytes: number(row, 3)?, inodes: number(row, 4)?, file_bytes: number(row, 5)? },
            block_size: row.get(6)?,
            compression: if row.get::<_, i64>(7)? == 0 { Compression::None } else { Compression::Zstd },
            head_branch: row.get(8)?,
            layer: row.get(9)?,
            last_view: row.get(10)?,
            used_bytes: number(row, 11)?,
            used_inodes: number(row, 12)?,
            next_ino: number(row, 13)?,
            seq: number(row, 14)?,
            epoch: row.get(15)?,
            token: uuid(row, 16)?,
            session: SessionId(uuid(row, 17)?),
            is_held: row.get(18)?,
            is_wanted: row.get(19)?,
        })
    }

    pub(super) fn find(connection: &rusqlite::Connection, id: TenantId) -> Outcome<Option<Self>> {
        use rusqlite::OptionalExtension;
        Ok(connection
            .prepare_cached(TENANT_COLUMNS)?
            .query_row([id.0.as_bytes()], Self::from_row)
            .optional()?)
    }

    pub(super) fn need(connection: &rusqlite::Connection, id: TenantId) -> Outcome<Self> {
        Self::find(connection, id)?.ok_or_else(|| StoreError::NoTenant(id.to_string()).into())
    }

    pub(super) fn fence(&self) -> Fence {
        Fence { tenant: self.id, session: self.session, epoch: self.epoch, token: self.token }
    }

    pub(super) fn into_tenant(self, family: FamilyId, holder: Option<Holder>) -> Tenant {
        Tenant {
            id: self.id,
            name: self.name,
            family,
            state: self.state,
            limits: self.limits,
            block_size: self.block_size,
            compression: self.compression,
            used_bytes: self.used_bytes,
            used_inodes: self.used_inodes,
            head_branch: self.head_branch,
            layer: self.layer,
            seq: self.seq,
            epoch: self.epoch,
            is_abandoned: self.is_held && holder.is_none(),
            holder,
        }
    }
}

pub(super) fn state(value: i64) -> TenantState {
    if value == 0 { TenantState::Live } else { TenantState::Deleted }
}

/// A branch with its ancestors, seen at `layer`.
pub(super) fn view(connection: &rusqlite::Connection, branch: BranchId, layer: Layer) -> Outcome<View> {
    let mut chain = Vec::with_capacity(2);
    let mut next = Some((branch, layer));
    let mut statement =
        connection.prepare_cached("SELECT parent, parent_layer, ino_floor FROM branch WHERE branch = ?1")?;
    while let Some((branch, layer)) = next {
        let (parent, parent_layer, ino_floor) = statement
            .query_row([branch], |row| {
                Ok((row.get::<_, Option<i64>>(0)?, row.get::<_, Option<i64>>(1)?, number(row, 2)?))
            })
            .map_err(|error| match error {
                rusqlite::Error::QueryReturnedNoRows => {
                    StoreError::Refused(format!("there is no branch {branch}")).into()
                }
                other => super::fault::Fault::Sql(other),
            })?;
        chain.push(Link { branch, layer, ino_floor });
        next = parent.zip(parent_layer);
    }
    Ok(View { chain })
}
