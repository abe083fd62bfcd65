//! CSI Node: convert the request, take the volume's turn, decide, have it done, reply.

mod convert;
pub mod node;
pub mod request;
