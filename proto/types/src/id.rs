//! Identifiers. Numbers that index rows are plain aliases: they are counted, compared and stored, never mixed.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Inode number inside a tenant: 48 significant bits, never used again.
pub type Ino = u64;
/// Data id: names the content of one file, so that unlink and truncation to zero take constant time.
pub type DataId = u64;
/// Position of a name in its directory; stable as long as the name exists.
pub type Cookie = u64;
/// Serial number of a stored block inside its family.
pub type BlockId = u64;
/// Index of a block inside a file: offset / block size.
pub type BlockIndex = u64;
/// Sequence number of a journal record, counted from 1 per tenant; 0 = nothing yet.
pub type Seq = u64;
/// A family: a tenant and its clones, inside which blocks are shared.
pub type FamilyId = i64;
/// A branch: a line of layers.
pub type BranchId = i64;
/// A layer: the unit of history inside a branch, counted from 1.
pub type Layer = i64;
/// A lease's epoch, counted from 1; grows with each take-over.
pub type Epoch = i64;

/// The root directory.
pub const ROOT_INO: Ino = 1;
/// The first number given to an inode that is not the root.
pub const FIRST_INO: Ino = 16;

/// A tenant: one isolated file system; its UUID is the CSI volume id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TenantId(pub Uuid);

impl TenantId {
    /// A new random id.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TenantId({})", self.0)
    }
}

impl FromStr for TenantId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// A node session: one life of one process that holds leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(pub Uuid);

/// BLAKE3 hash of a block's uncompressed bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockHash(pub [u8; 32]);

impl fmt::Debug for BlockHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..6].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
