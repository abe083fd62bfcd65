//! `tarbox`: tenants, from the command line. Under the name `kubectl-tarbox` it is a plugin of kubectl.

use std::{env, path::Path, process::ExitCode};

use tarbox_mounter::cli::{
    Cli,
    kubectl::{PLUGIN, Plugin},
};
use tarbox_runtime::program;

fn main() -> ExitCode {
    if is_plugin() { program::main("kubectl tarbox", Plugin::run) } else { program::main("tarbox", Cli::run) }
}

/// By the name that it was started under.
fn is_plugin() -> bool {
    let name = env::args_os().next().unwrap_or_default();
    Path::new(&name).file_name().is_some_and(|name| name == PLUGIN)
}
