//! The versioned file-system model in SQLite and PostgreSQL: the only crate that knows SQL.

pub mod api;
mod check;
pub mod codec;
#[cfg(any(test, feature = "conformance"))]
#[allow(clippy::unwrap_used, missing_docs, unreachable_pub)]
pub mod conformance;
pub mod error;
pub mod flatten;
pub mod logins;
pub mod model;
mod opened;
mod postgres;
mod proof;
mod publications;
pub mod records;
mod sqlite;
mod trace;

pub use api::*;
pub use error::{Result, StoreError};
pub use flatten::{Flattened, Flattening};
pub use logins::*;
pub use model::*;
pub use opened::Opened;
#[cfg(any(test, feature = "testing"))]
pub use postgres::testing;
pub use publications::{Publication, Publications};
pub use records::*;
