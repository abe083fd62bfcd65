//! The controller's life: serve, let go.

use std::{sync::Arc, time::Duration};

use tarbox_proto::csi::v1::{controller_server::ControllerServer, identity_server::IdentityServer};
use tarbox_rpc::csi::identity::IdentityService;
use tarbox_runtime::{Backoff, Shutdown};
use tonic::transport::Server;
use uuid::Uuid;

use crate::{
    background,
    csi::ControllerService,
    databases::Databases,
    failure::{ControllerError, Result},
    settings::Settings,
};

/// How long calls under way may take to end when the controller is asked to.
const GRACE: Duration = Duration::from_secs(5);

/// Serves until SIGINT or SIGTERM; `tell` is called once it serves.
///
/// # Errors
/// Where it cannot begin.
pub async fn serve(settings: Settings, tell: impl FnOnce(&Settings)) -> Result<()> {
    let mut shutdown = Shutdown::listen().map_err(ControllerError::io("listen for signals"))?;
    let doing = format!("listen at {}", settings.endpoint.display());
    let listener = tarbox_rpc::listen(&settings.endpoint).map_err(ControllerError::io(doing))?;
    let databases = Arc::new(Databases::new(settings.database_url.clone()));
    let settings = Arc::new(settings);
    let services = Server::builder()
        .add_service(IdentityServer::new(IdentityService::new(databases.clone())))
        .add_service(ControllerServer::new(ControllerService::new(settings.clone(), databases.clone())));
    let served = tarbox_rpc::serve(services, listener);
    let who = Uuid::new_v4();
    let background =
        [tokio::spawn(reach_home(databases.clone())), tokio::spawn(background::work(databases.clone(), who))];

    tell(&settings);
    let signal = shutdown.asked().await;
    tracing::info!(%signal, "ending");
    background.iter().for_each(tokio::task::JoinHandle::abort);
    let _ = tokio::time::timeout(GRACE, background::step_down(&databases, who)).await;
    // What is cut off is found by its records, and goes on when the call is repeated.
    let _ = tokio::time::timeout(GRACE, served.end()).await;
    Ok(())
}

/// Tries until the controller's own database has answered once: until then it is not ready.
async fn reach_home(databases: Arc<Databases>) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
    while let Err(error) = databases.of_request(None).await {
        if matches!(error, ControllerError::NoDatabase) {
            return;
        }
        tracing::warn!(error = error.report(), "the database cannot be reached yet");
        tokio::time::sleep(backoff.delay()).await;
    }
}
