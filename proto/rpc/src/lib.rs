//! gRPC over unix sockets and the one map from error kinds to gRPC codes.

pub mod deadline;
pub mod guard;
pub mod listener;
pub mod status;
pub mod unix;

pub use deadline::timeout;
pub use guard::{Turn, VolumeGuard};
pub use listener::PrivateListener;
pub use status::{Refusal, code, kind, status};
pub use unix::connect;
