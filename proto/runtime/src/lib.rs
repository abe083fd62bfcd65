//! How our processes start, are configured, log and stop.

pub mod backoff;
pub mod config;
pub mod directories;
pub mod finding;
pub mod output;
pub mod program;
mod readable;
pub mod shutdown;
pub mod stacks;
pub mod telemetry;

pub use backoff::Backoff;
pub use config::{ConfigError, Layers, Source};
pub use finding::Finding;
pub use readable::readable;
pub use shutdown::{Shutdown, Signal};
