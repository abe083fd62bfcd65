//! What a Node request asks for, once it is known to be complete and sensible. Pure.

use std::path::PathBuf;

use tarbox_proto::csi::v1 as csi;
use tarbox_types::{ErrorKind, TenantId};

use super::{
    capability::{self, MountWish},
    native::{self, NativeMount},
    parameters::{self, Parameters},
};

/// What is wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// A required field is empty.
    #[error("`{0}` is missing")]
    Missing(&'static str),
    /// A value that can never be right.
    #[error("`{field}` = `{value}`: allowed is {allowed}")]
    Value {
        /// Which field.
        field: String,
        /// As given.
        value: String,
        /// What is allowed.
        allowed: String,
    },
    /// A key that there is not.
    #[error("`{field}`: unknown key `{key}`; allowed are {allowed}")]
    UnknownKey {
        /// Which map.
        field: &'static str,
        /// As given.
        key: String,
        /// All there are.
        allowed: String,
    },
    /// An id that no volume of ours has.
    #[error("there is no volume `{0}`: volume ids are UUIDs")]
    NoVolume(String),
    /// The volume has to be staged first.
    #[error("`staging_target_path` is missing: the volume has to be staged first")]
    NotStaged,
}

impl RequestError {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Missing(_) | Self::Value { .. } | Self::UnknownKey { .. } => ErrorKind::InvalidArgument,
            Self::NoVolume(_) => ErrorKind::NotFound,
            Self::NotStaged => ErrorKind::FailedPrecondition,
        }
    }
}

/// NodeStageVolume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// The volume.
    pub tenant: TenantId,
    /// Where it is mounted.
    pub staging_path: PathBuf,
    /// How.
    pub wish: MountWish,
    /// What the mounter is told.
    pub parameters: Parameters,
    /// Directories of the host that are shown in it.
    pub native: Vec<NativeMount>,
}

/// NodePublishVolume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// The volume.
    pub tenant: TenantId,
    /// Where it is staged.
    pub staging_path: PathBuf,
    /// Where it is to be seen.
    pub target_path: PathBuf,
    /// How.
    pub wish: MountWish,
}

/// NodeUnstageVolume and NodeUnpublishVolume: a volume, and a path that it has to leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leave {
    /// The volume; `None` where no volume of ours can have this id, so that nothing of it can be there.
    pub tenant: Option<TenantId>,
    /// The path.
    pub path: PathBuf,
}

/// NodeGetVolumeStats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// The volume.
    pub tenant: TenantId,
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

fn required(field: &'static str, text: &str) -> Result<(), RequestError> {
    if text.is_empty() { Err(RequestError::Missing(field)) } else { Ok(()) }
}

fn volume(id: &str) -> Result<TenantId, RequestError> {
    required("volume_id", id)?;
    id.parse().map_err(|_| RequestError::NoVolume(id.to_owned()))
}

fn path(field: &'static str, text: &str) -> Result<PathBuf, RequestError> {
    required(field, text)?;
    let path = PathBuf::from(text);
    let is_plain = path.is_absolute()
        && path.components().all(|part| !matches!(part, std::path::Component::ParentDir))
        && !text.contains('\0');
    if is_plain && path.parent().is_some() {
        return Ok(path.components().collect());
    }
    Err(RequestError::Value {
        field: field.to_owned(),
        value: text.to_owned(),
        allowed: "an absolute path without `..`, other than `/`".to_owned(),
    })
}

impl TryFrom<&csi::NodeStageVolumeRequest> for Stage {
    type Error = RequestError;

    fn try_from(request: &csi::NodeStageVolumeRequest) -> Result<Self, RequestError> {
        required("volume_id", &request.volume_id)?;
        let staging_path = path("staging_target_path", &request.staging_target_path)?;
        let wish = capability::read(request.volume_capability.as_ref(), false)?;
        let parameters = parameters::read(&request.volume_context, &request.secrets)?;
        let tenant = volume(&request.volume_id)?;
        let native = native::read(&request.volume_context, tenant)?;
        Ok(Self { tenant, staging_path, wish, parameters, native })
    }
}

impl TryFrom<&csi::NodePublishVolumeRequest> for Publish {
    type Error = RequestError;

    fn try_from(request: &csi::NodePublishVolumeRequest) -> Result<Self, RequestError> {
        required("volume_id", &request.volume_id)?;
        let target_path = path("target_path", &request.target_path)?;
        let wish = capability::read(request.volume_capability.as_ref(), request.readonly)?;
        parameters::read(&request.volume_context, &request.secrets)?;
        if request.staging_target_path.is_empty() {
            return Err(RequestError::NotStaged);
        }
        let staging_path = path("staging_target_path", &request.staging_target_path)?;
        Ok(Self { tenant: volume(&request.volume_id)?, staging_path, target_path, wish })
    }
}

fn leave(id: &str, field: &'static str, text: &str) -> Result<Leave, RequestError> {
    required("volume_id", id)?;
    Ok(Leave { tenant: id.parse().ok(), path: path(field, text)? })
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
        let volume_path = path("volume_path", &request.volume_path)?;
        Ok(Self { tenant: volume(&request.volume_id)?, volume_path })
    }
}

impl TryFrom<&csi::NodeExpandVolumeRequest> for Expand {
    type Error = RequestError;

    fn try_from(request: &csi::NodeExpandVolumeRequest) -> Result<Self, RequestError> {
        required("volume_id", &request.volume_id)?;
        let volume_path = path("volume_path", &request.volume_path)?;
        if let Some(capability) = &request.volume_capability {
            capability::read(Some(capability), false)?;
        }
        let bytes = request.capacity_range.as_ref().map(capacity).transpose()?.flatten();
        let database_url = parameters::secret_url(&request.secrets)?;
        Ok(Self { tenant: volume(&request.volume_id)?, volume_path, bytes, database_url })
    }
}

/// The bytes asked for: what is required, else the most that is allowed.
fn capacity(range: &csi::CapacityRange) -> Result<Option<u64>, RequestError> {
    let bad = |value: i64, allowed: &str| RequestError::Value {
        field: "capacity_range".to_owned(),
        value: value.to_string(),
        allowed: allowed.to_owned(),
    };
    let bytes = |value: i64| u64::try_from(value).map_err(|_| bad(value, "a number of bytes, 0 or more"));
    let (required, limit) = (bytes(range.required_bytes)?, bytes(range.limit_bytes)?);
    if limit > 0 && required > limit {
        return Err(bad(range.required_bytes, "`required_bytes` no larger than `limit_bytes`"));
    }
    Ok([required, limit].into_iter().find(|bytes| *bytes > 0))
}

#[cfg(test)]
mod tests;
