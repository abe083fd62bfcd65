//! Tenants: made, found, limited, marked deleted.

use std::time::{SystemTime, UNIX_EPOCH};

use tarbox_types::{FIRST_INO, ROOT_INO, TenantId};
use uuid::Uuid;

use super::{
    Postgres, TenantRows,
    failure::Failure,
    pool::{Pool, transact},
    rows::{self, TENANT, TENANT_AND_HOLDER, unreadable},
    statement::{Statement, int},
};
use crate::{
    codec::{BLOCK_MAX, BLOCK_MIN},
    error::{Result, StoreError},
    model::*,
};

/// The tenant of an id.
pub(super) async fn by_id(pool: &Pool, id: TenantId) -> Result<Option<Tenant>> {
    let found = pool
        .read("look up a tenant", || {
            Statement::new(format!("SELECT {TENANT} FROM {TENANT_AND_HOLDER} WHERE t.id = $1")).with(id.0)
        })
        .await?;
    found.first().map(|row| rows::tenant(row).map_err(unreadable)).transpose()
}

/// The tenant of an id that must exist.
pub(super) async fn existing(pool: &Pool, id: TenantId) -> Result<Tenant> {
    by_id(pool, id).await?.ok_or_else(|| StoreError::NoTenant(id.to_string()))
}

impl Postgres {
    pub(super) async fn make_tenant(&self, new: &NewTenant) -> Result<Tenant> {
        validate(new)?;
        transact!(self.pool, "make a tenant", self.try_make_tenant(new))?;
        existing(&self.pool, new.id).await
    }

    async fn try_make_tenant(&self, new: &NewTenant) -> std::result::Result<(), Failure> {
        let mut transaction = self.pool.begin().await?;
        match transaction.rows(creation(new)).await {
            Ok(_) => transaction.commit().await,
            Err(failure) if failure.violates("tenant_name") => {
                transaction.roll_back().await;
                Err(StoreError::NameTaken(new.name.clone()).into())
            }
            Err(failure) => Err(failure),
        }
    }

    pub(super) async fn find_tenant(&self, name: &str) -> Result<Option<Tenant>> {
        let found = self
            .pool
            .read("look up a tenant", || {
                let sql =
                    format!("SELECT {TENANT} FROM {TENANT_AND_HOLDER} WHERE t.name = $1 AND NOT t.deleted");
                Statement::new(sql).with(name)
            })
            .await?;
        found.first().map(|row| rows::tenant(row).map_err(unreadable)).transpose()
    }

    pub(super) async fn list_tenants(&self) -> Result<Vec<Tenant>> {
        let found = self
            .pool
            .read("list tenants", || {
                Statement::new(format!("SELECT {TENANT} FROM {TENANT_AND_HOLDER} ORDER BY t.name, t.id"))
            })
            .await?;
        found.iter().map(|row| rows::tenant(row).map_err(unreadable)).collect()
    }

    pub(super) async fn set_limits(&self, id: TenantId, limits: &Limits) -> Result<Tenant> {
        self.pool
            .write("set limits", || {
                Statement::new(
                    "UPDATE tarbox.tenant SET quota_bytes = $2, quota_inodes = $3, max_file = $4 WHERE id = $1",
                )
                .with(id.0)
                .with(int(limits.bytes))
                .with(int(limits.inodes))
                .with(int(limits.file_bytes))
            })
            .await?;
        existing(&self.pool, id).await
    }

    /// The epoch grows: a holder whose session expired can no longer commit into what is being removed.
    pub(super) async fn mark_deleted(&self, id: TenantId, in_use: InUse) -> Result<()> {
        let token = Uuid::new_v4();
        let done = self
            .pool
            .write("delete a tenant", || {
                Statement::new(
                    "UPDATE tarbox.tenant t SET deleted = true, held = false, epoch = epoch + 1, token = $2
                     WHERE id = $1 AND NOT deleted AND NOT (held AND EXISTS (SELECT FROM tarbox.session s
                       WHERE s.session = t.session AND s.beat_at + s.lease > clock_timestamp()))
                     RETURNING id",
                )
                .with(id.0)
                .with(token)
            })
            .await?;
        if !done.is_empty() {
            return Ok(());
        }
        let tenant = existing(&self.pool, id).await?;
        match (tenant.state, tenant.holder) {
            (TenantState::Deleted, _) => Ok(()),
            (TenantState::Live, Some(_)) if in_use == InUse::GoOn => {
                self.pool
                    .write("delete a tenant", || {
                        Statement::new("UPDATE tarbox.tenant SET deleted = true WHERE id = $1").with(id.0)
                    })
                    .await?;
                Ok(())
            }
            (TenantState::Live, Some(holder)) => Err(StoreError::Held { tenant: id, holder }),
            (TenantState::Live, None) => {
                Err(StoreError::Refused(format!("tenant {id} was taken while it was to be deleted")))
            }
        }
    }
}

impl TenantRows {
    pub(super) async fn read_head(&self) -> Result<(Tenant, View)> {
        let found = self.pool.read("look at the head", || head_statement(self.id)).await?;
        let row = found.first().ok_or_else(|| StoreError::NoTenant(self.id.to_string()))?;
        let read = || Ok((rows::tenant(row)?, rows::view(row)?));
        read().map_err(unreadable)
    }

    pub(super) async fn sealed_view(&self, branch: i64, layer: i64) -> Result<View> {
        let found = self.pool.read("look at a layer", || view_statement(self.family, branch, layer)).await?;
        let view = found.first().map(rows::view).transpose().map_err(unreadable)?;
        view.filter(|view| !view.chain.is_empty()).ok_or_else(|| no_layer(branch, layer))
    }
}

/// Reads a tenant with `next_ino`, and the view of its head.
pub(super) fn head_statement(id: TenantId) -> Statement {
    Statement::new(format!(
        "WITH RECURSIVE chain AS (
           SELECT 1 AS ord, b.family, b.branch, b.parent, b.parent_layer, b.ino_floor, {max}::bigint AS layer
           FROM tarbox.tenant t JOIN tarbox.branch b ON b.family = t.family AND b.branch = t.head_branch
           WHERE t.id = $1
           UNION ALL
           SELECT c.ord + 1, b.family, b.branch, b.parent, b.parent_layer, b.ino_floor, c.parent_layer
           FROM chain c JOIN tarbox.branch b ON b.family = c.family AND b.branch = c.parent)
         SELECT {TENANT}, t.next_ino, {VIEW} FROM {TENANT_AND_HOLDER} WHERE t.id = $1",
        max = i64::MAX
    ))
    .with(id.0)
}

/// A view's arrays, from a table `chain` in the statement.
pub(super) const VIEW: &str = "(SELECT COALESCE(array_agg(c.branch ORDER BY c.ord), '{}') FROM chain c) AS branches, \
     (SELECT array_agg(c.layer ORDER BY c.ord) FROM chain c) AS layers, \
     (SELECT array_agg(c.ino_floor ORDER BY c.ord) FROM chain c) AS floors";

/// Reads the view of a sealed layer; no links where it does not exist.
pub(super) fn view_statement(family: i64, branch: i64, layer: i64) -> Statement {
    Statement::new(format!(
        "WITH RECURSIVE chain AS (
           SELECT 1 AS ord, b.family, b.branch, b.parent, b.parent_layer, b.ino_floor, y.layer
           FROM tarbox.layer y JOIN tarbox.branch b ON b.family = y.family AND b.branch = y.branch
           WHERE y.family = $1 AND y.branch = $2 AND y.layer = $3
           UNION ALL
           SELECT c.ord + 1, b.family, b.branch, b.parent, b.parent_layer, b.ino_floor, c.parent_layer
           FROM chain c JOIN tarbox.branch b ON b.family = c.family AND b.branch = c.parent)
         SELECT {VIEW} WHERE EXISTS (SELECT FROM chain)"
    ))
    .with(family)
    .with(branch)
    .with(layer)
}

pub(super) fn no_layer(branch: i64, layer: i64) -> StoreError {
    StoreError::NoLayer { branch, layer }
}

/// Family, branch, tenant and root directory in one statement; nothing where the id exists.
fn creation(new: &NewTenant) -> Statement {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Statement::new(format!(
        "WITH ids AS MATERIALIZED (SELECT nextval('tarbox.family_id') AS family, nextval('tarbox.branch_id') AS branch),
         made AS (INSERT INTO tarbox.tenant (id, family, name, head_branch, quota_bytes, quota_inodes, max_file,
             block_size, compression, used_bytes, used_inodes, next_ino, token)
           SELECT $1, ids.family, $2, ids.branch, $3, $4, $5, $6, $7, 0, 1, {FIRST_INO}, $8 FROM ids
           ON CONFLICT (id) DO NOTHING RETURNING family, head_branch AS branch),
         f AS (INSERT INTO tarbox.family (family) SELECT family FROM made),
         b AS (INSERT INTO tarbox.branch (family, branch, tenant, depth, ino_floor)
           SELECT family, branch, $1, 1, 0 FROM made)
         INSERT INTO tarbox.inode (family, branch, ino, born, dead, mode, uid, gid, rdev, nlink, size, atime, atime_ns,
             mtime, mtime_ns, ctime, ctime_ns, dir_parent, did, cut, charge, prealloc, target)
           SELECT family, branch, {ROOT_INO}, 1, false, $9, $10, $11, 0, 2, 4096, $12, $13, $12, $13, $12, $13,
             {ROOT_INO}, 0, {uncut}, 0, '', '' FROM made",
        uncut = i64::MAX
    ))
    .with(new.id.0)
    .with(new.name.as_str())
    .with(int(new.limits.bytes))
    .with(int(new.limits.inodes))
    .with(int(new.limits.file_bytes))
    .with(i64::from(new.block_size))
    .with(rows::compression_number(new.compression))
    .with(Uuid::new_v4())
    .with((libc::S_IFDIR | (new.root_mode & 0o7777)) as i32)
    .with(i64::from(new.root_uid))
    .with(i64::from(new.root_gid))
    .with(int(now.as_secs()))
    .with(now.subsec_nanos() as i32)
}

/// Refuses names and block sizes that are not allowed.
pub(super) fn validate(new: &NewTenant) -> Result<()> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.' | '_');
    if !(1..=63).contains(&new.name.len()) || !new.name.chars().all(allowed) {
        return Err(StoreError::Invalid {
            key: "tenant name",
            value: new.name.clone(),
            allowed: "1 to 63 of a-z 0-9 - . _".into(),
        });
    }
    if !new.block_size.is_power_of_two() || !(BLOCK_MIN..=BLOCK_MAX).contains(&new.block_size) {
        return Err(StoreError::Invalid {
            key: "block size",
            value: new.block_size.to_string(),
            allowed: "a power of two from 4096 to 4194304".into(),
        });
    }
    Ok(())
}
