//! Logins: roles that the schema's policies (`schema_5.sql`) keep to their tenants.
//!
//! A role is one tenant's on one node: a node that renews its password cuts no other one off. Roles belong to the whole server, so that
//! the database goes into their names.

use async_trait::async_trait;
use sqlx::{ConnectOptions, Connection, PgConnection, Row};
use tarbox_types::TenantId;
use uuid::Uuid;

use super::{
    Postgres,
    failure::Failure,
    pool::{Pool, Transaction, transact},
    rows::unreadable,
    scram,
    statement::Statement,
};
use crate::{
    error::{Result, StoreError},
    logins::{Isolation, Login, Logins, Made},
};

type Attempt<T> = std::result::Result<T, Failure>;

/// Connections of one login: those of a mounter, its stand-by and a successor, and what a server has not noticed to be gone.
const MOST_CONNECTIONS: u32 = 48;

/// What a login's statement is refused with that nothing of ours would cause again.
const HINT: &str = "the administrator runs once: ALTER ROLE … CREATEROLE, for the user of the driver's databaseURL, and makes it the \
                    owner of the schema `tarbox`";

#[async_trait]
impl Logins for Postgres {
    async fn isolation(&self) -> Result<Isolation> {
        let found = self
            .pool
            .read("look at the rights of this user", || {
                Statement::new(
                    "SELECT current_user::text, r.rolsuper OR r.rolcreaterole, pg_has_role(c.relowner, 'USAGE')
                     FROM pg_catalog.pg_roles r, pg_catalog.pg_class c
                     WHERE r.rolname = current_user AND c.oid = 'tarbox.tenant'::regclass",
                )
            })
            .await?;
        let row = found.first().ok_or_else(|| unreadable(sqlx::Error::RowNotFound))?;
        let read = || Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?));
        let (user, makes_roles, owns): (String, bool, bool) = read().map_err(unreadable)?;
        Ok(match (makes_roles, owns) {
            (true, true) => Isolation::Logins,
            (false, _) => Isolation::None(format!("the user `{user}` may not make roles: {HINT}")),
            (true, false) => Isolation::None(format!("the user `{user}` does not own the tables: {HINT}")),
        })
    }

    async fn make_login(&self, tenant: TenantId, node: &str) -> Result<Made> {
        let password = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
        let made = transact!(self.pool, "make a login", make(&self.pool, tenant, node, &password))?;
        let role = match made {
            Ok(role) => role,
            Err(why) => return Ok(Made::Impossible(format!("{why}: {HINT}"))),
        };
        let login = Login { role, password };
        match self.try_out(&login, tenant).await? {
            None => Ok(Made::Login(login)),
            Some(why) => {
                remove(&self.pool, &login.role).await?;
                Ok(Made::Impossible(why))
            }
        }
    }

    async fn remove_login(&self, tenant: TenantId, node: &str) -> Result<()> {
        let role = self.pool.read("look for a login", || named(tenant, node)).await?;
        match role.first().map(|row| row.try_get::<String, _>(0)).transpose().map_err(unreadable)? {
            Some(role) => remove(&self.pool, &role).await,
            None => Ok(()),
        }
    }
}

impl Postgres {
    /// Connects as the login; why it is of no use, if so.
    async fn try_out(&self, login: &Login, tenant: TenantId) -> Result<Option<String>> {
        let options = self.pool.options_of(&login.role, &login.password);
        let asked = async {
            let mut conn: PgConnection = options.connect().await?;
            let row = sqlx::query(
                "SELECT row_security_active('tarbox.inode'), (SELECT tenant FROM tarbox.login WHERE role = session_user)",
            )
            .fetch_one(&mut conn)
            .await?;
            let found = (row.try_get::<bool, _>(0)?, row.try_get::<Option<Uuid>, _>(1)?);
            let _ = conn.close().await;
            Ok::<_, sqlx::Error>(found)
        };
        match asked.await.map_err(Failure::from) {
            Ok((true, Some(found))) if found == tenant.0 => Ok(None),
            Ok(_) => Ok(Some(format!("the login {} is not kept to its tenant by the server", login.role))),
            Err(failure) => match failure.denial() {
                Some(why) => Ok(Some(format!(
                    "the server does not let the login {} in ({why}): pg_hba.conf, or the pooler, has to admit it with a password",
                    login.role
                ))),
                None => Err(self.pool.failed("try a login", failure)),
            },
        }
    }
}

/// The name that a login has, `role`, whether it is there or not.
fn named(tenant: TenantId, node: &str) -> Statement {
    Statement::new(
        "SELECT $1 || substr(encode(sha256(convert_to(d.oid::text || '/' || $2, 'UTF8')), 'hex'), 1, 16) AS role FROM pg_catalog.pg_database d
         WHERE d.datname = current_database()",
    )
    .with(format!("tarbox_{}_", tenant.0.simple()))
    .with(node)
}

/// An identifier in a statement. Names of ours hold nothing that would have to be escaped.
fn quoted(role: &str) -> String {
    format!("\"{}\"", role.replace('"', "\"\""))
}

/// The role and what it reaches; or why it cannot be made.
async fn make(
    pool: &Pool,
    tenant: TenantId,
    node: &str,
    password: &str,
) -> Attempt<std::result::Result<String, String>> {
    let mut transaction = pool.begin().await?;
    match make_in(&mut transaction, tenant, node, password).await {
        Ok(role) => transaction.commit().await.map(|()| Ok(role)),
        Err(failure) => {
            if failure.is_broken() {
                return Err(failure);
            }
            transaction.roll_back().await;
            failure.denial().map_or(Err(failure), |why| Ok(Err(why)))
        }
    }
}

async fn make_in(
    transaction: &mut Transaction,
    tenant: TenantId,
    node: &str,
    password: &str,
) -> Attempt<String> {
    let row = transaction.row(named(tenant, node)).await?.ok_or(sqlx::Error::RowNotFound)?;
    let role: String = row.try_get(0)?;
    // Two at once: the second one waits, and then finds the role.
    let lock = Statement::new("SELECT 1 FROM tarbox.tenant WHERE id = $1 FOR NO KEY UPDATE").with(tenant.0);
    transaction.row(lock).await?.ok_or_else(|| StoreError::NoTenant(tenant.to_string()))?;
    let there = Statement::new("SELECT 1 FROM pg_catalog.pg_roles WHERE rolname = $1").with(role.as_str());
    let verb = if transaction.row(there).await?.is_some() { "ALTER" } else { "CREATE" };
    let verifier = scram::verifier(password, Uuid::new_v4().as_bytes());
    transaction
        .run(format!(
            "{verb} ROLE {} LOGIN NOINHERIT NOCREATEDB NOCREATEROLE CONNECTION LIMIT {MOST_CONNECTIONS} PASSWORD '{verifier}'",
            quoted(&role)
        ))
        .await?;
    let admit = Statement::new("SELECT tarbox.admit($1::text::name, $2, $3)");
    transaction.rows(admit.with(role.as_str()).with(tenant.0).with(node)).await?;
    Ok(role)
}

/// Takes all logins of a tenant away.
pub(super) async fn remove_all(pool: &Pool, tenant: TenantId) -> Result<()> {
    let found = pool
        .read("look for logins", || {
            Statement::new("SELECT role::text FROM tarbox.login WHERE tenant = $1 ORDER BY role")
                .with(tenant.0)
        })
        .await?;
    for row in &found {
        remove(pool, row.try_get(0).map_err(unreadable)?).await?;
    }
    Ok(())
}

/// Takes a login away: what it reaches, its sessions that hold nothing, and the role, where this user may.
async fn remove(pool: &Pool, role: &str) -> Result<()> {
    for with_role in [WithRole::Plainly, WithRole::AndWhatIsIts, WithRole::Not] {
        match transact!(pool, "remove a login", try_remove(pool, role, with_role))? {
            Removed::Done => return Ok(()),
            Removed::Denied(why) => {
                tracing::warn!(role, why, "the role of a login is left behind: it reaches nothing any more");
            }
            Removed::StillNeeded => {}
        }
    }
    Ok(())
}

/// How far a removal goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WithRole {
    Plainly,
    /// Large objects, temporary tables: whatever a login may have made, it must not keep its role.
    AndWhatIsIts,
    Not,
}

enum Removed {
    Done,
    StillNeeded,
    Denied(String),
}

async fn try_remove(pool: &Pool, role: &str, with_role: WithRole) -> Attempt<Removed> {
    let mut transaction = pool.begin().await?;
    match remove_in(&mut transaction, role, with_role).await {
        Ok(()) => transaction.commit().await.map(|()| Removed::Done),
        Err(failure) if failure.is_broken() => Err(failure),
        Err(failure) => {
            transaction.roll_back().await;
            match failure.denial() {
                Some(why) => Ok(Removed::Denied(why)),
                None if failure.is_depended_on() => Ok(Removed::StillNeeded),
                None => Err(failure),
            }
        }
    }
}

async fn remove_in(transaction: &mut Transaction, role: &str, with_role: WithRole) -> Attempt<()> {
    transaction
        .rows(Statement::new("DELETE FROM tarbox.login WHERE role = $1::text::name").with(role))
        .await?;
    let ended = "DELETE FROM tarbox.session s WHERE s.login = $1::text::name
       AND NOT EXISTS (SELECT FROM tarbox.tenant t WHERE t.session = s.session AND t.held)";
    transaction.rows(Statement::new(ended).with(role)).await?;
    let role = quoted(role);
    match with_role {
        WithRole::Plainly => transaction.run(format!("DROP ROLE IF EXISTS {role}")).await,
        WithRole::AndWhatIsIts => {
            transaction
                .run(format!(
                    "GRANT {role} TO CURRENT_USER; DROP OWNED BY {role} CASCADE; DROP ROLE IF EXISTS {role}"
                ))
                .await
        }
        WithRole::Not => Ok(()),
    }
}
