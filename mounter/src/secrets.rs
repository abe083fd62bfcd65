//! What must stand on no command line, as it is handed over: a sealed memory file.

use std::os::fd::OwnedFd;

use tarbox_handover::sealed;

use crate::failure::Failure;

/// A memory file with the database's URL, its password included.
///
/// # Errors
/// Where no memory can be had.
pub fn seal(database_url: &str) -> Result<OwnedFd, Failure> {
    let text = tarbox_runtime::config::secrets(database_url);
    sealed("tarbox-secrets", text.as_bytes()).map_err(|error| Failure::Part {
        kind: error.kind(),
        doing: "put the database's URL into a sealed memory file".to_owned(),
        source: error.into(),
    })
}
