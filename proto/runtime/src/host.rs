//! The machine.

/// Its name, as `uname -n` prints it; in a cluster, the pod's.
#[must_use]
pub fn host_name() -> String {
    nix::unistd::gethostname().map_or_else(|_| "localhost".into(), |name| name.to_string_lossy().into_owned())
}
