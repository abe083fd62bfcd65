//! gRPC over unix sockets and the one map from error kinds to gRPC codes.

pub mod listener;
pub mod status;
pub mod unix;

pub use listener::PrivateListener;
pub use status::{Refusal, code, kind, status};
pub use unix::connect;
