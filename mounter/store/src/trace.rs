//! What is asked of a database shows in the trace of what it is asked for.

use tracing::{Span, debug_span};

/// The span of a statement or a transaction. Below what is logged by default, so that it costs nothing where no traces are sent.
pub(crate) fn statement(system: &'static str, doing: &'static str) -> Span {
    debug_span!("statement", otel.name = doing, otel.kind = "client", db.system.name = system)
}
