//! Chaos: applications work on several tenants of a real node, while what serves them is killed, stopped, starved and replaced.
//!
//! `plan` decides from a seed what happens when (pure), `disturb` does it to a [`crate::node::Node`], `observe` says how long
//! applications waited for it (pure), `client` starts the loads, each a process of its own (`loads`), `run` holds it together,
//! `report` writes it down. The loads are processes because this one has to heal what it breaks: it may hold no file in a volume.

pub mod client;
mod disturb;
mod ending;
pub mod loads;
pub mod observe;
pub mod plan;
pub mod report;
pub mod run;
