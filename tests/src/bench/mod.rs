//! The benchmark: the same work on ext4 and on Tarbox (and on what else is at hand) in one run, interleaved.
//!
//! `systems` says what is measured, `workloads` what it is measured with, `report` writes it down.

pub mod report;
pub mod systems;
pub mod workloads;
