//! CSI Identity: who this driver is, what it can do, whether it works.

use std::sync::Arc;

use tarbox_proto::csi::v1::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
    PluginCapability, ProbeRequest, ProbeResponse,
    identity_server::Identity,
    plugin_capability::{Service, Type, VolumeExpansion, service, volume_expansion},
};
use tonic::{Request, Response, Status};

use super::DRIVER_NAME;

/// How the program that is asked does.
pub trait Readiness: Send + Sync + 'static {
    /// Whether it can do its work; `Err` where it never will as things stand.
    ///
    /// # Errors
    /// What is wrong, and what helps.
    fn is_ready(&self) -> Result<bool, Status>;
}

/// See the module.
#[derive(Debug)]
pub struct IdentityService<R> {
    program: Arc<R>,
}

impl<R: Readiness> IdentityService<R> {
    /// Answers for a program.
    #[must_use]
    pub fn new(program: Arc<R>) -> Self {
        Self { program }
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
impl<R: Readiness> Identity for IdentityService<R> {
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
        Ok(Response::new(ProbeResponse { ready: Some(self.program.is_ready()?) }))
    }
}
