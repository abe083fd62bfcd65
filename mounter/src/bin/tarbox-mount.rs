//! `tarbox-mount`.
fn main() {}
