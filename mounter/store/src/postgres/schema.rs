//! The schema: created and migrated when a database is opened, under an advisory lock.

use sqlx::{PgConnection, Row, raw_sql};

use super::pool::Pool;
use crate::{
    api::SchemaVersion,
    error::{Result, StoreError},
};

/// What this program migrates to.
pub(super) const VERSION: u32 = 7;

/// Steps by the version they lead to; each only adds.
const STEPS: &[(u32, &str)] = &[
    (1, include_str!("schema.sql")),
    (2, include_str!("schema_2.sql")),
    (3, include_str!("schema_3.sql")),
    (5, include_str!("schema_5.sql")),
    (6, include_str!("schema_6.sql")),
    (7, include_str!("schema_7.sql")),
];

/// Any number that is ours: the key of the advisory lock under which migrations run.
const LOCK: i64 = 0x7461_7262_6f78;

/// Whether the schema has a table of this name.
async fn is_there(conn: &mut PgConnection, table: &str) -> std::result::Result<bool, sqlx::Error> {
    // A query of the catalogue's tables: `to_regclass` answers from a cache that a wait for an advisory lock leaves stale.
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
           WHERE n.nspname = 'tarbox' AND c.relname = $1)",
    )
    .bind(table)
    .fetch_one(conn)
    .await
}

/// The version found, `None` in an empty database.
pub(super) async fn version(
    conn: &mut PgConnection,
) -> std::result::Result<Option<SchemaVersion>, sqlx::Error> {
    if !is_there(conn, "schema_version").await? {
        return Ok(None);
    }
    let row =
        sqlx::query("SELECT version, min_version FROM tarbox.schema_version").fetch_optional(conn).await?;
    row.map(|row| {
        Ok(SchemaVersion {
            version: row.try_get::<i32, _>(0)? as u32,
            min_version: row.try_get::<i32, _>(1)? as u32,
        })
    })
    .transpose()
}

/// Who is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// Whose tables they are, or who may do what the owner may.
    Owner,
    /// A tenant's login, which the server keeps to what is its tenant's.
    Login,
}

async fn caller(conn: &mut PgConnection) -> std::result::Result<Caller, sqlx::Error> {
    if !is_there(conn, "login").await? {
        return Ok(Caller::Owner);
    }
    let is_login: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT FROM tarbox.login l WHERE l.role = session_user)")
            .fetch_one(conn)
            .await?;
    Ok(if is_login { Caller::Login } else { Caller::Owner })
}

/// Brings the schema up to date, unless a tenant's login asks: that one finds it so, or is refused. Two programs at once: the second
/// waits, and finds it done.
pub(super) async fn migrate(pool: &Pool) -> Result<Caller> {
    let mut conn = pool.get().await?;
    let found = version(&mut conn).await.map_err(|e| pool.failed("read the schema's version", e))?;
    let current = match found {
        Some(found) => refuse_newer(pool, found)?.version,
        None => 0,
    };
    let caller = caller(&mut conn).await.map_err(|e| pool.failed("find out who is connected", e))?;
    if current < VERSION && caller == Caller::Login {
        let url = pool.display_url().to_owned();
        return Err(StoreError::SchemaOld { url, found: current, needed: VERSION });
    }
    if current < VERSION {
        steps(&mut conn).await.map_err(|failure| match failure {
            Step::Newer(found) => refuse_newer(pool, found)
                .err()
                .unwrap_or(StoreError::Refused("the schema changed while it was migrated".into())),
            Step::Sql(error) => pool.failed("migrate the schema", error),
        })?;
    }
    conn.give_back();
    Ok(caller)
}

fn refuse_newer(pool: &Pool, found: SchemaVersion) -> Result<SchemaVersion> {
    if found.min_version > VERSION {
        return Err(StoreError::Schema {
            url: pool.display_url().to_owned(),
            min_version: found.min_version,
            known: VERSION,
        });
    }
    Ok(found)
}

enum Step {
    Newer(SchemaVersion),
    Sql(sqlx::Error),
}

impl From<sqlx::Error> for Step {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

async fn steps(conn: &mut PgConnection) -> std::result::Result<(), Step> {
    raw_sql("BEGIN").execute(&mut *conn).await?;
    let done = steps_in_transaction(conn).await;
    let end = if done.is_ok() { "COMMIT" } else { "ROLLBACK" };
    let ended = raw_sql(end).execute(conn).await;
    done?;
    ended?;
    Ok(())
}

async fn steps_in_transaction(conn: &mut PgConnection) -> std::result::Result<(), Step> {
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(LOCK).execute(&mut *conn).await?;
    // Under the lock the version is read again: another program may have been first.
    let current = match version(conn).await? {
        Some(found) if found.min_version > VERSION => return Err(Step::Newer(found)),
        Some(found) => found.version,
        None => {
            raw_sql(
                "CREATE SCHEMA IF NOT EXISTS tarbox;
                 CREATE TABLE tarbox.schema_version (
                     one boolean PRIMARY KEY DEFAULT true CHECK (one), version int NOT NULL, min_version int NOT NULL);
                 INSERT INTO tarbox.schema_version (version, min_version) VALUES (0, 1);",
            )
            .execute(&mut *conn)
            .await?;
            0
        }
    };
    for (version, sql) in STEPS.iter().filter(|(version, _)| *version > current) {
        raw_sql(*sql).execute(&mut *conn).await?;
        sqlx::query("UPDATE tarbox.schema_version SET version = $1")
            .bind(*version as i32)
            .execute(&mut *conn)
            .await?;
    }
    Ok(())
}
