//! The conformance suite over this engine.

mod conformance;
