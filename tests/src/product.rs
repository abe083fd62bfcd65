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

fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

// `CARGO_BIN_EXE_…` is set only inside the crate that owns the program. Cargo has let go of its lock when tests run,
// and has nothing to do here after `cargo build --workspace`.
fn build() -> PathBuf {
    let profile = std::env::var("TESTS_PROFILE").unwrap_or_else(|_| "dev".into());
    succeed(cargo_build().args(["--bins", "--profile", &profile]));
    target().join(if profile == "dev" { "debug" } else { &profile })
}

/// A release of the product, as far as the numbers of its formats go: see `tarbox_types::Format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Release {
    /// The one under test.
    #[default]
    This,
    /// The one that comes next, if it raises every number.
    Next,
    /// The one after it, which is the first to write the new numbers.
    AfterNext,
}

impl Release {
    /// One of its programs; they are built first where that has not been done.
    ///
    /// # Panics
    /// If they cannot be built.
    #[must_use]
    pub fn program(self, name: &str) -> PathBuf {
        static NEXT: OnceLock<PathBuf> = OnceLock::new();
        static AFTER_NEXT: OnceLock<PathBuf> = OnceLock::new();
        let dir = match self {
            Self::This => bin_dir(),
            Self::Next => NEXT.get_or_init(|| build_other("next-release")),
            Self::AfterNext => AFTER_NEXT.get_or_init(|| build_other("release-after-next")),
        };
        dir.join(name)
    }

    /// The number of the format that it writes: all have the same one.
    #[must_use]
    pub fn written(self) -> u32 {
        if self == Self::AfterNext { 2 } else { 1 }
    }
}

/// Builds another release beside this one. What it is built from lies with what this one is built from, so that only our own crates
/// are compiled again; without optimisation, as they are not what is measured.
fn build_other(feature: &str) -> PathBuf {
    let at = target().join("releases").join(feature);
    let mut cargo = cargo_build();
    cargo.env("CARGO_BUILD_BUILD_DIR", target()).env("CARGO_INCREMENTAL", "0");
    cargo.env("CARGO_PROFILE_DEV_OPT_LEVEL", "0").env("CARGO_PROFILE_DEV_DEBUG", "0");
    for program in ["tarbox-mount", "tarbox-agent", "tarbox-keeper"] {
        cargo.args(["--bin", program]);
    }
    succeed(cargo.arg("--features").arg(format!("tarbox-types/{feature}")).arg("--target-dir").arg(&at));
    at.join("debug")
}

fn cargo_build() -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet"]).current_dir(workspace());
    for package in ["tarbox-mounter", "tarbox-agent", "tarbox-keeper", "tarbox-controller"] {
        cargo.args(["-p", package]);
    }
    cargo
}

fn succeed(cargo: &mut Command) {
    command::succeed(cargo, Duration::from_secs(1800)).expect("build the programs");
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
