//! One life of a mounter that only reads: no lease, no journal, nothing to commit.

use std::{path::PathBuf, sync::Arc};

use tarbox_engine::Session;
use tarbox_runtime::Shutdown;
use tarbox_store::{Database, Tenant};
use tarbox_types::{ErrorKind, SessionId};

use crate::{
    engine,
    failure::{Chain, Failure},
    lease,
    reader::Reader,
    serve::{self, Mounted},
    settings::Settings,
    tenant_dir::TenantDir,
};

/// Mounts the tenant as the database has it, until it is unmounted or the process is asked to end.
///
/// # Errors
/// What is in the way.
pub(crate) async fn run(
    settings: &Settings,
    database: Arc<dyn Database>,
    tenant: &Tenant,
    point: PathBuf,
    shutdown: &mut Shutdown,
    ready: impl FnOnce(&Mounted<'_>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let directory = TenantDir::lock_reader(&settings.state_dir, tenant.id)?
        .ok_or_else(|| Failure::refused(ErrorKind::Busy, "this process mounts the tenant already"))?;
    let session = lease::open_session(&database).await?;
    let served = serve(settings, &database, tenant, point, &directory, session, shutdown, ready).await;
    directory.clear();
    let closed = database.close_session(session).await;
    served.and(closed.map_err(Failure::from))
}

#[allow(clippy::too_many_arguments, reason = "one call, split for its length")]
async fn serve(
    settings: &Settings,
    database: &Arc<dyn Database>,
    tenant: &Tenant,
    point: PathBuf,
    directory: &TenantDir,
    session: SessionId,
    shutdown: &mut Shutdown,
    ready: impl FnOnce(&Mounted<'_>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let config = serve::fs_config(settings, tenant, directory);
    let store = database.open_tenant(tenant.id).await?;
    let reader = Arc::new(Reader::open(Arc::clone(database), store, session, config).await?);
    let note = serve::note(tenant, session, point.clone(), true);
    directory.write_note(&note)?;
    // Nothing here has to be told to the kernel: what it keeps, it keeps for a second.
    let connection = engine::start(&reader, |_: &Session| {}, tenant, &point, true).await?;
    let told = ready(&Mounted { tenant, note: &note, database: database.display_url() });
    if told.is_ok() {
        until_unmounted(&connection, shutdown, point).await;
    } else {
        serve::take_away(point).await;
    }
    if let Err(error) = connection.stop().await {
        tracing::warn!(error = %Chain(&error), "the session did not end as it should");
    }
    reader.close().await;
    told
}

async fn until_unmounted(connection: &Session, shutdown: &mut Shutdown, point: PathBuf) {
    tokio::select! {
        ended = connection.wait() => tracing::info!(?ended, "unmounted"),
        signal = shutdown.asked() => {
            tracing::info!(%signal, "ending: unmounting");
            serve::take_away(point).await;
        }
    }
}
