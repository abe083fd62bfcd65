//! SQLite: a directory with a control database, and one directory per family.
//!
//! ```text
//! control.db               names, families, sessions, schema version
//! leader.lock              held by whoever does the background work
//! create.lock              held while a tenant or its directory comes or goes
//! sessions/<uuid>.lock     held while the session lives
//! family-<n>/meta.db       all rows of the family, the tenants' fenced ones among them
//! family-<n>/blocks.db     bytes of blocks
//! ```
//!
//! Through rusqlite, not sqlx: a row is read in about 10 µs, and sqlx sends each statement to a thread of its own and
//! waits for the answer, which takes longer than the statement. Reads run where they are asked for; what waits for
//! the disk runs where it is asked for as well, but tells tokio.

mod audit;
mod changes;
mod collect;
mod commit;
mod connect;
mod control;
mod database;
mod family;
mod fault;
mod flatten;
mod fork;
mod history;
mod layers;
mod logins;
mod publications;
mod read;
mod records;
mod rows;
mod scan;
mod schema;
mod sessions;
mod store;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, sync::Arc};

use crate::{
    api::Database,
    error::{Result, StoreError},
};

/// Opens the database of a URL `sqlite:///absolute/directory`, and makes it where there is none.
pub(crate) async fn open(url: &str) -> Result<Arc<dyn Database>> {
    let dir = directory(url)?;
    Ok(Arc::new(database::SqliteDatabase::open(url, dir)?))
}

fn directory(url: &str) -> Result<PathBuf> {
    let refused = |reason: &str| StoreError::Url { url: url.to_owned(), reason: reason.to_owned() };
    let path = url.strip_prefix("sqlite://").unwrap_or_default();
    if !path.starts_with('/') {
        return Err(refused("the directory must be absolute, as in sqlite:///home/me/tarbox"));
    }
    if path.contains(['?', '#', '\0']) {
        return Err(refused("it takes no options: sqlite:// and an absolute directory without `?` and `#`"));
    }
    let dir = PathBuf::from(path);
    match std::fs::metadata(&dir) {
        Ok(found) if !found.is_dir() => {
            Err(refused("this is not a directory; name a directory, new or empty"))
        }
        _ => Ok(dir),
    }
}
