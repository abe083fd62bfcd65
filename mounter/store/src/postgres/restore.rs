//! New branches: a tenant goes back to a layer, or a new tenant begins at one. Constant time, but for a short copy
//! where the chain of ancestors would become long.

use sqlx::Row;
use tarbox_types::{BranchId, Layer};
use uuid::Uuid;

use super::{
    TenantRows,
    chain::probe,
    commit::free_name,
    failure::Failure,
    leases::{LOCKED, lock_under},
    pool::{Transaction, transact},
    rows,
    statement::Statement,
    tenants::{self, existing, no_layer},
};
use crate::{
    error::{Result, StoreError},
    model::*,
};

type Attempt<T> = std::result::Result<T, Failure>;

/// From here on a branch with few rows is copied instead of being looked through. Of more a longer chain is made, which is flattened in
/// the background: a restore takes no longer for what there is.
const COMFORTABLE_DEPTH: i32 = 4;
/// Few rows, per table.
const FEW: i64 = 500;

/// Where a branch begins.
struct Fork {
    branch: BranchId,
    layer: Layer,
    tenant: Uuid,
    seq: i64,
    next_ino: i64,
    used_bytes: i64,
    used_inodes: i64,
    parent: Option<BranchId>,
    parent_layer: Option<Layer>,
    depth: i32,
    ino_floor: i64,
}

impl TenantRows {
    pub(super) async fn restore_to(&self, fence: &Fence, branch: BranchId, layer: Layer) -> Result<View> {
        transact!(self.pool, "restore", self.try_restore(fence, branch, layer))?;
        Ok(self.read_head().await?.1)
    }

    async fn try_restore(&self, fence: &Fence, branch: BranchId, layer: Layer) -> Attempt<()> {
        let mut transaction = self.pool.begin().await?;
        settle(self.restore_in(&mut transaction, fence, branch, layer).await, transaction).await
    }

    async fn restore_in(
        &self,
        transaction: &mut Transaction,
        fence: &Fence,
        branch: BranchId,
        layer: Layer,
    ) -> Attempt<()> {
        let tenant = lock_under(transaction, fence).await?;
        let fork = self.fork(transaction, branch, layer).await?;
        if fork.tenant != self.id.0 && !self.descends_from(transaction, branch, layer).await? {
            return Err(StoreError::Refused(format!(
                "checkpoint {branch}/{layer} is not of the history of tenant {}",
                self.id
            ))
            .into());
        }
        self.seal_before_restore(transaction).await?;
        // It counts as a commit (commit_epoch): what a holder before left in a journal was done to another head.
        let new = self.new_branch(
            transaction,
            self.id.0,
            &fork,
            tenant.try_get("next_ino")?,
            tenant.try_get("seq")?,
        );
        let new = new.await?;
        transaction
            .rows(
                Statement::new(
                    "UPDATE tarbox.tenant SET head_branch = $2, cur_layer = 1, last_view = -1, used_bytes = $3,
                       used_inodes = $4, commit_epoch = epoch WHERE id = $1",
                )
                .with(self.id.0)
                .with(new)
                .with(fork.used_bytes)
                .with(fork.used_inodes),
            )
            .await?;
        Ok(())
    }

    /// Seals the head, unless it stands where its last layer, or its branch, began.
    async fn seal_before_restore(&self, transaction: &mut Transaction) -> Attempt<()> {
        let name = free_name("$2", "t.id", "t.head_branch", "t.cur_layer");
        transaction
            .rows(
                Statement::new(format!(
                    "INSERT INTO tarbox.layer (family, branch, layer, tenant, name, request, seq, next_ino,
                       used_bytes, used_inodes)
                     SELECT t.family, t.head_branch, t.cur_layer, t.id, {name}, $3, t.seq, t.next_ino, t.used_bytes,
                       t.used_inodes
                     FROM tarbox.tenant t WHERE t.id = $1
                     AND CASE WHEN t.silent_to = t.seq THEN t.silent_from ELSE t.seq END > COALESCE(
                       (SELECT max(y.seq) FROM tarbox.layer y
                          WHERE y.family = t.family AND y.branch = t.head_branch AND y.layer = t.cur_layer - 1),
                       (SELECT b.fork_seq FROM tarbox.branch b WHERE b.family = t.family AND b.branch = t.head_branch
                          AND t.cur_layer = 1),
                       -1)"
                ))
                .with(self.id.0)
                .with("before-restore")
                .with(format!("before-restore {}", Uuid::new_v4())),
            )
            .await?;
        Ok(())
    }

    pub(super) async fn clone_from(&self, branch: BranchId, layer: Layer, new: &NewTenant) -> Result<Tenant> {
        tenants::validate(new)?;
        transact!(self.pool, "clone a tenant", self.try_clone(branch, layer, new))?;
        existing(&self.pool, new.id).await
    }

    async fn try_clone(&self, branch: BranchId, layer: Layer, new: &NewTenant) -> Attempt<()> {
        let mut transaction = self.pool.begin().await?;
        let done = match self.clone_in(&mut transaction, branch, layer, new).await {
            Err(failure) if failure.violates("tenant_name") => {
                Err(StoreError::NameTaken(new.name.clone()).into())
            }
            done => done,
        };
        settle(done, transaction).await
    }

    async fn clone_in(
        &self,
        transaction: &mut Transaction,
        branch: BranchId,
        layer: Layer,
        new: &NewTenant,
    ) -> Attempt<()> {
        let there = Statement::new("SELECT 1 FROM tarbox.tenant WHERE id = $1").with(new.id.0);
        if transaction.row(there).await?.is_some() {
            return Ok(());
        }
        // Not locked for update: the source goes on committing meanwhile.
        let source = transaction
            .row(
                Statement::new(format!("SELECT {LOCKED} FROM tarbox.tenant t WHERE t.id = $1 FOR KEY SHARE"))
                    .with(self.id.0),
            )
            .await?
            .ok_or_else(|| StoreError::NoTenant(self.id.to_string()))?;
        let block_size: i64 = source.try_get("block_size")?;
        if block_size != i64::from(new.block_size) {
            return Err(StoreError::Invalid {
                key: "block size",
                value: new.block_size.to_string(),
                allowed: format!("a clone has its source's, {block_size}"),
            }
            .into());
        }
        let fork = self.fork(transaction, branch, layer).await?;
        let next_ino = fork.next_ino.max(source.try_get("next_ino")?);
        // Its position goes on from the layer's: patches lie on what it has from there in the order of their positions.
        let head = self.new_branch(transaction, new.id.0, &fork, next_ino, fork.seq).await?;
        transaction
            .rows(
                Statement::new(
                    "INSERT INTO tarbox.tenant (id, family, name, head_branch, quota_bytes, quota_inodes, max_file,
                       block_size, compression, used_bytes, used_inodes, next_ino, token, seq)
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) ON CONFLICT (id) DO NOTHING",
                )
                .with(new.id.0)
                .with(self.family)
                .with(new.name.as_str())
                .with(head)
                .with(super::statement::int(new.limits.bytes))
                .with(super::statement::int(new.limits.inodes))
                .with(super::statement::int(new.limits.file_bytes))
                .with(block_size)
                .with(rows::compression_number(new.compression))
                .with(fork.used_bytes)
                .with(fork.used_inodes)
                .with(next_ino)
                .with(Uuid::new_v4())
                .with(fork.seq),
            )
            .await?;
        Ok(())
    }

    /// Locks the layer against its deletion.
    async fn fork(&self, transaction: &mut Transaction, branch: BranchId, layer: Layer) -> Attempt<Fork> {
        let row = transaction
            .row(
                Statement::new(
                    "SELECT y.tenant, y.seq, y.next_ino, y.used_bytes, y.used_inodes, b.parent, b.parent_layer, b.ino_floor,
                       (WITH RECURSIVE chain AS (SELECT 1 AS depth, b.parent
                          UNION ALL SELECT c.depth + 1, p.parent FROM chain c
                            JOIN tarbox.branch p ON p.family = $1 AND p.branch = c.parent)
                        SELECT max(depth) FROM chain) AS depth
                     FROM tarbox.layer y JOIN tarbox.branch b ON b.family = y.family AND b.branch = y.branch
                     WHERE y.family = $1 AND y.branch = $2 AND y.layer = $3 FOR KEY SHARE OF y",
                )
                .with(self.family)
                .with(branch)
                .with(layer),
            )
            .await?
            .ok_or_else(|| no_layer(branch, layer))?;
        Ok(Fork {
            branch,
            layer,
            tenant: row.try_get("tenant")?,
            seq: row.try_get("seq")?,
            next_ino: row.try_get("next_ino")?,
            used_bytes: row.try_get("used_bytes")?,
            used_inodes: row.try_get("used_inodes")?,
            parent: row.try_get("parent")?,
            parent_layer: row.try_get("parent_layer")?,
            depth: row.try_get("depth")?,
            ino_floor: row.try_get("ino_floor")?,
        })
    }

    /// Whether the layer is of this tenant's own history: numbers in a relative's branches may be ones that the holder
    /// will give to something else.
    async fn descends_from(
        &self,
        transaction: &mut Transaction,
        branch: BranchId,
        layer: Layer,
    ) -> Attempt<bool> {
        let found = transaction
            .row(
                Statement::new(
                    "WITH RECURSIVE chain AS (
                       SELECT b.family, COALESCE(b.origin, b.parent) AS parent,
                         COALESCE(b.origin_layer, b.parent_layer) AS parent_layer FROM tarbox.tenant t
                         JOIN tarbox.branch b ON b.family = t.family AND b.branch = t.head_branch WHERE t.id = $1
                       UNION ALL
                       SELECT b.family, COALESCE(b.origin, b.parent), COALESCE(b.origin_layer, b.parent_layer) FROM chain c
                         JOIN tarbox.branch b ON b.family = c.family AND b.branch = c.parent)
                     SELECT 1 FROM chain WHERE parent = $2 AND parent_layer >= $3 LIMIT 1",
                )
                .with(self.id.0)
                .with(branch)
                .with(layer),
            )
            .await?;
        Ok(found.is_some())
    }

    /// Inserts a branch that begins at the fork; where the chain would become long, one that stands beside the fork's
    /// branch, with a copy of what that one shows.
    async fn new_branch(
        &self,
        transaction: &mut Transaction,
        tenant: Uuid,
        fork: &Fork,
        next_ino: i64,
        seq: i64,
    ) -> Attempt<BranchId> {
        let beside = fork.parent.is_some() && self.is_worth_copying(transaction, fork).await?;
        let (parent, parent_layer, depth, floor) = if beside {
            (fork.parent, fork.parent_layer, fork.depth, fork.ino_floor)
        } else {
            (Some(fork.branch), Some(fork.layer), fork.depth + 1, next_ino)
        };
        let row = transaction
            .row(
                Statement::new(
                    "INSERT INTO tarbox.branch (family, branch, tenant, parent, parent_layer, depth, ino_floor, fork_seq,
                       origin, origin_layer)
                     VALUES ($1, nextval('tarbox.branch_id'), $2, $3, $4, $5, $6, $7, $8, $9) RETURNING branch",
                )
                .with(self.family)
                .with(tenant)
                .with(parent)
                .with(parent_layer)
                .with(depth)
                .with(floor)
                .with(seq)
                .with(beside.then_some(fork.branch))
                .with(beside.then_some(fork.layer)),
            )
            .await?
            .ok_or(sqlx::Error::RowNotFound)?;
        let branch = row.try_get(0)?;
        if beside {
            self.copy(transaction, fork, branch).await?;
        }
        Ok(branch)
    }

    async fn is_worth_copying(&self, transaction: &mut Transaction, fork: &Fork) -> Attempt<bool> {
        if fork.depth < COMFORTABLE_DEPTH {
            return Ok(false);
        }
        let few = |table: &str| {
            format!(
                "(SELECT count(*) FROM (SELECT FROM tarbox.{table} WHERE family = $1 AND branch = $2 LIMIT $3) few) < $3"
            )
        };
        let sql = format!("SELECT {} AND {} AND {}", few("inode"), few("dentry"), few("ext"));
        let row = transaction.row(Statement::new(sql).with(self.family).with(fork.branch).with(FEW)).await?;
        Ok(row.map(|row| row.try_get(0)).transpose()?.unwrap_or(false))
    }

    /// What the fork's branch itself shows at the layer, whiteouts included, becomes layer 1 of the new branch.
    async fn copy(&self, transaction: &mut Transaction, fork: &Fork, branch: BranchId) -> Attempt<()> {
        let alive = "NOT EXISTS (SELECT FROM tarbox.dead_data d WHERE d.family = $1 AND d.branch = $2 AND d.did = t.did
                       AND d.died <= $3)";
        let seen = |table: &str, columns: &str, and: &str| {
            format!(
                "SELECT {columns} FROM tarbox.{table} t WHERE t.family = $1 AND t.branch = $2 AND t.born <= $3 AND {and}
                 UNION ALL SELECT {columns} FROM tarbox.{table}_h t WHERE t.family = $1 AND t.branch = $2
                   AND t.born <= $3 AND t.died > $3 AND {and}"
            )
        };
        for (table, columns, and) in [
            (
                "inode",
                "ino, dead, mode, uid, gid, rdev, nlink, size, atime, atime_ns, mtime, mtime_ns, ctime, ctime_ns, \
                 dir_parent, did, cut, charge, prealloc, target",
                "true",
            ),
            ("dentry", "parent, name, ino, kind, cookie", "true"),
            ("xattr", "ino, value", "true"),
            ("ext", "did, blk, kind, block, data, alloc, patches, patch_bytes", alive),
        ] {
            let sql = format!(
                "INSERT INTO tarbox.{table} (family, branch, born, {columns})
                 SELECT $1, $4, 1, s.* FROM ({}) s",
                seen(table, columns, and)
            );
            transaction.rows(self.copying(sql, fork, branch)).await?;
        }
        let sql = format!(
            "INSERT INTO tarbox.patch (family, branch, born, did, blk, seq, off, data)
             SELECT $1, $4, 1, s.did, s.blk, p.seq, p.off, p.data FROM ({}) s CROSS JOIN LATERAL {} p",
            seen("ext", "t.did, t.blk, t.born", &format!("t.patches > 0 AND {alive}")),
            probe(
                "patch",
                "t.seq, t.off, t.data",
                "t.branch = $2 AND t.did = s.did AND t.blk = s.blk AND t.born = s.born"
            )
        );
        transaction.rows(self.copying(sql, fork, branch)).await?;
        let dead = "INSERT INTO tarbox.dead_data (family, branch, did, died, reaped)
             SELECT $1, $4, d.did, 1, true FROM tarbox.dead_data d WHERE d.family = $1 AND d.branch = $2 AND d.died <= $3";
        transaction.rows(self.copying(dead.to_owned(), fork, branch)).await?;
        Ok(())
    }

    fn copying(&self, sql: String, fork: &Fork, branch: BranchId) -> Statement {
        Statement::new(sql).with(self.family).with(fork.branch).with(fork.layer).with(branch)
    }
}

/// Commits what succeeded; rolls back what was refused, so that the connection can be used again.
async fn settle(done: Attempt<()>, transaction: Transaction) -> Attempt<()> {
    match done {
        Ok(()) => transaction.commit().await,
        Err(failure @ Failure::Store(_)) => {
            transaction.roll_back().await;
            Err(failure)
        }
        Err(failure) => Err(failure),
    }
}
