//! `tarbox-agent`: serves CSI on this node.

fn main() {}
