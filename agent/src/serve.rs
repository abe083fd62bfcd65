//! The agent's life: take up what is there, serve CSI and the operator, let go.

use std::{path::Path, sync::Arc, time::Duration};

use tarbox_proto::{
    agent::v1::agent_server::AgentServer,
    csi::v1::{identity_server::IdentityServer, node_server::NodeServer},
};
use tarbox_rpc::{PrivateListener, csi::identity::IdentityService};
use tarbox_runtime::{Backoff, Shutdown};
use tonic::transport::Server;

use crate::{
    csi::node::NodeService,
    failure::{AgentError, Chain},
    launcher,
    node::Node,
    service::OperatorService,
    settings::{Settings, agent_socket},
    tenant::blocking,
    upgrades,
};

/// How long calls under way may take to end when the agent is asked to.
const GRACE: Duration = Duration::from_secs(5);

/// Serves until SIGINT or SIGTERM. Mounters go on without the agent; `tell` is called once it serves.
///
/// # Errors
/// Where it cannot begin.
pub async fn serve(settings: Settings, tell: impl FnOnce(&Settings)) -> Result<(), AgentError> {
    let mut shutdown = Shutdown::listen().map_err(AgentError::io("listen for", Path::new("signals")))?;
    let node = blocking(move || Node::open(settings)).await?;
    // A launcher that does not work is reported, not fatal: whoever is staged already is still supervised.
    let proof = match launcher::prove(&node).await {
        Ok(proof) => proof,
        Err(error) => {
            tracing::error!(error = error.report(), "the launcher does not work: nothing can be staged");
            format!("it does not work: {}", error.report())
        }
    };
    tracing::info!(launcher = node.keeper.launcher(), proof, "launcher");
    let (csi, operator) =
        (listen(&node.settings.endpoint)?, listen(&agent_socket(&node.settings.state_dir))?);
    let mut builder = Server::builder();
    let services = builder
        .add_service(IdentityServer::new(IdentityService::new(node.clone())))
        .add_service(NodeServer::new(NodeService::new(node.clone())));
    let own = Server::builder().add_service(AgentServer::new(OperatorService::new(node.clone(), proof)));
    let (csi, operator) = (tarbox_rpc::serve(services, csi), tarbox_rpc::serve(own, operator));
    let background = [
        tokio::spawn(node.keeper.clone().look_after()),
        tokio::spawn(reach_database(node.clone())),
        tokio::spawn(upgrade_after_start(node.clone())),
    ];
    tell(&node.settings);
    let signal = shutdown.asked().await;
    tracing::info!(%signal, "ending; mounters go on");
    let _ = tokio::time::timeout(GRACE, async { tokio::join!(csi.end(), operator.end()) }).await;
    background.iter().for_each(tokio::task::JoinHandle::abort);
    let keeper = node.keeper.clone();
    blocking(move || {
        keeper.release();
        Ok(())
    })
    .await
}

async fn upgrade_after_start(node: Arc<Node>) {
    if node.settings.upgrade {
        upgrades::after_start(node).await;
    }
}

fn listen(socket: &Path) -> Result<PrivateListener, AgentError> {
    tarbox_rpc::listen(socket).map_err(AgentError::io("listen at", socket))
}

/// Tries until the agent's own database has answered once: until then the node is not ready.
async fn reach_database(node: Arc<Node>) {
    let Some(url) = node.settings.database_url.clone() else { return };
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
    while !node.has_what_it_needs() {
        let reached = async { tarbox_store::open(&url).await?.schema_version().await };
        match reached.await {
            Ok(_) => node.database_reached(),
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "the database cannot be reached yet");
                tokio::time::sleep(backoff.delay()).await;
            }
        }
    }
}
