//! The controller's life: serve, let go.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tarbox_proto::csi::v1::{controller_server::ControllerServer, identity_server::IdentityServer};
use tarbox_rpc::{Calls, csi::identity::IdentityService, trace};
use tarbox_runtime::{
    Backoff, Monitored, Shutdown, host_name,
    monitoring::{self, Listening},
    otlp,
};
use tonic::transport::Server;
use uuid::Uuid;

use crate::{
    background,
    csi::ControllerService,
    databases::Databases,
    failure::{ControllerError, Result},
    monitoring::Monitoring,
    settings::Settings,
};

/// How often the database is asked whether it answers.
const ASKED_AGAIN: Duration = Duration::from_secs(10);
/// How long calls under way may take to end when the controller is asked to.
const GRACE: Duration = Duration::from_secs(5);

/// Serves until SIGINT or SIGTERM; `tell` is called once it serves.
///
/// # Errors
/// Where it cannot begin.
pub async fn serve(settings: Settings, tell: impl FnOnce(&Settings, Option<SocketAddr>)) -> Result<()> {
    let mut shutdown = Shutdown::listen().map_err(ControllerError::io("listen for signals"))?;
    let doing = format!("listen at {}", settings.endpoint.display());
    let listener = tarbox_rpc::listen(&settings.endpoint).map_err(ControllerError::io(doing))?;
    let databases = Arc::new(Databases::new(settings.database_url.clone()));
    let settings = Arc::new(settings);
    let monitoring = Arc::new(Monitoring::new(databases.clone()));
    let measured = measured_at(&settings).await?;
    let metrics = measured.as_ref().map(Listening::address);
    let services = Server::builder()
        .trace_fn(trace::answering(host_name(), None))
        .layer(Calls::new(monitoring.registry()))
        .add_service(IdentityServer::new(IdentityService::new(databases.clone())))
        .add_service(ControllerServer::new(ControllerService::new(settings.clone(), databases.clone())));
    let served = tarbox_rpc::serve(services, listener);
    let who = Uuid::new_v4();
    let mut background = vec![
        tokio::spawn(watch_home(databases.clone())),
        tokio::spawn(background::work(databases.clone(), monitoring.clone(), who, settings.ephemeral_grace)),
    ];
    let collector = settings.otlp_endpoint.as_ref();
    background.extend(collector.map(|endpoint| otlp::send(endpoint, host_name(), monitoring.clone())));
    background.extend(measured.map(|listening| listening.serve(monitoring)));

    tell(&settings, metrics);
    let signal = shutdown.asked().await;
    tracing::info!(%signal, "ending");
    background.iter().for_each(tokio::task::JoinHandle::abort);
    let _ = tokio::time::timeout(GRACE, background::step_down(&databases, who)).await;
    // What is cut off is found by its records, and goes on when the call is repeated.
    let _ = tokio::time::timeout(GRACE, served.end()).await;
    Ok(())
}

async fn measured_at(settings: &Settings) -> Result<Option<Listening>> {
    let Some(address) = settings.metrics_address else { return Ok(None) };
    let doing = format!("listen at {address} (metricsAddress)");
    monitoring::listen(address).await.map(Some).map_err(ControllerError::io(doing))
}

/// Asks the controller's own database, now and then, whether it answers: until it has once, the controller is not ready.
async fn watch_home(databases: Arc<Databases>) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
    loop {
        match databases.ask_home().await {
            Ok(()) => {
                backoff.reset();
                tokio::time::sleep(ASKED_AGAIN).await;
            }
            Err(ControllerError::NoDatabase) => return,
            Err(error) => {
                tracing::warn!(error = error.report(), "the database cannot be reached");
                tokio::time::sleep(backoff.delay()).await;
            }
        }
    }
}
