//! What the check reads: all of it from one snapshot, a transaction of its own.

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use sqlx::{Row, postgres::PgRow};
use tarbox_types::{BlockHash, BlockId, BlockIndex, BranchId, DataId, Ino, SessionId};
use tokio::sync::Mutex;

use super::{
    TenantRows,
    blocks::{BLOCK, INLINE},
    commit,
    failure::Failure,
    history,
    leases::LOCKED,
    pool::{Transaction, transact},
    rows::{self, INODE, Sql, unreadable},
    statement::{Statement, column, count, int},
    tenants::{existing, head_statement},
};
use crate::{
    api::{CheckProgress, CheckReport},
    check::{self, Repair, Scan, ScannedExtent, Start},
    codec,
    error::{Result, StoreError},
    model::*,
};

/// One state of a family, to be read in pages.
struct Scanner<'a> {
    tenant: &'a TenantRows,
    snapshot: Mutex<Transaction>,
}

/// Checks a tenant.
pub(super) async fn check(
    tenant: &TenantRows,
    repair: bool,
    progress: &(dyn Fn(CheckProgress) + Send + Sync),
) -> Result<CheckReport> {
    let begin = async {
        let mut snapshot = tenant.pool.begin().await?;
        snapshot.freeze().await?;
        Ok::<_, Failure>(snapshot)
    };
    let snapshot = begin.await.map_err(|failure| tenant.pool.failed("begin a check", failure))?;
    let scanner = Scanner { tenant, snapshot: Mutex::new(snapshot) };
    let report = check::check(&scanner, repair, progress).await;
    scanner.snapshot.into_inner().roll_back().await;
    report
}

impl Scanner<'_> {
    async fn rows(&self, statement: Statement) -> Result<Vec<PgRow>> {
        let found = self.snapshot.lock().await.rows(statement).await;
        found.map_err(|failure| self.tenant.pool.failed("check", failure))
    }

    /// A page of the rows that one branch shows: `$3` is the layer, `$4` the limit, what follows is the key seen last.
    fn page(
        &self,
        link: &Link,
        limit: usize,
        table: &str,
        columns: &str,
        rest: &str,
        order: &str,
    ) -> Statement {
        let select = |table: &str, died: &str| {
            format!(
                "(SELECT {columns} FROM tarbox.{table} i WHERE i.family = $1 AND i.branch = $2 AND {rest}
                  AND i.born <= $3{died} ORDER BY {order} LIMIT $4)"
            )
        };
        let current = select(table, "");
        let sql = if link.layer == i64::MAX {
            current
        } else {
            let history = select(&format!("{table}_h"), " AND i.died > $3");
            format!("SELECT * FROM ({current} UNION ALL {history}) i ORDER BY {order} LIMIT $4")
        };
        Statement::new(sql).with(self.tenant.family).with(link.branch).with(link.layer).with(limit as i64)
    }
}

#[async_trait]
impl Scan for Scanner<'_> {
    async fn start(&self) -> Result<Start> {
        let found = self.rows(head_statement(self.tenant.id)).await?;
        let row = found.first().ok_or_else(|| StoreError::NoTenant(self.tenant.id.to_string()))?;
        let blocks = self
            .rows(
                Statement::new("SELECT count(*) FROM tarbox.block WHERE family = $1")
                    .with(self.tenant.family),
            )
            .await?;
        let read = || -> Sql<Start> {
            Ok(Start {
                tenant: rows::tenant(row)?,
                view: rows::view(row)?,
                next_ino: count(row.try_get("next_ino")?),
                blocks: blocks.first().map_or(Ok(0), |row| row.try_get(0).map(count))?,
            })
        };
        read().map_err(unreadable)
    }

    async fn inodes(
        &self,
        link: &Link,
        after: Option<Ino>,
        limit: usize,
    ) -> Result<Vec<(Ino, Option<InodeRow>)>> {
        let columns = format!("{INODE}, i.dead");
        let page = self.page(link, limit, "inode", &columns, "i.ino > $5", "i.ino");
        let found = self.rows(page.with(after.map_or(-1, int))).await?;
        found
            .iter()
            .map(|row| {
                let inode = rows::inode(row, 0, false)?;
                let is_dead: bool = row.try_get(19).map_err(unreadable)?;
                Ok((inode.ino, (!is_dead).then_some(inode)))
            })
            .collect()
    }

    async fn entries(
        &self,
        link: &Link,
        after: Option<(Ino, Bytes)>,
        limit: usize,
    ) -> Result<Vec<((Ino, Bytes), Option<EntryRow>)>> {
        let (parent, name) = after.map_or((-1, Bytes::new()), |(parent, name)| (int(parent), name));
        let columns = "i.parent, i.name, i.ino, i.kind, i.cookie";
        let page =
            self.page(link, limit, "dentry", columns, "(i.parent, i.name) > ($5, $6)", "i.parent, i.name");
        let found = self.rows(page.with(parent).with(&name[..])).await?;
        let read = |row: &PgRow| -> Sql<_> {
            let key = (count(row.try_get(0)?), rows::bytes(row, 1)?);
            let entry = match row.try_get::<Option<i64>, _>(2)? {
                Some(_) => Some(rows::entry(row, 0)?),
                None => None,
            };
            Ok((key, entry))
        };
        found.iter().map(|row| read(row).map_err(unreadable)).collect()
    }

    async fn extents(
        &self,
        link: &Link,
        after: Option<(DataId, BlockIndex)>,
        limit: usize,
    ) -> Result<Vec<((DataId, BlockIndex), ScannedExtent)>> {
        let (did, blk) = after.map_or((-1, -1), |(did, blk)| (int(did), int(blk)));
        let patches = |what: &str| {
            format!(
                "CASE WHEN i.patches > 0 THEN ARRAY(SELECT {what} FROM tarbox.patch p WHERE p.family = i.family
                   AND p.branch = i.branch AND p.did = i.did AND p.blk = i.blk AND p.born = i.born
                   ORDER BY p.seq, p.off) END"
            )
        };
        let columns = format!(
            "i.did, i.blk, i.kind, i.block, i.alloc, length(i.data) AS length, {} AS offsets, {} AS lengths",
            patches("p.off"),
            patches("length(p.data)")
        );
        let page = self.page(
            link,
            limit,
            "ext",
            &columns,
            "(i.did, i.blk) > ($5, $6) AND i.blk >= 0",
            "i.did, i.blk",
        );
        let found = self.rows(page.with(did).with(blk)).await?;
        found.iter().map(|row| scanned(row).map_err(unreadable)).collect()
    }

    async fn cuts(&self, link: &Link) -> Result<Vec<(DataId, BlockIndex)>> {
        let statement = Statement::new(
            "SELECT did, block FROM tarbox.ext WHERE family = $1 AND branch = $2 AND kind = 3 AND born <= $3
             UNION ALL SELECT did, block FROM tarbox.ext_h WHERE family = $1 AND branch = $2 AND kind = 3
               AND born <= $3 AND died > $3",
        );
        let found = self.rows(statement.with(self.tenant.family).with(link.branch).with(link.layer)).await?;
        pairs(&found)
    }

    async fn dead(&self, link: &Link) -> Result<Vec<DataId>> {
        let statement = Statement::new("SELECT did FROM tarbox.dead_data WHERE family = $1 AND branch = $2");
        let found = self.rows(statement.with(self.tenant.family).with(link.branch)).await?;
        found.iter().map(|row| row.try_get(0).map(count).map_err(unreadable)).collect()
    }

    async fn stray_patches(&self, link: &Link) -> Result<Vec<(DataId, BlockIndex)>> {
        let missing = |table: &str| {
            format!(
                "NOT EXISTS (SELECT FROM tarbox.{table} e WHERE e.family = $1 AND e.branch = $2 AND e.did = p.did
                   AND e.blk = p.blk AND e.born = p.born OFFSET 0)"
            )
        };
        let sql = format!(
            "SELECT p.did, p.blk FROM tarbox.patch p WHERE p.family = $1 AND p.branch = $2 AND {} AND {} LIMIT 100",
            missing("ext"),
            missing("ext_h")
        );
        pairs(&self.rows(Statement::new(sql).with(self.tenant.family).with(link.branch)).await?)
    }

    async fn have_headers(&self, blocks: &[BlockId]) -> Result<Vec<bool>> {
        let statement = Statement::new(
            "SELECT EXISTS (SELECT FROM tarbox.block b WHERE b.family = $1 AND b.block = k.block OFFSET 0)
             FROM unnest($2::bigint[]) WITH ORDINALITY AS k(block, n) ORDER BY k.n",
        );
        let blocks = column(blocks, |block| int(*block));
        let found = self.rows(statement.with(self.tenant.family).with(blocks)).await?;
        found.iter().map(|row| row.try_get(0).map_err(unreadable)).collect()
    }

    async fn headers(&self, after: BlockId, limit: usize) -> Result<Vec<BlockHeader>> {
        let statement = Statement::new(
            "SELECT block, hash, len, codec FROM tarbox.block WHERE family = $1 AND block > $2
             ORDER BY block LIMIT $3",
        );
        let found = self.rows(statement.with(self.tenant.family).with(int(after)).with(limit as i64)).await?;
        let read = |row: &PgRow| -> Sql<_> {
            Ok(BlockHeader {
                block: count(row.try_get(0)?),
                hash: BlockHash(row.try_get::<&[u8], _>(1)?.try_into().unwrap_or_default()),
                len: row.try_get::<i64, _>(2)? as u32,
                codec: if row.try_get::<i16, _>(3)? == 0 { Codec::Raw } else { Codec::Zstd },
            })
        };
        found.iter().map(|row| read(row).map_err(unreadable)).collect()
    }

    async fn verify(&self, header: &BlockHeader) -> Result<bool> {
        let statement = Statement::new(
            "SELECT data FROM tarbox.block_part WHERE family = $1 AND block = $2 ORDER BY part",
        );
        let found = self.rows(statement.with(self.tenant.family).with(int(header.block))).await?;
        if found.is_empty() && header.len > 0 {
            return Ok(false);
        }
        let mut stored = BytesMut::new();
        for row in &found {
            stored.extend_from_slice(row.try_get(0).map_err(unreadable)?);
        }
        codec::decode(header, stored.freeze()).map(|_| true)
    }

    async fn histories(&self) -> Result<Vec<(BranchId, i64, i64)>> {
        let statement = Statement::new(history::comparison());
        let found = self.rows(statement.with(self.tenant.family).with(self.tenant.id.0)).await?;
        let read = |row: &PgRow| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?));
        found.iter().map(|row| read(row).map_err(unreadable)).collect()
    }

    async fn repair(&self, repair: &Repair) -> Result<()> {
        transact!(self.tenant.pool, "repair", self.tenant.try_repair(repair))
    }
}

fn scanned(row: &PgRow) -> Sql<((DataId, BlockIndex), ScannedExtent)> {
    let offsets = row.try_get::<Option<Vec<i64>>, _>("offsets")?.unwrap_or_default();
    let lengths = row.try_get::<Option<Vec<i32>>, _>("lengths")?.unwrap_or_default();
    let extent = ScannedExtent {
        alloc: AllocMap(row.try_get::<&[u8], _>("alloc")?.into()),
        kind: match row.try_get::<i16, _>("kind")? {
            BLOCK => ExtentKind::Block(count(row.try_get::<Option<i64>, _>("block")?.unwrap_or_default())),
            INLINE => ExtentKind::Inline,
            _ => ExtentKind::Hole,
        },
        inline_len: row.try_get::<Option<i32>, _>("length")?.map(|length| length as u32),
        patches: offsets.into_iter().zip(lengths).map(|(off, len)| (off as u32, len as u32)).collect(),
    };
    Ok(((count(row.try_get("did")?), count(row.try_get("blk")?)), extent))
}

fn pairs(found: &[PgRow]) -> Result<Vec<(u64, u64)>> {
    let read = |row: &PgRow| Ok((count(row.try_get(0)?), count(row.try_get(1)?)));
    found.iter().map(|row| read(row).map_err(unreadable)).collect()
}

impl TenantRows {
    /// A commit at the present position under the fence that stands in the row, which nobody alive holds. Epoch and token
    /// stay, so that a journal left on a disk is still known; a holder that expired is fenced afterwards.
    async fn try_repair(&self, repair: &Repair) -> std::result::Result<(), Failure> {
        if let Some(holder) = existing(&self.pool, self.id).await?.holder {
            return Err(StoreError::Held { tenant: self.id, holder }.into());
        }
        let mut transaction = self.pool.begin().await?;
        let set_held = |held: bool| {
            Statement::new("UPDATE tarbox.tenant SET held = $2 WHERE id = $1").with(self.id.0).with(held)
        };
        let row = transaction
            .row(
                Statement::new(format!(
                    "SELECT {LOCKED} FROM tarbox.tenant t WHERE t.id = $1 AND NOT (t.held AND EXISTS
                       (SELECT FROM tarbox.session s WHERE s.session = t.session
                          AND s.beat_at + s.lease > clock_timestamp())) FOR UPDATE"
                ))
                .with(self.id.0),
            )
            .await?
            .ok_or_else(|| {
                StoreError::Refused(format!("tenant {} was mounted while it was checked", self.id))
            })?;
        let fence = Fence {
            tenant: self.id,
            session: SessionId(row.try_get::<Option<uuid::Uuid>, _>("session")?.unwrap_or_default()),
            epoch: row.try_get("epoch")?,
            token: row.try_get("token")?,
        };
        let seq = count(row.try_get("seq")?);
        let batch = Batch {
            from_seq: seq,
            to_seq: seq,
            used_bytes: repair.used_bytes,
            used_inodes: repair.used_inodes,
            removed_inodes: repair.orphans.iter().map(|(ino, _)| *ino).collect(),
            removed_data: repair.orphans.iter().map(|(_, did)| *did).filter(|did| *did != 0).collect(),
            ..Batch::default()
        };
        transaction.rows(set_held(true)).await?;
        transaction
            .row(commit::statement(self.family, &fence, &batch))
            .await?
            .ok_or(sqlx::Error::RowNotFound)?;
        transaction.rows(set_held(false)).await?;
        let anew = "UPDATE tarbox.branch SET history_bytes = 0, history_upto = 0, left_bytes = NULL
                    WHERE family = $1 AND tenant = $2";
        transaction.rows(Statement::new(anew).with(self.family).with(self.id.0)).await?;
        transaction.commit().await
    }
}
