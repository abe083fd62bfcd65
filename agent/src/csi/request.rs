//! What a Node request asks for, once it is known to be complete and sensible. Pure.

use std::{collections::HashMap, path::PathBuf};

use tarbox_handover::pods::Pod;
use tarbox_proto::csi::v1 as csi;
use tarbox_rpc::csi::{
    RequestError,
    attachment::Attachment,
    capability::{self, MountWish},
    inline::{self, Inline},
    native::{self, NativeMount},
    parameters::{self, Parameters},
    request::{VolumeRef, capacity, mounted_at, path, required, volume},
};
use tarbox_types::{AccessMode, TenantId};

/// NodeStageVolume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// The volume.
    pub tenant: TenantId,
    /// The node that it may be mounted on, where somebody attaches volumes.
    pub attached_to: Option<String>,
    /// Where it is mounted.
    pub staging_path: PathBuf,
    /// How.
    pub wish: MountWish,
    /// What the mounter is told.
    pub parameters: Parameters,
    /// What of that has been changed since the volume was made, by a VolumeAttributesClass: the database says.
    pub changed: Parameters,
    /// Directories of the host that are shown in it.
    pub native: Vec<NativeMount>,
    /// The id of a volume that a pod asked for itself: it goes with its publication.
    pub inline: Option<String>,
}

/// NodePublishVolume, of a volume that is staged or of one that is made for the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Publishing {
    /// It is staged.
    Staged(Publish),
    /// It is made, if it is not.
    Inline(PublishInline),
}

/// NodePublishVolume of a volume that a pod asks for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishInline {
    /// The kubelet's id for it.
    pub id: String,
    /// Where it is to be seen.
    pub target_path: PathBuf,
    /// How.
    pub wish: MountWish,
    /// What the pod asks for.
    pub asked: Inline,
}

/// NodePublishVolume of a staged volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// The volume.
    pub tenant: TenantId,
    /// The node that it may be mounted on, where somebody attaches volumes.
    pub attached_to: Option<String>,
    /// Where it is staged.
    pub staging_path: PathBuf,
    /// Where it is to be seen.
    pub target_path: PathBuf,
    /// Nowhere else at the same time.
    pub alone: bool,
    /// How.
    pub wish: MountWish,
    /// For whom, where the kubelet says it.
    pub pod: Option<Pod>,
}

/// NodeUnstageVolume and NodeUnpublishVolume: a volume, and a path that it has to leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leave {
    /// The volume; `None` where no volume of ours can have this id, so that nothing of it can be there.
    pub volume: Option<VolumeRef>,
    /// The path.
    pub path: PathBuf,
}

/// NodeGetVolumeStats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// The volume.
    pub volume: VolumeRef,
    /// One of the places where it is seen.
    pub volume_path: PathBuf,
}

/// NodeExpandVolume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expand {
    /// The volume.
    pub tenant: TenantId,
    /// One of the places where it is seen.
    pub volume_path: PathBuf,
    /// The new limit of allocated bytes; `None` = as the database has it.
    pub bytes: Option<u64>,
    /// From the request's secrets.
    pub database_url: Option<String>,
}

/// How a volume is to be mounted, and the node that it may be mounted on. A node among many that only reads needs no lease.
fn wish(
    capability: Option<&csi::VolumeCapability>,
    read_only: bool,
    context: &HashMap<String, String>,
) -> Result<(MountWish, Option<String>), RequestError> {
    let attachment = Attachment::read(context)?;
    let only_reads = attachment.as_ref().is_some_and(|attachment| attachment.read_only);
    let mut wish = capability::read(capability, read_only || only_reads)?;
    let is_one_of_many =
        capability.and_then(|one| capability::mode(one).ok()).is_some_and(AccessMode::is_for_many_nodes);
    wish.many_readers |= only_reads && is_one_of_many;
    Ok((wish, attachment.map(|attachment| attachment.node)))
}

impl TryFrom<&csi::NodeStageVolumeRequest> for Stage {
    type Error = RequestError;

    fn try_from(request: &csi::NodeStageVolumeRequest) -> Result<Self, RequestError> {
        required("volume_id", &request.volume_id)?;
        let staging_path = path("staging_target_path", &request.staging_target_path)?;
        let (wish, attached_to) = wish(request.volume_capability.as_ref(), false, &request.publish_context)?;
        let parameters = parameters::read(&request.volume_context, &request.secrets)?;
        let tenant = volume(&request.volume_id)?;
        let native = native::read(&request.volume_context, tenant)?;
        let changed = Parameters::default();
        Ok(Self { tenant, attached_to, staging_path, wish, parameters, changed, native, inline: None })
    }
}

impl TryFrom<&csi::NodePublishVolumeRequest> for Publishing {
    type Error = RequestError;

    fn try_from(request: &csi::NodePublishVolumeRequest) -> Result<Self, RequestError> {
        required("volume_id", &request.volume_id)?;
        let target_path = path("target_path", &request.target_path)?;
        let (wish, attached_to) =
            wish(request.volume_capability.as_ref(), request.readonly, &request.publish_context)?;
        if inline::is_inline(&request.volume_context) {
            let Some(VolumeRef::Inline(id)) = VolumeRef::read(&request.volume_id) else {
                let allowed = "csi- and 64 hexadecimal digits, as the kubelet makes them for volumes of pods";
                return Err(RequestError::value("volume_id", &request.volume_id, allowed));
            };
            let asked = inline::read(&request.volume_context, &request.secrets)?;
            return Ok(Self::Inline(PublishInline { id, target_path, wish, asked }));
        }
        parameters::read(&request.volume_context, &request.secrets)?;
        if request.staging_target_path.is_empty() {
            return Err(RequestError::NotStaged);
        }
        let staging_path = path("staging_target_path", &request.staging_target_path)?;
        let alone = capability::is_for_one_target(request.volume_capability.as_ref());
        let tenant = volume(&request.volume_id)?;
        let pod = pod(|key| request.volume_context.get(key));
        Ok(Self::Staged(Publish { tenant, attached_to, staging_path, target_path, alone, wish, pod }))
    }
}

/// The pod that the kubelet tells of (`podInfoOnMount`), by its keys.
pub(crate) fn pod<'a>(said: impl Fn(&str) -> Option<&'a String>) -> Option<Pod> {
    let word = |key: &str| said(&format!("csi.storage.k8s.io/pod.{key}"));
    Pod::new(word("uid")?, word("namespace")?, word("name")?)
}

fn leave(id: &str, field: &'static str, text: &str) -> Result<Leave, RequestError> {
    required("volume_id", id)?;
    Ok(Leave { volume: VolumeRef::read(id), path: path(field, text)? })
}

impl TryFrom<&csi::NodeUnstageVolumeRequest> for Leave {
    type Error = RequestError;

    fn try_from(request: &csi::NodeUnstageVolumeRequest) -> Result<Self, RequestError> {
        leave(&request.volume_id, "staging_target_path", &request.staging_target_path)
    }
}

impl TryFrom<&csi::NodeUnpublishVolumeRequest> for Leave {
    type Error = RequestError;

    fn try_from(request: &csi::NodeUnpublishVolumeRequest) -> Result<Self, RequestError> {
        leave(&request.volume_id, "target_path", &request.target_path)
    }
}

impl TryFrom<&csi::NodeGetVolumeStatsRequest> for Stats {
    type Error = RequestError;

    fn try_from(request: &csi::NodeGetVolumeStatsRequest) -> Result<Self, RequestError> {
        required("volume_id", &request.volume_id)?;
        let volume_path = mounted_at("volume_path", &request.volume_path)?;
        let id = &request.volume_id;
        let volume = VolumeRef::read(id).ok_or_else(|| RequestError::NoVolume(id.clone()))?;
        Ok(Self { volume, volume_path })
    }
}

impl TryFrom<&csi::NodeExpandVolumeRequest> for Expand {
    type Error = RequestError;

    fn try_from(request: &csi::NodeExpandVolumeRequest) -> Result<Self, RequestError> {
        required("volume_id", &request.volume_id)?;
        let volume_path = mounted_at("volume_path", &request.volume_path)?;
        if let Some(capability) = &request.volume_capability {
            capability::read(Some(capability), false)?;
        }
        let bytes = capacity(request.capacity_range.as_ref())?.wanted();
        let database_url = parameters::secret_url(&request.secrets)?;
        Ok(Self { tenant: volume(&request.volume_id)?, volume_path, bytes, database_url })
    }
}

#[cfg(test)]
mod tests;
