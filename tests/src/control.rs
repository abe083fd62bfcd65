//! What is told to a running mounter over its control socket.

use std::{path::Path, time::Duration};

use anyhow::Result;
use tarbox_proto::control::v1::{SetCredentialsRequest, control_client::ControlClient};

/// How long it may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Gives the mounter that listens there another password.
///
/// # Errors
/// If it does not take it.
pub fn set_credentials(socket: &Path, url: &str) -> Result<()> {
    let request = SetCredentialsRequest { database_url: url.to_owned() };
    let told = async {
        let mut client = ControlClient::new(tarbox_rpc::connect(socket, LIMIT).await?);
        client.set_credentials(request).await.map_err(|status| anyhow::anyhow!("{}", status.message()))
    };
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(told)?;
    Ok(())
}
