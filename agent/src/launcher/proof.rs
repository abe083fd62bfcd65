//! Whether the launcher does what it is for: a mounter's executable, started through the keeper, that ends well.

use std::{os::fd::AsFd, sync::Arc, time::Duration};

use tarbox_handover::SpawnSpec;

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
        env: tenant::environment().into_iter().map(String::into_bytes).collect(),
        new_session: true,
        ..Default::default()
    };
    let exited = node
        .keeper
        .ask("prove the launcher", move |client| {
            let spawned = client.spawn(KEY, "proof", &spec, &[executable.as_fd()])?;
            client.wait(spawned.id, WITHIN)
        })
        .await?;
    match exited.code {
        Some(0) => Ok(format!("the keeper starts {} from its descriptor", node.settings.mounter.display())),
        code => Err(AgentError::Unusable(format!(
            "the keeper started {} and it ended with code {code:?}, signal {:?}",
            node.settings.mounter.display(),
            exited.signal
        ))),
    }
}
