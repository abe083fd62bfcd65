//! What the CSI services of a node and of the controller have in common: who the driver is, and what requests may say.

pub mod attachment;
pub mod capability;
pub mod identity;
pub mod inline;
pub mod native;
pub mod parameters;
pub mod request;

pub use request::RequestError;

/// The driver's name, as CSIDriver and StorageClass spell it.
pub const DRIVER_NAME: &str = "tarbox.csi.io";
