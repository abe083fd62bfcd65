//! `tarbox`.
fn main() {}
