//! Where the programs under test are.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use crate::command;

/// The workspace's root.
#[must_use]
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests' crate lies in the workspace")
}

/// The directory with `tarbox-mount` and `tarbox`: `TESTS_BIN_DIR`, else this workspace's, built here first.
///
/// # Panics
/// If they cannot be built.
pub fn bin_dir() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| match std::env::var_os("TESTS_BIN_DIR") {
        Some(dir) => dir.into(),
        None => build(),
    })
}

/// One of the product's programs.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    bin_dir().join(name)
}

// `CARGO_BIN_EXE_…` is set only inside the crate that owns the program. Cargo has let go of its lock when tests run,
// and has nothing to do here after `cargo build --workspace`.
fn build() -> PathBuf {
    let profile = std::env::var("TESTS_PROFILE").unwrap_or_else(|_| "dev".into());
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--bins", "--profile", &profile]);
    for package in ["tarbox-mounter", "tarbox-agent", "tarbox-keeper", "tarbox-controller"] {
        cargo.args(["-p", package]);
    }
    command::succeed(cargo.current_dir(workspace()), Duration::from_secs(1800)).expect("build the programs");
    target.join(if profile == "dev" { "debug" } else { &profile })
}

/// Where `deps.sh` puts the external suites' programs.
#[must_use]
pub fn tool(name: &str) -> PathBuf {
    let home = std::env::var("HOME").unwrap_or_else(|_| "/root".into());
    let tools = std::env::var("TESTS_TOOLS").unwrap_or_else(|_| format!("{home}/.cache/tarbox/tools"));
    let path = Path::new(&tools).join("bin").join(name);
    assert!(path.exists(), "{} is missing: run `make deps-test`", path.display());
    path
}
