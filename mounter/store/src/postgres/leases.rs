//! Sessions and leases, by the database's clock.
//!
//! A session lives while its last heartbeat is younger than its lease time. A lease of a session that lives is refused;
//! of one that was closed, given at once; of one that expired, given to a claimant whose own session has been renewed
//! without a gap for a lease time since then: after an outage of the database every holder renews before anybody claims.
//! One shortcut: a holder of this boot and pid namespace whose process is gone needs no waiting for.

use std::time::Duration;

use sqlx::{Row, postgres::PgRow, postgres::types::PgInterval};
use tarbox_types::{SessionId, TenantId};
use uuid::Uuid;

use super::{
    Postgres,
    commit::fenced,
    failure::Failure,
    pool::{Transaction, transact},
    rows::{self, unreadable},
    statement::{Statement, count, int},
    tenants::existing,
};
use crate::{
    error::{Result, StoreError},
    model::*,
};

/// Numbers that a new holder leaves out: its predecessor may have used them and died before a commit.
const NUMBERS_SKIPPED: i64 = 1 << 20;

/// Heartbeats are at most this far apart: a statement each.
const AGAIN: Duration = Duration::from_secs(3);

type Attempt<T> = std::result::Result<T, Failure>;

/// Whether session `s` lives.
const LIVES: &str = "s.beat_at + s.lease > clock_timestamp()";

impl Postgres {
    /// Old sessions that hold nothing go by the way.
    pub(super) async fn register(&self, new: &NewSession) -> Result<()> {
        self.pool
            .write("open a session", || {
                Statement::new(
                    "WITH old AS (DELETE FROM tarbox.session s WHERE s.beat_at < clock_timestamp() - interval '1 day'
                       AND NOT EXISTS (SELECT FROM tarbox.tenant t WHERE t.session = s.session AND t.held))
                     INSERT INTO tarbox.session
                       (session, node, boot_id, pid_namespace, pid, start_time, lease, beat_at, continuous_since)
                     VALUES ($1, $2, $3, $4, $5, $6, $7, clock_timestamp(), clock_timestamp())
                     ON CONFLICT (session) DO NOTHING",
                )
                .with(new.id.0)
                .with(new.node.as_str())
                .with(new.boot_id.as_str())
                .with(pid_namespace())
                .with(i64::from(new.pid))
                .with(int(new.start_time))
                .with(interval(self.lease))
            })
            .await?;
        Ok(())
    }

    pub(super) async fn renew(&self, session: SessionId) -> Result<Beat> {
        let found = self
            .pool
            .write("send a heartbeat", || {
                Statement::new(
                    "WITH s AS (UPDATE tarbox.session SET
                         continuous_since = CASE WHEN beat_at + lease < clock_timestamp() THEN clock_timestamp()
                           ELSE continuous_since END,
                         beat_at = clock_timestamp()
                       WHERE session = $1 RETURNING extract(epoch FROM lease)::float8 AS lease)
                     SELECT s.lease, t.id, t.epoch, t.deleted, t.quota_bytes, t.quota_inodes, t.max_file,
                       COALESCE(t.wanted_at + 2 * make_interval(secs => s.lease) > clock_timestamp(), false)
                         AND t.session = $1 AS wanted,
                       ARRAY(SELECT n.id FROM tarbox.snapshot n
                         WHERE n.tenant = t.id AND n.layer IS NULL AND n.purpose <> 2 ORDER BY n.id) AS snapshots,
                       ARRAY(SELECT n.request FROM tarbox.snapshot n
                         WHERE n.tenant = t.id AND n.layer IS NULL AND n.purpose <> 2 ORDER BY n.id) AS names
                     FROM s LEFT JOIN LATERAL (
                       SELECT * FROM tarbox.tenant WHERE session = $1 AND held
                       UNION ALL SELECT * FROM tarbox.tenant WHERE prev_session = $1 AND session <> $1) t ON true",
                )
                .with(session.0)
            })
            .await?;
        let Some(first) = found.first() else {
            return Err(StoreError::Refused(format!("session {} is not known: open it again", session.0)));
        };
        let lease: f64 = first.try_get("lease").map_err(unreadable)?;
        let tenants = found.iter().filter_map(|row| beat_tenant(row).transpose());
        Ok(Beat {
            valid_for: Duration::from_secs_f64(lease),
            again_in: (Duration::from_secs_f64(lease) / 3).min(AGAIN),
            tenants: tenants.collect::<rows::Sql<_>>().map_err(unreadable)?,
        })
    }

    pub(super) async fn end(&self, session: SessionId) -> Result<()> {
        self.pool
            .write("close a session", || {
                Statement::new(
                    "WITH freed AS (UPDATE tarbox.tenant SET held = false WHERE session = $1 AND held),
                     lost AS (UPDATE tarbox.tenant SET prev_session = NULL WHERE prev_session = $1 AND session <> $1)
                     DELETE FROM tarbox.session WHERE session = $1",
                )
                .with(session.0)
            })
            .await?;
        Ok(())
    }

    pub(super) async fn give_lease_back(&self, fence: &Fence) -> Result<()> {
        self.pool
            .write("give a lease back", || {
                Statement::new(
                    "UPDATE tarbox.tenant SET held = false, wanted_at = NULL
                     WHERE id = $1 AND token = $2 AND epoch = $3",
                )
                .with(fence.tenant.0)
                .with(fence.token)
                .with(fence.epoch)
            })
            .await?;
        Ok(())
    }

    pub(super) async fn take_lease(&self, tenant: TenantId, session: SessionId) -> Result<Lease> {
        let (previous, fence, next_ino, committed_epoch) =
            transact!(self.pool, "take a lease", self.try_take_lease(tenant, session))?;
        let rows = super::TenantRows {
            pool: self.pool.clone(),
            id: tenant,
            family: existing(&self.pool, tenant).await?.family,
            block_size: 0,
            proofs: super::Proofs::default(),
        };
        let (tenant, head) = rows.read_head().await?;
        Ok(Lease { fence, previous, committed_epoch, tenant, next_ino: count(next_ino), head })
    }

    async fn try_take_lease(
        &self,
        tenant: TenantId,
        session: SessionId,
    ) -> Attempt<(Fence, Fence, i64, i64)> {
        let mut transaction = self.pool.begin().await?;
        let decided = decide(&mut transaction, tenant, session).await;
        let previous = match decided {
            Ok(previous) => previous,
            Err(Failure::Store(refused)) => {
                if matches!(refused, StoreError::Held { .. }) {
                    // That somebody waits is to be seen by the holder's next heartbeat.
                    transaction.commit().await?;
                } else {
                    transaction.roll_back().await;
                }
                return Err(refused.into());
            }
            Err(failure) => return Err(failure),
        };
        let token = Uuid::new_v4();
        let taken = transaction
            .row(
                Statement::new(format!(
                    "UPDATE tarbox.tenant SET epoch = epoch + 1, token = $2, session = $3, held = true,
                       next_ino = next_ino + {NUMBERS_SKIPPED}, wanted_at = NULL,
                       prev_session = CASE WHEN held AND session <> $3 THEN session END
                     WHERE id = $1 RETURNING epoch, next_ino, commit_epoch"
                ))
                .with(tenant.0)
                .with(token)
                .with(session.0),
            )
            .await?
            .ok_or_else(|| StoreError::NoTenant(tenant.to_string()))?;
        let fence = Fence { tenant, session, epoch: taken.try_get("epoch")?, token };
        let (next_ino, committed_epoch) = (taken.try_get("next_ino")?, taken.try_get("commit_epoch")?);
        transaction.commit().await?;
        Ok((previous, fence, next_ino, committed_epoch))
    }
}

/// Locks the tenant's row and decides whether the session may have its lease; the fence it had before, if so.
async fn decide(transaction: &mut Transaction, tenant: TenantId, session: SessionId) -> Attempt<Fence> {
    let row = transaction
        .row(
            Statement::new(
                "SELECT deleted, session, held, epoch, token FROM tarbox.tenant WHERE id = $1 FOR UPDATE",
            )
            .with(tenant.0),
        )
        .await?
        .ok_or_else(|| StoreError::NoTenant(tenant.to_string()))?;
    if row.try_get("deleted")? {
        return Err(StoreError::Deleted(tenant).into());
    }
    let holder: Option<Uuid> = row.try_get("session")?;
    let previous = Fence {
        tenant,
        session: SessionId(holder.unwrap_or_default()),
        epoch: row.try_get("epoch")?,
        token: row.try_get("token")?,
    };
    let held: bool = row.try_get("held")?;
    let claim = transaction
        .row(claim_statement(session, previous.session))
        .await?
        .ok_or_else(|| StoreError::Refused(format!("session {} is not known: open it again", session.0)))?;
    if !held || previous.session == session {
        return Ok(previous);
    }
    // A session whose row is gone was closed, or has been dead for a day.
    let Some(node) = claim.try_get::<Option<String>, _>("node")? else { return Ok(previous) };
    if claim.try_get("granted")? || is_dead_here(&claim)? {
        return Ok(previous);
    }
    let wanted =
        Statement::new("UPDATE tarbox.tenant SET wanted_at = clock_timestamp() WHERE id = $1").with(tenant.0);
    transaction.rows(wanted).await?;
    let pid = claim.try_get::<i64, _>("pid")? as u32;
    Err(StoreError::Held { tenant, holder: Holder { session: previous.session, node, pid } }.into())
}

/// The claimant's session `c` beside the holder's, `s`. `granted` is the grace rule: the holder expired, and the claimant,
/// which lives, has since been renewed without a gap for a lease time.
fn claim_statement(claimant: SessionId, holder: SessionId) -> Statement {
    Statement::new(format!(
        "SELECT s.node, s.pid, s.start_time, s.boot_id = c.boot_id AND s.pid_namespace = c.pid_namespace
           AND s.node = c.node AS here, s.boot_id AS boot_id,
           NOT ({LIVES}) AND c.beat_at + c.lease > clock_timestamp()
             AND GREATEST(c.continuous_since, s.beat_at + s.lease) + s.lease <= clock_timestamp() AS granted
         FROM tarbox.session c LEFT JOIN tarbox.session s ON s.session = $2 WHERE c.session = $1"
    ))
    .with(claimant.0)
    .with(holder.0)
}

/// The holder's process ran where this one runs, under this boot, and is gone.
fn is_dead_here(claim: &PgRow) -> rows::Sql<bool> {
    let boot_id: String = claim.try_get("boot_id")?;
    let here: bool = claim.try_get("here")?;
    if !here
        || std::fs::read_to_string("/proc/sys/kernel/random/boot_id").is_ok_and(|now| now.trim() != boot_id)
    {
        return Ok(false);
    }
    let pid: i64 = claim.try_get("pid")?;
    let start_time = count(claim.try_get("start_time")?);
    Ok(match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => is_zombie(&stat) || start_time_of(&stat).is_some_and(|now| now != start_time),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    })
}

/// Field 3 of `/proc/PID/stat`: dead, though nobody has asked for its exit code (pid 1 of a container may never do).
fn is_zombie(stat: &str) -> bool {
    stat.rsplit_once(')').is_some_and(|(_, rest)| matches!(rest.split_whitespace().next(), Some("Z" | "X")))
}

/// Field 22 of `/proc/PID/stat`, counted behind the name, which may hold anything.
fn start_time_of(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Which pids are ours to judge: containers of one host share its boot id, not its pids.
fn pid_namespace() -> String {
    std::fs::read_link("/proc/self/ns/pid").map(|link| link.display().to_string()).unwrap_or_default()
}

pub(super) fn interval(duration: Duration) -> PgInterval {
    PgInterval { months: 0, days: 0, microseconds: i64::try_from(duration.as_micros()).unwrap_or(i64::MAX) }
}

fn beat_tenant(row: &PgRow) -> rows::Sql<Option<BeatTenant>> {
    let Some(id) = row.try_get::<Option<Uuid>, _>("id")? else { return Ok(None) };
    Ok(Some(BeatTenant {
        tenant: TenantId(id),
        epoch: row.try_get("epoch")?,
        limits: rows::limits(row)?,
        state: if row.try_get("deleted")? { TenantState::Deleted } else { TenantState::Live },
        wanted: row.try_get("wanted")?,
        seals: row
            .try_get::<Vec<Uuid>, _>("snapshots")?
            .iter()
            .zip(row.try_get::<Vec<String>, _>("names")?)
            .map(|(id, name)| Seal { name, request: id.to_string() })
            .collect(),
    }))
}

/// What a transaction that locks a tenant's row reads of it.
pub(super) const LOCKED: &str = "t.family, t.deleted, t.head_branch, t.cur_layer, t.last_view, t.used_bytes, t.used_inodes, \
     t.next_ino, t.seq, t.epoch, t.token, t.session, t.held, t.block_size";

/// Locks the tenant's row under a fence, for a transaction that is more than a commit.
pub(super) async fn lock_under(transaction: &mut Transaction, fence: &Fence) -> Attempt<PgRow> {
    let row = transaction
        .row(
            Statement::new(format!("SELECT {LOCKED} FROM tarbox.tenant t WHERE t.id = $1 FOR UPDATE"))
                .with(fence.tenant.0),
        )
        .await?
        .ok_or_else(|| StoreError::NoTenant(fence.tenant.to_string()))?;
    match fenced(&row, fence)? {
        Some(refused) => Err(refused.into()),
        None => Ok(row),
    }
}
