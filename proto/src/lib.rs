//! Generated protobuf and gRPC types, compiled with protox.
#![allow(missing_docs, unreachable_pub, clippy::all, reason = "generated code")]

/// `tarbox.control.v1`: control of one mounter.
pub mod control {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("tarbox.control.v1");
    }
}

/// `tarbox.agent.v1`: what an operator asks the agent.
pub mod agent {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("tarbox.agent.v1");
    }
}

/// `csi.v1`: the Container Storage Interface.
pub mod csi {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("csi.v1");
    }
}
