//! Results for people, as a table, and for programs, as JSON.

use std::path::Path;

use serde::Serialize;
pub(super) use tarbox_runtime::output::{Format, Table};

use crate::failure::AgentError;

/// Prints `value` as JSON, or the table made of it.
///
/// # Errors
/// As write(2); a reader that went away is none.
pub(super) fn show<T: Serialize>(
    format: Format,
    value: &T,
    table: impl FnOnce(&T) -> Table,
) -> Result<(), AgentError> {
    format.print(value, table).map_err(AgentError::io("write to", Path::new("standard output")))
}
