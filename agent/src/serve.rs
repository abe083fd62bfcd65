//! The agent's life: take up what is there, serve CSI and the operator, let go.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use tarbox_proto::{
    agent::v1::agent_server::AgentServer,
    csi::v1::{identity_server::IdentityServer, node_server::NodeServer},
};
use tarbox_rpc::{Calls, PrivateListener, csi::identity::IdentityService, trace};
use tarbox_runtime::{
    Backoff, Monitored, Shutdown,
    monitoring::{self, Listening},
    otlp,
};
use tarbox_store::{Isolation, StoreError};
use tonic::transport::Server;

use crate::{
    csi::node::NodeService,
    events::{self, ApiServer},
    failure::{AgentError, Chain},
    launcher,
    node::Node,
    service::OperatorService,
    settings::{Settings, agent_socket},
    tenant::blocking,
    upgrades,
};

/// How often the database is asked whether it answers, at most.
const ASKED_AGAIN: Duration = Duration::from_secs(60);
/// How long calls under way may take to end when the agent is asked to.
const GRACE: Duration = Duration::from_secs(5);

/// Serves until SIGINT or SIGTERM. Mounters go on without the agent; `tell` is called once it serves.
///
/// # Errors
/// Where it cannot begin.
pub async fn serve(
    settings: Settings,
    tell: impl FnOnce(&Settings, Option<SocketAddr>),
) -> Result<(), AgentError> {
    let mut shutdown = Shutdown::listen().map_err(AgentError::io("listen for", Path::new("signals")))?;
    let node = tokio::select! {
        opened = blocking(move || Node::open(settings)) => opened?,
        // It may be waiting for the keeper.
        signal = shutdown.asked() => {
            tracing::info!(%signal, "ending before anything was begun");
            return Ok(());
        }
    };
    // A launcher that does not work is reported, not fatal: whoever is staged already is still supervised.
    let proof = launcher::prove(&node).await.map_err(|error| error.report());
    if let Err(error) = &proof {
        tracing::error!(error, "the launcher does not work: nothing can be staged");
    }
    node.launcher_proved(proof.clone());
    let proof = proof.unwrap_or_else(|error| format!("it does not work: {error}"));
    tracing::info!(launcher = node.keeper.launcher(), proof, "launcher");
    let (csi, operator) =
        (listen(&node.settings.endpoint)?, listen(&agent_socket(&node.settings.state_dir))?);
    let measured = measured_at(&node).await?;
    let metrics = measured.as_ref().map(Listening::address);
    let services = Server::builder()
        .trace_fn(trace::answering(node.settings.node_id.clone(), None))
        .layer(Calls::new(node.registry()))
        .add_service(IdentityServer::new(IdentityService::new(node.clone())))
        .add_service(NodeServer::new(NodeService::new(node.clone())));
    let own = Server::builder().add_service(AgentServer::new(OperatorService::new(node.clone(), proof)));
    let (csi, operator) = (tarbox_rpc::serve(services, csi), tarbox_rpc::serve(own, operator));
    let mut background = vec![
        tokio::spawn(node.keeper.clone().look_after()),
        tokio::spawn(watch_database(node.clone())),
        tokio::spawn(upgrade_after_start(node.clone())),
    ];
    background.extend(kubernetes(&node).map(|server| tokio::spawn(events::watch(node.clone(), server))));
    background.extend(measured.map(|listening| listening.serve(node.clone())));
    let collector = node.settings.otlp_endpoint.as_ref();
    background
        .extend(collector.map(|endpoint| otlp::send(endpoint, node.settings.node_id.clone(), node.clone())));
    tell(&node.settings, metrics);
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

/// Where events go; nowhere outside of a cluster, or where the account cannot be read: that keeps nobody from being served.
fn kubernetes(node: &Node) -> Option<ApiServer> {
    if !node.settings.kubernetes_events {
        return None;
    }
    ApiServer::of_this_pod().unwrap_or_else(|error| {
        tracing::warn!(error = error.report(), "pods are not told of their volumes by events");
        None
    })
}

async fn upgrade_after_start(node: Arc<Node>) {
    if node.settings.upgrade {
        upgrades::after_start(node).await;
    }
}

fn listen(socket: &Path) -> Result<PrivateListener, AgentError> {
    tarbox_rpc::listen(socket).map_err(AgentError::io("listen at", socket))
}

async fn measured_at(node: &Node) -> Result<Option<Listening>, AgentError> {
    let Some(address) = node.settings.metrics_address else { return Ok(None) };
    let listening = monitoring::listen(address).await;
    let at = format!("{address} (metricsAddress)");
    listening.map(Some).map_err(AgentError::io("listen at", Path::new(&at)))
}

/// Asks the agent's own database, now and then, whether it answers: until it has once, the node is not ready.
async fn watch_database(node: Arc<Node>) {
    let Some(url) = node.settings.database_url.clone() else { return };
    let mut failing = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
    // Of many nodes, each by itself.
    let mut again = Backoff::new(ASKED_AGAIN, ASKED_AGAIN);
    loop {
        match ask(&node, &url).await {
            Ok(isolation) => {
                node.database().answered();
                node.found_isolation(isolation);
                failing.reset();
                tokio::time::sleep(again.delay()).await;
            }
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "the database cannot be reached");
                node.database().failed(Chain(&error).to_string());
                tokio::time::sleep(failing.delay()).await;
            }
        }
    }
}

/// Asks the database, and tells it that the node is there; how tenants are kept apart in it. The connection is not kept: a database has
/// many nodes.
async fn ask(node: &Node, url: &str) -> Result<Isolation, StoreError> {
    let database = node.databases.at(url).await?;
    database.schema_version().await?;
    // One that answers and takes nothing in for the moment (a standby, a full disk) is there all the same.
    if let Err(error) = database.note_node(&node.settings.node_id).await {
        tracing::warn!(error = %Chain(&error), "the database does not take in that this node is there");
    }
    database.isolation().await
}
