//! gRPC over unix sockets, the one map from error kinds to gRPC codes, and what our CSI services have in common.

pub mod calls;
pub mod csi;
pub mod deadline;
pub mod guard;
pub mod listener;
pub mod server;
pub mod status;
pub mod trace;
pub mod unix;

pub use calls::Calls;
pub use deadline::{limit, timeout};
pub use guard::{Turn, VolumeGuard};
pub use listener::PrivateListener;
pub use server::{Served, listen, serve};
pub use status::{Refusal, code, kind, status};
pub use unix::{connect, connect_to};
