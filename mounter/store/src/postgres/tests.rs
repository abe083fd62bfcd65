//! The conformance suite over this engine, and what only a server can show: clocks, outages, plans.

mod as_login;
mod conformance;
mod isolation;
mod measure;
mod server;
