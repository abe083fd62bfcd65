//! What is wrong with a request, and the fields that many requests have. Pure.

use std::{fmt::Display, path::PathBuf};

use tarbox_proto::csi::v1 as csi;
use tarbox_types::{ErrorKind, TenantId};

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
    /// An id that no snapshot of ours has.
    #[error("there is no snapshot `{0}`: snapshot ids are UUIDs")]
    NoSnapshot(String),
    /// A place where no volume can be mounted.
    #[error("nothing is mounted at `{0}`")]
    NoPlace(String),
    /// The volume has to be staged first.
    #[error("`staging_target_path` is missing: the volume has to be staged first")]
    NotStaged,
}

impl RequestError {
    /// A value that can never be right.
    pub fn value(field: impl Into<String>, value: impl Display, allowed: impl Into<String>) -> Self {
        Self::Value { field: field.into(), value: value.to_string(), allowed: allowed.into() }
    }

    /// The same of a field that stands in this one.
    pub(super) fn within(self, outer: &str) -> Self {
        match self {
            Self::Value { field, value, allowed } => {
                Self::Value { field: format!("{outer}.{field}"), value, allowed }
            }
            other => other,
        }
    }

    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Missing(_) | Self::Value { .. } | Self::UnknownKey { .. } => ErrorKind::InvalidArgument,
            Self::NoVolume(_) | Self::NoSnapshot(_) | Self::NoPlace(_) => ErrorKind::NotFound,
            Self::NotStaged => ErrorKind::FailedPrecondition,
        }
    }
}

/// A field that has to be there.
///
/// # Errors
/// [`RequestError::Missing`].
pub fn required(field: &'static str, text: &str) -> Result<(), RequestError> {
    if text.is_empty() { Err(RequestError::Missing(field)) } else { Ok(()) }
}

/// The volume of an id.
///
/// # Errors
/// Where it is missing, or none of ours can have it.
pub fn volume(id: &str) -> Result<TenantId, RequestError> {
    required("volume_id", id)?;
    id.parse().map_err(|_| RequestError::NoVolume(id.to_owned()))
}

/// A volume, as a node is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeRef {
    /// A tenant.
    Tenant(TenantId),
    /// What a pod asked for itself: the id that the kubelet made up for it. Which tenant that is the node knows.
    Inline(String),
}

impl VolumeRef {
    /// Reads an id; `None` where no volume of ours can have it. Source: the kubelet's `makeVolumeHandle` (csi-, and a SHA-256 in hexadecimal).
    #[must_use]
    pub fn read(id: &str) -> Option<Self> {
        let is_made_up = |id: &&str| {
            let digits = id.strip_prefix("csi-").filter(|digits| digits.len() == 64);
            digits.is_some_and(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
        };
        let tenant = id.parse().ok().map(Self::Tenant);
        tenant.or_else(|| Some(id).filter(is_made_up).map(|id| Self::Inline(id.to_owned())))
    }
}

impl std::fmt::Display for VolumeRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tenant(tenant) => tenant.fmt(f),
            Self::Inline(id) => f.write_str(id),
        }
    }
}

/// A path on the node.
///
/// # Errors
/// Where it is missing, relative, the root, or leads back.
pub fn path(field: &'static str, text: &str) -> Result<PathBuf, RequestError> {
    required(field, text)?;
    let path = PathBuf::from(text);
    let is_plain = path.is_absolute()
        && path.components().all(|part| !matches!(part, std::path::Component::ParentDir))
        && !text.contains('\0');
    if is_plain && path.parent().is_some() {
        return Ok(path.components().collect());
    }
    Err(RequestError::value(field, text, "an absolute path without `..`, other than `/`"))
}

/// A place where a volume is said to be mounted.
///
/// # Errors
/// Where it is missing; [`RequestError::NoPlace`] where it is no path that a volume is ever mounted at, as CSI asks for.
pub fn mounted_at(field: &'static str, text: &str) -> Result<PathBuf, RequestError> {
    required(field, text)?;
    path(field, text).map_err(|_| RequestError::NoPlace(text.to_owned()))
}

/// How many bytes a volume is to have; 0 = nothing is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Capacity {
    /// At least.
    pub required: u64,
    /// At most.
    pub limit: u64,
}

impl Capacity {
    /// What is required, else the most that is allowed.
    #[must_use]
    pub fn wanted(self) -> Option<u64> {
        [self.required, self.limit].into_iter().find(|bytes| *bytes > 0)
    }

    /// Whether so many bytes are enough and not too many.
    #[must_use]
    pub fn admits(self, bytes: u64) -> bool {
        bytes >= self.required && (self.limit == 0 || bytes <= self.limit)
    }
}

/// The bytes asked for.
///
/// # Errors
/// Where one is negative, or more is required than allowed.
pub fn capacity(range: Option<&csi::CapacityRange>) -> Result<Capacity, RequestError> {
    let Some(range) = range else { return Ok(Capacity::default()) };
    let bad = |value: i64, allowed: &str| RequestError::value("capacity_range", value, allowed);
    let bytes = |value: i64| u64::try_from(value).map_err(|_| bad(value, "a number of bytes, 0 or more"));
    let (required, limit) = (bytes(range.required_bytes)?, bytes(range.limit_bytes)?);
    if limit > 0 && required > limit {
        return Err(bad(range.required_bytes, "`required_bytes` no larger than `limit_bytes`"));
    }
    Ok(Capacity { required, limit })
}
