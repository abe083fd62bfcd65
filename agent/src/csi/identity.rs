//! CSI Identity: who this driver is, what it can do, whether it works.

use std::{fs::File, path::Path, sync::Arc};

use tarbox_proto::csi::v1::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
    PluginCapability, ProbeRequest, ProbeResponse,
    identity_server::Identity,
    plugin_capability::{Service, Type, VolumeExpansion, service, volume_expansion},
};
use tarbox_types::ErrorKind;
use tonic::{Request, Response, Status};

use super::DRIVER_NAME;
use crate::node::Node;

/// See the module.
#[derive(Debug)]
pub struct IdentityService {
    node: Arc<Node>,
}

impl IdentityService {
    /// Answers for a node.
    #[must_use]
    pub fn new(node: Arc<Node>) -> Self {
        Self { node }
    }
}

fn capabilities() -> Vec<PluginCapability> {
    let service = |kind: service::Type| Type::Service(Service { r#type: kind.into() });
    let expansion = VolumeExpansion { r#type: volume_expansion::Type::Online.into() };
    [
        service(service::Type::ControllerService),
        service(service::Type::VolumeAccessibilityConstraints),
        Type::VolumeExpansion(expansion),
    ]
    .into_iter()
    .map(|kind| PluginCapability { r#type: Some(kind) })
    .collect()
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: DRIVER_NAME.to_owned(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: Default::default(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        Ok(Response::new(GetPluginCapabilitiesResponse { capabilities: capabilities() }))
    }

    /// Not ready before the database has been reached once; an outage later would not be mended by a restart.
    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        let device = Path::new("/dev/fuse");
        if let Err(error) = File::options().read(true).write(true).open(device) {
            let message = format!("{} cannot be opened: {error} (modprobe fuse?)", device.display());
            return Err(tarbox_rpc::status(ErrorKind::FailedPrecondition, message));
        }
        Ok(Response::new(ProbeResponse { ready: Some(self.node.is_ready()) }))
    }
}
