//! What /proc tells of a process of the product.

use std::{fs, time::Duration};

use crate::deadline::wait_for;

const LIMIT: Duration = Duration::from_secs(60);

/// What a mounter was handed over that must stand on no command line; one that was just started is waited for.
///
/// # Panics
/// If it has nothing of that kind.
#[must_use]
pub fn secrets_of(pid: u32) -> String {
    let path = wait_for("secrets", LIMIT, || {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
        let is_secret = |path: &std::path::PathBuf| {
            fs::read_link(path).is_ok_and(|to| to.to_string_lossy().starts_with("/memfd:tarbox-secrets"))
        };
        open.map(|entry| entry.path()).find(is_secret)
    });
    fs::read_to_string(path.expect("secrets")).expect("read")
}
