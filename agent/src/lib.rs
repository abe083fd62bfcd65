//! The node's agent: CSI Identity and Node, the mounts, and the supervision of one mounter per staged tenant.
