//! Whole-system tests: what they share.
//!
//! A test asks for a [`volume::Volume`]: a tenant on SQLite or on a PostgreSQL server of its own, mounted by the real
//! `tarbox-mount` over `/dev/fuse`. Every guard removes what it made, in `Drop`, and kills only what it started, by pid.
//! With `TESTS_CONTROL=1` volumes are plain directories: it proves that a test accepts a file system that is right.

pub mod bench;
pub mod boot;
pub mod chaos;
pub mod churn;
pub mod cluster;
pub mod collector;
pub mod command;
pub mod control;
pub mod controller;
pub mod deadline;
pub mod differ;
pub mod http;
pub mod load;
pub mod mount;
pub mod node;
pub mod plot;
pub mod postgres;
pub mod process;
pub mod product;
pub mod relay;
pub mod rng;
pub mod scratch;
pub mod sources;
pub mod stamper;
pub mod suites;
pub mod supervised;
pub mod tree;
pub mod volume;

/// Writes one test per database: `mod name { fn sqlite, fn postgres }`, each calling the function with a fresh [`volume::Volume`] builder.
#[macro_export]
macro_rules! on_each_database {
    ($($(#[$meta:meta])* fn $name:ident($on:ident) $body:block)*) => {$(
        mod $name {
            #[allow(unused_imports)]
            use super::*;
            fn check($on: $crate::volume::Database) $body
            #[test]
            $(#[$meta])*
            fn sqlite() { check($crate::volume::Database::Sqlite) }
            #[test]
            $(#[$meta])*
            fn postgres() { check($crate::volume::Database::Postgres) }
        }
    )*};
}
