//! Rows as they come out of the database.

use bytes::Bytes;
use sqlx::{Row, postgres::PgRow};
use tarbox_types::{Layer, SessionId, TenantId};
use uuid::Uuid;

use super::statement::count;
use crate::{
    codec,
    error::{Result, StoreError},
    model::*,
};

/// What sqlx says of a row.
pub(super) type Sql<T> = std::result::Result<T, sqlx::Error>;

/// Columns of [`inode`], of a row called `i`.
pub(super) const INODE: &str = "i.ino, i.mode, i.uid, i.gid, i.rdev, i.nlink, i.size, i.atime, i.atime_ns, i.mtime, \
     i.mtime_ns, i.ctime, i.ctime_ns, i.dir_parent, i.did, i.cut, i.charge, i.prealloc, i.target";

/// Columns of [`tenant`]: a tenant `t`, and the session `s` that holds it, if it lives.
pub(super) const TENANT: &str = "t.id, t.name, t.family, t.deleted, t.quota_bytes, t.quota_inodes, t.max_file, \
     t.block_size, t.compression, t.used_bytes, t.used_inodes, t.head_branch, t.cur_layer, t.seq, t.epoch, t.held, \
     s.session AS holder, s.node, s.pid";

/// Tenants with the sessions that hold them.
pub(super) const TENANT_AND_HOLDER: &str = "tarbox.tenant t LEFT JOIN tarbox.session s \
     ON t.held AND s.session = t.session AND s.beat_at + s.lease > clock_timestamp()";

/// Reads the columns of [`TENANT`].
pub(super) fn tenant(row: &PgRow) -> Sql<Tenant> {
    let holder = match row.try_get::<Option<Uuid>, _>("holder")? {
        Some(session) => Some(Holder {
            session: SessionId(session),
            node: row.try_get("node")?,
            pid: row.try_get::<i64, _>("pid")? as u32,
        }),
        None => None,
    };
    Ok(Tenant {
        id: TenantId(row.try_get("id")?),
        name: row.try_get("name")?,
        family: row.try_get("family")?,
        state: if row.try_get("deleted")? { TenantState::Deleted } else { TenantState::Live },
        limits: limits(row)?,
        block_size: row.try_get::<i64, _>("block_size")? as u32,
        compression: match row.try_get::<i16, _>("compression")? {
            0 => Compression::None,
            _ => Compression::Zstd,
        },
        used_bytes: count(row.try_get("used_bytes")?),
        used_inodes: count(row.try_get("used_inodes")?),
        head_branch: row.try_get("head_branch")?,
        layer: row.try_get("cur_layer")?,
        seq: count(row.try_get("seq")?),
        epoch: row.try_get("epoch")?,
        is_abandoned: row.try_get("held")? && holder.is_none(),
        holder,
    })
}

/// Reads the limits of a tenant's row.
pub(super) fn limits(row: &PgRow) -> Sql<Limits> {
    Ok(Limits {
        bytes: count(row.try_get("quota_bytes")?),
        inodes: count(row.try_get("quota_inodes")?),
        file_bytes: count(row.try_get("max_file")?),
    })
}

/// The number a compression is stored as.
pub(super) fn compression_number(compression: Compression) -> i16 {
    match compression {
        Compression::None => 0,
        Compression::Zstd => 1,
    }
}

/// Reads a view from the arrays `branches`, `layers`, `floors`, nearest first.
pub(super) fn view(row: &PgRow) -> Sql<View> {
    let branches: Vec<i64> = row.try_get("branches")?;
    let layers: Vec<i64> = row.try_get("layers")?;
    let floors: Vec<i64> = row.try_get("floors")?;
    let chain = branches
        .into_iter()
        .zip(layers)
        .zip(floors)
        .map(|((branch, layer), floor)| Link { branch, layer, ino_floor: count(floor) })
        .collect();
    Ok(View { chain })
}

/// Reads the columns of [`INODE`], the first at `at`. `inherited`: the row is an ancestor's,
/// so that this branch has not cut anything off yet.
pub(super) fn inode(row: &PgRow, at: usize, inherited: bool) -> Result<InodeRow> {
    let read = || -> Sql<(InodeRow, &[u8])> {
        let number = |i: usize| row.try_get::<i64, _>(at + i);
        let time = |i: usize| -> Sql<Time> {
            Ok(Time { sec: number(i)?, nsec: row.try_get::<i32, _>(at + i + 1)? as u32 })
        };
        let inode = InodeRow {
            ino: count(number(0)?),
            mode: row.try_get::<i32, _>(at + 1)? as u32,
            uid: number(2)? as u32,
            gid: number(3)? as u32,
            rdev: number(4)? as u32,
            nlink: number(5)? as u32,
            size: count(number(6)?),
            atime: time(7)?,
            mtime: time(9)?,
            ctime: time(11)?,
            dir_parent: count(number(13)?),
            did: count(number(14)?),
            cut: if inherited { u64::MAX >> 1 } else { count(number(15)?) },
            charge: count(number(16)?),
            prealloc: Vec::new(),
            target: bytes(row, at + 18)?,
        };
        Ok((inode, row.try_get(at + 17)?))
    };
    let (mut inode, prealloc) = read().map_err(unreadable)?;
    inode.prealloc = codec::decode_ranges(prealloc).ok_or_else(|| StoreError::Damaged {
        what: format!("inode {}", inode.ino),
        reason: "its preallocated ranges cannot be read".into(),
    })?;
    Ok(inode)
}

/// Columns of [`entry`], of a row called `e`.
pub(super) const ENTRY: &str = "e.parent, e.name, e.ino, e.kind, e.cookie";

/// Reads the columns of [`ENTRY`], the first at `at`.
pub(super) fn entry(row: &PgRow, at: usize) -> Sql<EntryRow> {
    Ok(EntryRow {
        parent: count(row.try_get(at)?),
        name: bytes(row, at + 1)?,
        ino: count(row.try_get(at + 2)?),
        kind: row.try_get::<i32, _>(at + 3)? as u32,
        cookie: count(row.try_get(at + 4)?),
    })
}

/// Reads a sealed layer.
pub(super) fn layer(row: &PgRow) -> Sql<LayerRow> {
    Ok(LayerRow {
        tenant: TenantId(row.try_get("tenant")?),
        branch: row.try_get("branch")?,
        layer: row.try_get::<Layer, _>("layer")?,
        name: row.try_get("name")?,
        sealed_at: row.try_get("sealed_at")?,
        used_bytes: count(row.try_get("used_bytes")?),
        used_inodes: count(row.try_get("used_inodes")?),
    })
}

/// A column of bytes.
pub(super) fn bytes(row: &PgRow, at: usize) -> Sql<Bytes> {
    Ok(Bytes::copy_from_slice(row.try_get::<&[u8], _>(at)?))
}

/// A row that is not as the schema says.
pub(super) fn unreadable(error: sqlx::Error) -> StoreError {
    StoreError::Sql { doing: "read a row", source: error.into() }
}
