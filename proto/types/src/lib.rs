//! The domain's words: identifiers, quantities, error kinds. Pure: no I/O, no clock.

pub mod access;
pub mod audit;
pub mod database_url;
pub mod error;
pub mod format;
pub mod fuse;
pub mod id;
pub mod kernel;
pub mod latency;
pub mod moment;
pub mod outage;
pub mod quantity;

pub use access::AccessMode;
pub use audit::AuditLevel;
pub use error::{Chain, ErrorKind};
pub use format::Format;
pub use id::*;
pub use kernel::{Connection, KernelCache, Unanswered};
pub use moment::{moment, rfc3339};
pub use outage::OutagePolicy;
pub use quantity::{ByteSize, HumanDuration, QuantityError};
