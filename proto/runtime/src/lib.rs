//! How our processes start, are configured, log and stop.

pub mod backoff;
pub mod config;
pub mod directories;
pub mod finding;
mod host;
pub mod metric;
pub mod monitoring;
pub mod otlp;
pub mod output;
pub mod program;
mod reached;
mod readable;
pub mod shutdown;
pub mod stacks;
pub mod telemetry;
pub mod traces;

pub use backoff::Backoff;
pub use config::{ConfigError, Layers, Source};
pub use finding::{Finding, State};
pub use host::host_name;
pub use metric::Metric;
pub use monitoring::Monitored;
pub use prometheus;
pub use reached::Reached;
pub use readable::readable;
pub use shutdown::{Shutdown, Signal};
