//! CSI Identity and Node: convert the request, take the volume's turn, decide, have it done, reply.

pub mod capability;
mod convert;
pub mod identity;
pub mod native;
pub mod node;
pub mod parameters;
pub mod request;

/// The driver's name, as CSIDriver and StorageClass spell it.
pub const DRIVER_NAME: &str = "tarbox.csi.io";
