//! CSI Node: convert, take the volume's turn, do, reply.

use std::{sync::Arc, time::Duration};

use tarbox_proto::csi::v1 as csi;
use tarbox_proto::csi::v1::{node_server, node_service_capability};
use tarbox_rpc::{VolumeGuard, csi::RequestError, trace};
use tonic::{Request, Response, Status};

use super::{
    convert::{limit, refuse, stats},
    request::{Expand, Leave, Publishing, Stage, Stats},
};
use crate::{failure::AgentError, node::Node, operations};

/// See the module.
#[derive(Debug)]
pub struct NodeService {
    node: Arc<Node>,
    turns: VolumeGuard,
}

impl NodeService {
    /// Serves a node.
    #[must_use]
    pub fn new(node: Arc<Node>) -> Self {
        Self { node, turns: VolumeGuard::default() }
    }

    /// Does the work in the volume's turn.
    async fn in_turn<T, W>(
        &self,
        volume_id: &str,
        work: impl FnOnce(Arc<Node>) -> W + Send + 'static,
    ) -> Result<T, Status>
    where
        T: Send + 'static,
        W: Future<Output = Result<T, AgentError>> + Send + 'static,
    {
        // What is no id of ours belongs to no tenant.
        volume_id.parse().map(trace::about).unwrap_or_default();
        let (node, id) = (self.node.clone(), volume_id.to_owned());
        let work = async move {
            work(node).await.map_err(|error| {
                tracing::warn!(volume_id = id, error = error.report(), "a call failed");
                refuse(&error)
            })
        };
        self.turns.run(volume_id, work).await
    }
}

/// Reads a request, with the time there is for it.
fn read<'r, Wire, Read>(request: &'r Request<Wire>) -> Result<(Read, Duration), Status>
where
    Read: TryFrom<&'r Wire, Error = RequestError>,
{
    let read = Read::try_from(request.get_ref()).map_err(|error| refuse(&error.into()))?;
    Ok((read, limit(request)))
}

fn capabilities() -> Vec<csi::NodeServiceCapability> {
    use node_service_capability::{Rpc, Type, rpc::Type as Can};
    [
        Can::StageUnstageVolume,
        Can::GetVolumeStats,
        Can::ExpandVolume,
        Can::VolumeCondition,
        Can::SingleNodeMultiWriter,
        Can::VolumeMountGroup,
    ]
    .into_iter()
    .map(|can| csi::NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: can.into() })) })
    .collect()
}

#[tonic::async_trait]
impl node_server::Node for NodeService {
    async fn node_stage_volume(
        &self,
        request: Request<csi::NodeStageVolumeRequest>,
    ) -> Result<Response<csi::NodeStageVolumeResponse>, Status> {
        let (stage, limit) = read::<_, Stage>(&request)?;
        let id = &request.get_ref().volume_id;
        self.in_turn(id, move |node| async move { operations::stage(&node, stage, limit).await }).await?;
        Ok(Response::new(csi::NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<csi::NodeUnstageVolumeRequest>,
    ) -> Result<Response<csi::NodeUnstageVolumeResponse>, Status> {
        let (leave, limit) = read::<_, Leave>(&request)?;
        let id = &request.get_ref().volume_id;
        self.in_turn(id, move |node| async move { operations::unstage(&node, leave, limit).await }).await?;
        Ok(Response::new(csi::NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> Result<Response<csi::NodePublishVolumeResponse>, Status> {
        let (publishing, limit) = read::<_, Publishing>(&request)?;
        let id = &request.get_ref().volume_id;
        let publish = move |node: Arc<Node>| async move {
            match publishing {
                Publishing::Staged(publish) => operations::publish(&node, publish, limit).await,
                Publishing::Inline(publish) => operations::publish_inline(&node, publish, limit).await,
            }
        };
        self.in_turn(id, publish).await?;
        Ok(Response::new(csi::NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<csi::NodeUnpublishVolumeResponse>, Status> {
        let (leave, limit) = read::<_, Leave>(&request)?;
        let id = &request.get_ref().volume_id;
        self.in_turn(id, move |node| async move { operations::unpublish(&node, leave, limit).await }).await?;
        Ok(Response::new(csi::NodeUnpublishVolumeResponse {}))
    }

    /// Takes no turn: it changes nothing, and is asked for while other calls wait.
    async fn node_get_volume_stats(
        &self,
        request: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<csi::NodeGetVolumeStatsResponse>, Status> {
        let (asked, limit) = read::<_, Stats>(&request)?;
        self.node.tenant_of(&asked.volume).map(trace::about).unwrap_or_default();
        let found = operations::stats(&self.node, asked, limit).await.map_err(|error| refuse(&error))?;
        Ok(Response::new(stats(found)))
    }

    async fn node_expand_volume(
        &self,
        request: Request<csi::NodeExpandVolumeRequest>,
    ) -> Result<Response<csi::NodeExpandVolumeResponse>, Status> {
        let (expand, limit) = read::<_, Expand>(&request)?;
        let id = &request.get_ref().volume_id;
        let bytes = self
            .in_turn(id, move |node| async move { operations::expand(&node, expand, limit).await })
            .await?;
        let capacity_bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        Ok(Response::new(csi::NodeExpandVolumeResponse { capacity_bytes }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<csi::NodeGetCapabilitiesResponse>, Status> {
        Ok(Response::new(csi::NodeGetCapabilitiesResponse { capabilities: capabilities() }))
    }

    async fn node_get_info(
        &self,
        _: Request<csi::NodeGetInfoRequest>,
    ) -> Result<Response<csi::NodeGetInfoResponse>, Status> {
        let settings = &self.node.settings;
        let segments = settings.topology.clone().into_iter().collect();
        Ok(Response::new(csi::NodeGetInfoResponse {
            node_id: settings.node_id.clone(),
            max_volumes_per_node: settings.max_volumes.into(),
            accessible_topology: Some(csi::Topology { segments }),
        }))
    }
}
