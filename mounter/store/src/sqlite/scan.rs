//! What the check reads from SQLite: all from one read transaction on a connection of its own.

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use rusqlite::{Connection, Row, params};
use tarbox_types::{BlockId, BlockIndex, BranchId, DataId, Ino, Layer};

use super::{
    commit::Target,
    connect::{self, Kind},
    family,
    fault::Outcome,
    history, read,
    rows::{self, TenantRow, inode_columns, int, number},
    store::SqliteTenant,
};
use crate::{
    api::{CheckProgress, CheckReport},
    check::{self, Repair, Scan, ScannedExtent, Start},
    error::{Result, StoreError},
    model::*,
};

/// One state of a family, to be read in pages.
struct Scanner<'a> {
    tenant: &'a SqliteTenant,
    connection: Mutex<Connection>,
}

pub(super) async fn check(
    tenant: &SqliteTenant,
    repair: bool,
    progress: &(dyn Fn(CheckProgress) + Send + Sync),
) -> Result<CheckReport> {
    let connection = tenant.family.settle("opening for the check", begin(tenant))?;
    let scanner = Scanner { tenant, connection: Mutex::new(connection) };
    check::check(&scanner, repair, progress).await
}

fn begin(tenant: &SqliteTenant) -> Outcome<Connection> {
    let connection = connect::open(&family::meta_path(&tenant.family.dir), Kind::Meta, false)?;
    connection.execute_batch("BEGIN")?;
    Ok(connection)
}

impl Scanner<'_> {
    fn read<T>(&self, run: impl FnOnce(&Connection) -> Outcome<T>) -> Result<T> {
        self.tenant.family.settle("checking", run(&self.connection.lock()))
    }

    /// A page of a table and, for a sealed layer, its history: `{table}` in `sql` is each, `{when}` its condition.
    fn page<T>(
        &self,
        link: &Link,
        select: &str,
        table: &str,
        rest: &str,
        parameters: &[&dyn rusqlite::ToSql],
        decode: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        let current = format!("SELECT {select} FROM {table} WHERE branch = ?1 AND {rest}");
        let sql = if read::is_head(link) {
            // The layer is a parameter of both forms.
            format!("{current} AND born <= ?2 ORDER BY 1, 2 LIMIT ?3")
        } else {
            format!(
                "{current} AND born <= ?2 UNION ALL SELECT {select} FROM {table}_h
                 WHERE branch = ?1 AND {rest} AND born <= ?2 AND died > ?2 ORDER BY 1, 2 LIMIT ?3"
            )
        };
        self.read(|connection| {
            let mut statement = connection.prepare_cached(&sql)?;
            Ok(statement.query_map(parameters, decode)?.collect::<rusqlite::Result<_>>()?)
        })
    }
}

fn patches_of(
    connection: &Connection,
    link: &Link,
    did: DataId,
    blk: BlockIndex,
    born: Layer,
) -> Outcome<Vec<(u32, u32)>> {
    Ok(connection
        .prepare_cached(
            "SELECT off, len FROM patch WHERE branch = ?1 AND did = ?2 AND blk = ?3 AND born = ?4",
        )?
        .query_map(params![link.branch, int(did), int(blk), born], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?)
}

#[async_trait]
impl Scan for Scanner<'_> {
    async fn start(&self) -> Result<Start> {
        let (row, view, blocks) = self.read(|connection| {
            let row = TenantRow::need(connection, self.tenant.id)?;
            let view = rows::view(connection, row.head_branch, Layer::MAX)?;
            let blocks = connection.query_row("SELECT count(*) FROM block", [], |row| number(row, 0))?;
            Ok((row, view, blocks))
        })?;
        let next_ino = row.next_ino;
        let tenant = self.tenant.database.tenant_of(row, self.tenant.family.id)?;
        Ok(Start { tenant, view, next_ino, blocks })
    }

    async fn inodes(
        &self,
        link: &Link,
        after: Option<Ino>,
        limit: usize,
    ) -> Result<Vec<(Ino, Option<InodeRow>)>> {
        let after = after.map_or(-1, int);
        self.page(
            link,
            concat!(inode_columns!(""), ", dead"),
            "inode",
            "ino > ?4",
            params![link.branch, link.layer, limit as i64, after],
            |row| {
                let is_dead: bool = row.get(19)?;
                let inode = rows::inode(row, 0)?;
                Ok((inode.ino, (!is_dead).then_some(inode)))
            },
        )
    }

    async fn entries(
        &self,
        link: &Link,
        after: Option<(Ino, Bytes)>,
        limit: usize,
    ) -> Result<Vec<((Ino, Bytes), Option<EntryRow>)>> {
        let (parent, name) = after.map_or((-1, Bytes::new()), |(parent, name)| (int(parent), name));
        self.page(
            link,
            "parent, name, ino, kind, cookie",
            "dentry",
            "(parent, name) > (?4, ?5)",
            params![link.branch, link.layer, limit as i64, parent, &name[..]],
            |row| {
                let (parent, name) = (number(row, 0)?, rows::blob(row, 1)?);
                let entry = match row.get::<_, Option<i64>>(2)? {
                    None => None,
                    Some(ino) => Some(EntryRow {
                        parent,
                        name: name.clone(),
                        ino: ino as u64,
                        kind: row.get(3)?,
                        cookie: number(row, 4)?,
                    }),
                };
                Ok(((parent, name), entry))
            },
        )
    }

    async fn extents(
        &self,
        link: &Link,
        after: Option<(DataId, BlockIndex)>,
        limit: usize,
    ) -> Result<Vec<((DataId, BlockIndex), ScannedExtent)>> {
        let (did, blk) = after.map_or((-1, -1), |(did, blk)| (int(did), int(blk)));
        let found = self.page(
            link,
            "did, blk, born, kind, alloc, block",
            "ext",
            "(did, blk) > (?4, ?5)",
            params![link.branch, link.layer, limit as i64, did, blk],
            |row| {
                let key = (number(row, 0)?, number(row, 1)?);
                let block = row.get::<_, Option<i64>>(5)?.unwrap_or(0);
                Ok((key, row.get::<_, i64>(2)?, row.get::<_, i64>(3)?, rows::alloc(row, 4)?, block))
            },
        )?;
        self.read(|connection| {
            let mut out = Vec::with_capacity(found.len());
            for ((did, blk), born, kind, alloc, block) in found {
                let patches = patches_of(connection, link, did, blk, born)?;
                let inline_len = match kind {
                    2 => connection
                        .prepare_cached("SELECT max(length(data)) FROM bytes WHERE id = ?1")?
                        .query_row([block], |row| row.get(0))?,
                    _ => None,
                };
                let kind = match kind {
                    1 => ExtentKind::Block(block as u64),
                    2 => ExtentKind::Inline,
                    _ => ExtentKind::Hole,
                };
                out.push(((did, blk), ScannedExtent { alloc, kind, inline_len, patches }));
            }
            Ok(out)
        })
    }

    async fn cuts(&self, link: &Link) -> Result<Vec<(DataId, BlockIndex)>> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT did, min(blk) FROM cut WHERE branch = ?1 AND born <= ?2 GROUP BY did",
            )?;
            let rows = statement
                .query_map(params![link.branch, link.layer], |row| Ok((number(row, 0)?, number(row, 1)?)))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    async fn dead(&self, link: &Link) -> Result<Vec<DataId>> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached("SELECT did FROM dead WHERE branch = ?1")?;
            let rows = statement.query_map([link.branch], |row| number(row, 0))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    async fn stray_patches(&self, link: &Link) -> Result<Vec<(DataId, BlockIndex)>> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT did, blk FROM patch p WHERE branch = ?1
                 AND NOT EXISTS(SELECT 1 FROM ext WHERE branch = ?1 AND did = p.did AND blk = p.blk AND born = p.born)
                 AND NOT EXISTS(SELECT 1 FROM ext_h WHERE branch = ?1 AND did = p.did AND blk = p.blk AND born = p.born)
                 LIMIT 100",
            )?;
            let rows = statement.query_map([link.branch], |row| Ok((number(row, 0)?, number(row, 1)?)))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    async fn have_headers(&self, blocks: &[BlockId]) -> Result<Vec<bool>> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached("SELECT 1 FROM block WHERE block = ?1")?;
            blocks.iter().map(|block| Ok(statement.exists([int(*block)])?)).collect()
        })
    }

    async fn headers(&self, after: BlockId, limit: usize) -> Result<Vec<BlockHeader>> {
        self.read(|connection| {
            let ids: Vec<i64> = connection
                .prepare_cached("SELECT block FROM block WHERE block > ?1 ORDER BY block LIMIT ?2")?
                .query_map(params![int(after), limit as i64], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            let mut headers = Vec::with_capacity(ids.len());
            for id in ids {
                headers.extend(read::header(connection, id)?);
            }
            Ok(headers)
        })
    }

    async fn verify(&self, header: &BlockHeader) -> Result<bool> {
        if self.tenant.block(header)?.is_some() {
            return Ok(true);
        }
        // Collected since the check began: its header is gone by now.
        let now =
            self.tenant.family.read("checking", |connection| read::header(connection, int(header.block)))?;
        Ok(now.is_none())
    }

    async fn histories(&self) -> Result<Vec<(BranchId, i64, i64)>> {
        self.read(|connection| history::compare(connection, self.tenant.id))
    }

    async fn repair(&self, repair: &Repair) -> Result<()> {
        self.tenant.family.write("repairing", |connection| {
            let row = TenantRow::need(connection, self.tenant.id)?;
            if let Some(holder) = self.tenant.database.holder(&row)? {
                return Err(StoreError::Held { tenant: row.id, holder }.into());
            }
            let target = Target::of_head(connection, &row)?;
            let batch = Batch {
                removed_inodes: repair.orphans.iter().map(|(ino, _)| *ino).collect(),
                removed_data: repair.orphans.iter().map(|(_, did)| *did).filter(|did| *did != 0).collect(),
                ..Batch::default()
            };
            target.remove(&batch)?;
            connection.execute(
                "UPDATE tenant SET used_bytes = ?2, used_inodes = ?3 WHERE id = ?1",
                params![row.id.0.as_bytes(), int(repair.used_bytes), int(repair.used_inodes)],
            )?;
            history::recount(connection, row.id)?;
            Ok(())
        })
    }
}
