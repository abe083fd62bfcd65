//! A tenant's file system opened without a mount: to read or write it in this process.

use std::{path::Path, sync::Arc};

use tarbox_fs::FileSystem;
use tarbox_store::{Database, Tenant};
use tarbox_types::{ErrorKind, SessionId};

use crate::{
    cli::context::Context,
    failure::{Chain, Failure},
    lease, serve,
    tenant_dir::{self, TenantDir},
};

/// A file system that this process alone uses.
pub struct Offline {
    database: Arc<dyn Database>,
    session: SessionId,
    /// The file system.
    pub file_system: Arc<FileSystem>,
}

/// Whether a mounter left a journal in its directory.
#[must_use]
pub fn has_journal(directory: &Path) -> bool {
    std::fs::read_dir(tenant_dir::journal(directory)).is_ok_and(|mut entries| entries.next().is_some())
}

/// Takes the lease, replays what a dead mounter left, and opens the tenant.
///
/// # Errors
/// Where somebody else holds it, or it cannot be opened.
pub async fn open(
    database: &Arc<dyn Database>,
    context: &Context,
    tenant: &Tenant,
    directory: &TenantDir,
) -> Result<Offline, Failure> {
    let session = lease::open_session(database).await?;
    let opened = async {
        let lease = lease::acquire(database, tenant.id, session, directory).await?;
        serve::open_file_system(database, &context.settings, lease, session, directory).await
    };
    match opened.await {
        Ok(file_system) => Ok(Offline { database: Arc::clone(database), session, file_system }),
        Err(failure) => {
            if let Err(error) = database.close_session(session).await {
                tracing::warn!(error = %Chain(&error), "the session could not be closed");
            }
            Err(failure)
        }
    }
}

impl Offline {
    /// Commits everything and gives the lease back.
    ///
    /// # Errors
    /// Where the database does not take it.
    pub async fn close(self) -> Result<(), Failure> {
        self.file_system.close().await.map_err(|error| Failure::Part {
            kind: ErrorKind::Unavailable,
            doing: "commit the last changes".to_owned(),
            source: error.into(),
        })?;
        Ok(self.database.close_session(self.session).await?)
    }
}
