//! Snapshots: sealed layers that are known by an id. Each takes constant time, however large the volume.

mod create;
mod delete;
mod list;

pub(crate) use create::{Create, create};
pub(crate) use delete::delete;
pub(crate) use list::{Wanted, find, page};
