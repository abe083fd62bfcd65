//! Connections: how each of the three files is made, opened and pooled.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags};

use super::{fault::Outcome, schema};

/// Another process may hold the file this long (a large commit, a checkpoint) before we give up.
const FOREIGN_LOCK: Duration = Duration::from_secs(10);
/// Statements of all kinds are fewer than this: none is compiled twice.
const STATEMENTS: usize = 160;
/// Connections kept in a pool; more are opened where more ask at once.
const POOLED: usize = 4;

/// One of the kinds of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Control,
    Meta,
    Blocks,
}

impl Kind {
    /// Steps by the version they lead to, from 1 on.
    fn steps(self) -> &'static [&'static str] {
        match self {
            Self::Control => schema::CONTROL,
            Self::Meta => schema::META,
            Self::Blocks => schema::BLOCKS,
        }
    }

    fn at_creation(self) -> &'static str {
        match self {
            Self::Control => "PRAGMA page_size=4096; PRAGMA journal_mode=WAL;",
            Self::Meta => "PRAGMA page_size=4096; PRAGMA auto_vacuum=INCREMENTAL; PRAGMA journal_mode=WAL;",
            Self::Blocks => {
                "PRAGMA page_size=65536; PRAGMA auto_vacuum=INCREMENTAL; PRAGMA journal_mode=WAL;"
            }
        }
    }

    /// Caches are small: what is read twice is cached above, and the kernel has the file.
    fn at_opening(self, writes: bool) -> &'static str {
        match (self, writes) {
            (Self::Control, _) => "PRAGMA synchronous=FULL; PRAGMA cache_size=-256;",
            // A commit's pages stay in memory until it ends, if they fit.
            (Self::Meta, true) => {
                "PRAGMA synchronous=FULL; PRAGMA cache_size=-8192; PRAGMA wal_autocheckpoint=4000;
                 PRAGMA journal_size_limit=67108864; PRAGMA temp_store=MEMORY;"
            }
            (Self::Meta, false) => "PRAGMA cache_size=-2048; PRAGMA temp_store=MEMORY; PRAGMA query_only=1;",
            // NORMAL: the metadata commit that refers to blocks syncs their WAL before, once for all uploads.
            (Self::Blocks, true) => {
                "PRAGMA synchronous=NORMAL; PRAGMA cache_size=-4096; PRAGMA wal_autocheckpoint=1024;
                 PRAGMA journal_size_limit=134217728;"
            }
            (Self::Blocks, false) => "PRAGMA cache_size=-512; PRAGMA query_only=1;",
        }
    }
}

/// Makes a directory that only its owner enters; one that is there stays as it is.
pub(super) fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Makes entries of a directory durable.
pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Makes a database file, if it is not there or was not finished, and brings its tables up to date.
pub(super) fn create(path: &Path, kind: Kind) -> Outcome<Connection> {
    // SQLite would make it readable for all; WAL and shared memory take over its mode.
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    if let Err(error) = made
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(rusqlite::Error::SqliteFailure(
            rusqlite::ffi::Error::new(match error.raw_os_error() {
                Some(libc::ENOSPC | libc::EDQUOT) => rusqlite::ffi::SQLITE_FULL,
                _ => rusqlite::ffi::SQLITE_CANTOPEN,
            }),
            Some(format!("{}: {error}", path.display())),
        )
        .into());
    }
    let connection = connect(path)?;
    let known = version(&connection)?;
    if known == 0 {
        connection.execute_batch(kind.at_creation())?;
    }
    bring_up_to_date(&connection, kind, known)?;
    connection.execute_batch(kind.at_opening(true))?;
    Ok(connection)
}

/// The step that a file was brought to; 0: it is just being made.
fn version(connection: &Connection) -> rusqlite::Result<u32> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}

/// Takes the steps that lead on from the one that is known.
fn bring_up_to_date(connection: &Connection, kind: Kind, known: u32) -> Outcome<()> {
    for (number, step) in (1..).zip(kind.steps()).filter(|(number, _)| *number > known) {
        in_transaction(connection, |connection| {
            // Two programs at once: the second one waits, and finds it done.
            if version(connection)? < number {
                connection.execute_batch(&format!("{step} PRAGMA user_version={number};"))?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Opens a database file that is there; one that an older release has made is brought up to date.
pub(super) fn open(path: &Path, kind: Kind, writes: bool) -> Outcome<Connection> {
    let connection = connect(path)?;
    let known = version(&connection)?;
    if known > 0 {
        bring_up_to_date(&connection, kind, known)?;
    }
    connection.execute_batch(kind.at_opening(writes))?;
    Ok(connection)
}

fn connect(path: &Path) -> Outcome<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(FOREIGN_LOCK)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(connection)
}

/// Connections that read one file: opened when needed, closed when idle.
pub(super) struct Pool {
    path: PathBuf,
    kind: Kind,
    idle: Mutex<Vec<(Connection, Instant)>>,
}

impl Pool {
    pub(super) fn new(path: PathBuf, kind: Kind) -> Self {
        Self { path, kind, idle: Mutex::new(Vec::new()) }
    }

    /// Runs `read` on a connection, on this thread: it takes less time than going to another one.
    pub(super) fn with<T>(&self, read: impl FnOnce(&Connection) -> Outcome<T>) -> Outcome<T> {
        let pooled = self.idle.lock().pop();
        let connection = match pooled {
            Some((connection, _)) => connection,
            None => open(&self.path, self.kind, false)?,
        };
        let outcome = read(&connection);
        let spoilt = outcome.as_ref().err().is_some_and(super::fault::Fault::spoils_connection);
        if !spoilt {
            let mut idle = self.idle.lock();
            if idle.len() < POOLED {
                idle.push((connection, Instant::now()));
            }
        }
        outcome
    }

    /// Closes what was not used for `age`.
    pub(super) fn close_idle(&self, age: Duration) {
        let mut idle = self.idle.lock();
        let kept = std::mem::take(&mut *idle).into_iter().filter(|(_, used)| used.elapsed() < age).collect();
        *idle = kept;
    }
}

/// A read transaction: all statements of `read` see one state.
pub(super) fn in_one_state<T>(
    connection: &Connection,
    read: impl FnOnce(&Connection) -> Outcome<T>,
) -> Outcome<T> {
    connection.prepare_cached("BEGIN")?.execute([])?;
    let outcome = read(connection);
    connection.prepare_cached("COMMIT")?.execute([])?;
    outcome
}

/// A write transaction: all or nothing.
pub(super) fn in_transaction<T>(
    connection: &Connection,
    write: impl FnOnce(&Connection) -> Outcome<T>,
) -> Outcome<T> {
    connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
    let outcome = write(connection)
        .and_then(|value| Ok(connection.prepare_cached("COMMIT")?.execute([]).map(|_| value)?));
    if outcome.is_err() && !connection.is_autocommit() {
        // It can only fail where the transaction is gone already.
        let _ = connection.execute_batch("ROLLBACK");
    }
    outcome
}
