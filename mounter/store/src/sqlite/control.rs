//! The control database: which tenants there are, in which family, and who has a session.
//!
//! A tenant's own row stands in its family's `meta.db`. A row here is `MAKING` before anything of the tenant exists
//! and `REMOVING` until everything is gone, so that whatever a crash leaves is found again by its row,
//! and no directory is ever removed that no row speaks of.

use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, params};
use tarbox_types::{FamilyId, SessionId, TenantId};

use super::{
    connect::{self, Kind},
    family::blocking,
    fault::{Fault, Outcome, Place},
    rows,
};
use crate::{api::SchemaVersion, error::Result, model::*, trace::statement};

/// How far a tenant is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i64)]
pub(super) enum Stage {
    Live = 0,
    Deleted = 1,
    Making = 2,
    Removing = 3,
}

impl Stage {
    fn read(value: i64) -> Self {
        match value {
            0 => Self::Live,
            1 => Self::Deleted,
            2 => Self::Making,
            _ => Self::Removing,
        }
    }
}

/// What the control database says of a tenant.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) id: TenantId,
    pub(super) family: FamilyId,
    pub(super) stage: Stage,
}

/// The control database.
pub(super) struct Control {
    url: String,
    dir: PathBuf,
    connection: Mutex<Option<Connection>>,
}

fn path(dir: &Path) -> PathBuf {
    dir.join("control.db")
}

pub(super) fn entry(row: &rusqlite::Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry { id: TenantId(rows::uuid(row, 0)?), family: row.get(1)?, stage: Stage::read(row.get(2)?) })
}

impl Control {
    pub(super) fn open(url: &str, dir: &Path) -> Result<Self> {
        let place = Place { url, dir };
        let connection =
            place.settle("opening the control database", connect::create(&path(dir), Kind::Control))?;
        Ok(Self { url: url.to_owned(), dir: dir.to_owned(), connection: Mutex::new(Some(connection)) })
    }

    pub(super) fn with<T>(
        &self,
        doing: &'static str,
        run: impl FnOnce(&Connection) -> Outcome<T>,
    ) -> Result<T> {
        let outcome = statement("sqlite", doing).in_scope(|| {
            let mut slot = self.connection.lock();
            let connection = match slot.take() {
                Some(connection) => connection,
                None => connect::open(&path(&self.dir), Kind::Control, true)?,
            };
            let outcome = run(&connection);
            if !outcome.as_ref().err().is_some_and(Fault::spoils_connection) {
                *slot = Some(connection);
            }
            outcome
        });
        Place { url: &self.url, dir: &self.dir }.settle(doing, outcome)
    }

    pub(super) fn write<T>(
        &self,
        doing: &'static str,
        run: impl FnOnce(&Connection) -> Outcome<T>,
    ) -> Result<T> {
        blocking(|| self.with(doing, |connection| connect::in_transaction(connection, run)))
    }

    pub(super) fn version(&self) -> Result<SchemaVersion> {
        self.with("reading the schema's version", |connection| {
            Ok(connection.query_row("SELECT version, min_version FROM schema", [], |row| {
                Ok(SchemaVersion { version: row.get(0)?, min_version: row.get(1)? })
            })?)
        })
    }

    pub(super) fn find(&self, id: TenantId) -> Result<Option<Entry>> {
        self.with("looking for a tenant", |connection| {
            Ok(connection
                .prepare_cached("SELECT id, family, state FROM tenant WHERE id = ?1")?
                .query_row([id.0.as_bytes()], entry)
                .optional()?)
        })
    }

    pub(super) fn find_name(&self, name: &str) -> Result<Option<Entry>> {
        self.with("looking for a tenant", |connection| {
            Ok(connection
                .prepare_cached("SELECT id, family, state FROM tenant WHERE name = ?1 AND state = 0")?
                .query_row([name], entry)
                .optional()?)
        })
    }

    /// All rows, by name.
    pub(super) fn all(&self) -> Result<Vec<Entry>> {
        self.with("listing tenants", |connection| {
            let mut statement =
                connection.prepare_cached("SELECT id, family, state FROM tenant ORDER BY name, id")?;
            Ok(statement.query_map([], entry)?.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// A family number never given before.
    pub(super) fn next_family(&self) -> Result<FamilyId> {
        self.write("making a family", |connection| {
            Ok(connection.query_row(
                "UPDATE schema SET next_family = next_family + 1 RETURNING next_family - 1",
                [],
                |row| row.get(0),
            )?)
        })
    }

    pub(super) fn insert(&self, id: TenantId, name: &str, family: FamilyId) -> Result<()> {
        self.write("making a tenant", |connection| {
            connection.execute(
                "INSERT INTO tenant(id, name, family, state) VALUES(?1, ?2, ?3, ?4)",
                params![id.0.as_bytes(), name, family, Stage::Making as i64],
            )?;
            Ok(())
        })
    }

    pub(super) fn set_stage(&self, id: TenantId, stage: Stage) -> Result<()> {
        self.write("changing a tenant's state", |connection| {
            let parameters = params![id.0.as_bytes(), stage as i64];
            connection.execute("UPDATE tenant SET state = ?2 WHERE id = ?1", parameters)?;
            Ok(())
        })
    }

    pub(super) fn remove(&self, id: TenantId) -> Result<()> {
        self.write("removing a tenant", |connection| {
            let id = id.0.as_bytes();
            connection.execute("DELETE FROM snapshot WHERE tenant = ?1 AND purpose = 3", [id])?;
            connection.execute("DELETE FROM tag WHERE tenant = ?1", [id])?;
            connection.execute("DELETE FROM publication WHERE tenant = ?1", [id])?;
            connection.execute("DELETE FROM tenant WHERE id = ?1", [id])?;
            Ok(())
        })
    }

    // === Sessions ===

    /// Registers a session and forgets those of `gone`.
    pub(super) fn put_session(&self, new: &NewSession, gone: &[SessionId]) -> Result<()> {
        self.write("opening a session", |connection| {
            for session in gone {
                connection.execute("DELETE FROM session WHERE id = ?1", [session.0.as_bytes()])?;
            }
            connection.execute(
                "INSERT OR REPLACE INTO session(id, node, boot_id, pid, start_time) VALUES(?1, ?2, ?3, ?4, ?5)",
                params![new.id.0.as_bytes(), new.node, new.boot_id, new.pid, rows::int(new.start_time)],
            )?;
            Ok(())
        })
    }

    pub(super) fn remove_session(&self, session: SessionId) -> Result<()> {
        self.write("closing a session", |connection| {
            connection.execute("DELETE FROM session WHERE id = ?1", [session.0.as_bytes()])?;
            connection
                .execute("UPDATE tenant SET session = NULL WHERE session = ?1", [session.0.as_bytes()])?;
            Ok(())
        })
    }

    pub(super) fn sessions(&self) -> Result<Vec<SessionId>> {
        self.with("listing sessions", |connection| {
            let mut statement = connection.prepare_cached("SELECT id FROM session")?;
            let rows = statement.query_map([], |row| Ok(SessionId(rows::uuid(row, 0)?)))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// What a session said of itself.
    pub(super) fn holder(&self, session: SessionId) -> Result<Option<Holder>> {
        self.with("looking for a session", |connection| {
            Ok(connection
                .prepare_cached("SELECT node, pid FROM session WHERE id = ?1")?
                .query_row([session.0.as_bytes()], |row| {
                    Ok(Holder { session, node: row.get(0)?, pid: row.get(1)? })
                })
                .optional()?)
        })
    }

    /// Notes that a session took this tenant's lease: where a heartbeat looks.
    pub(super) fn note_holder(&self, id: TenantId, session: SessionId) -> Result<()> {
        self.write("noting a lease", |connection| {
            let parameters = params![id.0.as_bytes(), session.0.as_bytes()];
            connection.execute("UPDATE tenant SET session = ?2 WHERE id = ?1", parameters)?;
            Ok(())
        })
    }

    pub(super) fn held_by(&self, session: SessionId) -> Result<Vec<Entry>> {
        self.with("renewing a session", |connection| {
            let mut statement =
                connection.prepare_cached("SELECT id, family, state FROM tenant WHERE session = ?1")?;
            Ok(statement.query_map([session.0.as_bytes()], entry)?.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Closes the connection until it is needed again.
    pub(super) fn close_idle(&self) {
        *self.connection.lock() = None;
    }
}
