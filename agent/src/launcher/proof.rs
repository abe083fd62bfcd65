//! Whether the launcher does what it is for: a mounter's executable, started through the keeper, that ends well.

use std::{os::fd::AsFd, sync::Arc, time::Duration};

use tarbox_handover::{HandoverError, SpawnSpec, process::wait_exit};

use crate::{failure::AgentError, node::Node, tenant, upgrades};

/// How long it may take.
const WITHIN: Duration = Duration::from_secs(8);
/// The keeper's key of the attempt; no tenant has it.
const KEY: &str = "launcher-proof";

/// Starts `tarbox-mount --version` as a mounter would be started; returns what was found.
///
/// # Errors
/// Where it cannot be started, or does not end well.
pub(crate) async fn prove(node: &Arc<Node>) -> Result<String, AgentError> {
    let build = upgrades::wanted(node).await?;
    let executable = node.builds.executable(&build)?;
    let spec = SpawnSpec {
        executable: 0,
        argv: vec![b"tarbox-mount".to_vec(), b"--version".to_vec()],
        env: tenant::environment(None).into_iter().map(String::into_bytes).collect(),
        new_session: true,
        ..Default::default()
    };
    let spawned = node
        .keeper
        .ask("prove the launcher", move |client| client.spawn(KEY, "proof", &spec, &[executable.as_fd()]))
        .await?;
    // Beside the connection: others want something of the keeper meanwhile.
    let (id, pidfd) = (spawned.id, spawned.pidfd);
    tenant::blocking(move || {
        match wait_exit(&pidfd, WITHIN) {
            Ok(true) => Ok(()),
            Ok(false) => Err(HandoverError::TimedOut(WITHIN)),
            Err(error) => Err(error),
        }
        .map_err(AgentError::handover("wait for the end of what was started"))
    })
    .await?;
    let exited = node.keeper.ask("ask how it ended", move |client| client.wait(id, WITHIN)).await?;
    match exited.code {
        Some(0) => Ok(format!("the keeper starts {} from its descriptor", node.settings.mounter.display())),
        code => Err(AgentError::Unusable(format!(
            "the keeper started {} and it ended with code {code:?}, signal {:?}",
            node.settings.mounter.display(),
            exited.signal
        ))),
    }
}
