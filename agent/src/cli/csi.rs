//! Calls the agent as the kubelet does.

use std::{collections::HashMap, path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueEnum};
use tarbox_proto::csi::v1::{
    CapacityRange, GetPluginInfoRequest, NodeExpandVolumeRequest, NodeGetInfoRequest,
    NodeGetVolumeStatsRequest, NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest, ProbeRequest, VolumeCapability,
    identity_client::IdentityClient,
    node_client::NodeClient,
    volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode},
};
use tonic::{Request, Response, Status};

use crate::failure::AgentError;

/// See the module.
#[derive(Debug, Args)]
pub(super) struct CsiCommand {
    /// The agent's CSI socket
    #[arg(long, value_name = "PATH")]
    endpoint: PathBuf,
    /// The caller's patience, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "60")]
    timeout: f64,
    #[command(subcommand)]
    call: Call,
}

#[derive(Debug, Subcommand)]
enum Call {
    Info,
    Probe,
    Stage(Volume),
    Unstage(Volume),
    Publish(Volume),
    Unpublish(Volume),
    Stats(Volume),
    Expand(Volume),
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Access {
    Writer,
    SingleWriter,
    Reader,
    ManyReaders,
    ManyWriters,
}

#[derive(Debug, Args)]
struct Volume {
    #[arg(long, default_value = "")]
    volume_id: String,
    #[arg(long, default_value = "")]
    staging: String,
    #[arg(long, default_value = "")]
    target: String,
    #[arg(long, value_enum, default_value = "writer")]
    access: Access,
    #[arg(long)]
    block: bool,
    #[arg(long)]
    readonly: bool,
    #[arg(long, default_value = "")]
    group: String,
    #[arg(long = "flag", value_name = "OPTION")]
    flags: Vec<String>,
    #[arg(long = "context", value_name = "KEY=VALUE", value_parser = pair)]
    context: Vec<(String, String)>,
    #[arg(long = "publish-context", value_name = "KEY=VALUE", value_parser = pair)]
    publish_context: Vec<(String, String)>,
    #[arg(long = "secret", value_name = "KEY=VALUE", value_parser = pair)]
    secrets: Vec<(String, String)>,
    #[arg(long, default_value = "0")]
    bytes: i64,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

impl Volume {
    fn capability(&self) -> Option<VolumeCapability> {
        let mode = match self.access {
            Access::Writer => Mode::SingleNodeWriter,
            Access::SingleWriter => Mode::SingleNodeSingleWriter,
            Access::Reader => Mode::SingleNodeReaderOnly,
            Access::ManyReaders => Mode::MultiNodeReaderOnly,
            Access::ManyWriters => Mode::MultiNodeMultiWriter,
        };
        let mount = MountVolume {
            mount_flags: self.flags.clone(),
            volume_mount_group: self.group.clone(),
            ..Default::default()
        };
        Some(VolumeCapability {
            access_mode: Some(AccessMode { mode: mode.into() }),
            access_type: Some(if self.block {
                AccessType::Block(BlockVolume {})
            } else {
                AccessType::Mount(mount)
            }),
        })
    }

    fn context(&self) -> HashMap<String, String> {
        self.context.iter().cloned().collect()
    }

    fn publish_context(&self) -> HashMap<String, String> {
        self.publish_context.iter().cloned().collect()
    }

    fn secrets(&self) -> HashMap<String, String> {
        self.secrets.iter().cloned().collect()
    }

    fn path(&self) -> String {
        if self.target.is_empty() { self.staging.clone() } else { self.target.clone() }
    }
}

/// Prints the answer; what was refused goes to standard error as `CODE: message`.
pub(super) async fn run(command: CsiCommand) -> Result<bool, AgentError> {
    let limit = Duration::from_secs_f64(command.timeout.max(0.0));
    let channel = tarbox_rpc::connect(&command.endpoint, limit)
        .await
        .map_err(AgentError::io("connect to", &command.endpoint))?;
    let (mut identity, mut node) = (IdentityClient::new(channel.clone()), NodeClient::new(channel));
    let text = match command.call {
        Call::Info => {
            let (plugin, info) = (
                identity.get_plugin_info(GetPluginInfoRequest {}).await,
                node.node_get_info(with(NodeGetInfoRequest {}, limit)).await,
            );
            plugin
                .map(Response::into_inner)
                .and_then(|plugin| Ok(format!("{plugin:#?}\n{:#?}", info?.into_inner())))
        }
        Call::Probe => said(identity.probe(with(ProbeRequest {}, limit)).await),
        Call::Stage(volume) => said(node.node_stage_volume(with(stage(&volume), limit)).await),
        Call::Unstage(volume) => {
            let request = NodeUnstageVolumeRequest {
                volume_id: volume.volume_id.clone(),
                staging_target_path: volume.staging.clone(),
            };
            said(node.node_unstage_volume(with(request, limit)).await)
        }
        Call::Publish(volume) => said(node.node_publish_volume(with(publish(&volume), limit)).await),
        Call::Unpublish(volume) => {
            let request = NodeUnpublishVolumeRequest {
                volume_id: volume.volume_id.clone(),
                target_path: volume.target.clone(),
            };
            said(node.node_unpublish_volume(with(request, limit)).await)
        }
        Call::Stats(volume) => {
            let request = NodeGetVolumeStatsRequest {
                volume_id: volume.volume_id.clone(),
                volume_path: volume.path(),
                staging_target_path: volume.staging.clone(),
            };
            said(node.node_get_volume_stats(with(request, limit)).await)
        }
        Call::Expand(volume) => said(node.node_expand_volume(with(expand(&volume), limit)).await),
    };
    match text {
        Ok(text) => println!("{text}"),
        Err(status) => {
            eprintln!("{:?}: {}", status.code(), status.message());
            return Ok(false);
        }
    }
    Ok(true)
}

fn with<T>(message: T, limit: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}

fn said<T: std::fmt::Debug>(answer: Result<Response<T>, Status>) -> Result<String, Status> {
    answer.map(|answer| format!("{:#?}", answer.into_inner()))
}

fn stage(volume: &Volume) -> NodeStageVolumeRequest {
    NodeStageVolumeRequest {
        volume_id: volume.volume_id.clone(),
        staging_target_path: volume.staging.clone(),
        volume_capability: volume.capability(),
        publish_context: volume.publish_context(),
        volume_context: volume.context(),
        secrets: volume.secrets(),
    }
}

fn publish(volume: &Volume) -> NodePublishVolumeRequest {
    NodePublishVolumeRequest {
        volume_id: volume.volume_id.clone(),
        staging_target_path: volume.staging.clone(),
        target_path: volume.target.clone(),
        volume_capability: volume.capability(),
        readonly: volume.readonly,
        publish_context: volume.publish_context(),
        volume_context: volume.context(),
        secrets: volume.secrets(),
    }
}

fn expand(volume: &Volume) -> NodeExpandVolumeRequest {
    NodeExpandVolumeRequest {
        volume_id: volume.volume_id.clone(),
        volume_path: volume.path(),
        staging_target_path: volume.staging.clone(),
        capacity_range: Some(CapacityRange { required_bytes: volume.bytes, limit_bytes: 0 }),
        secrets: volume.secrets(),
        ..Default::default()
    }
}
