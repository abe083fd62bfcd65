//! The conformance suite over this engine, and what only a server can show: clocks, outages, plans.

mod conformance;
mod measure;
mod server;
