//! CSI Controller: convert the request, take the volume's turn, have it done, reply.

mod answer;
mod request;
mod service;

pub(crate) use service::ControllerService;
