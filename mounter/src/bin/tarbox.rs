//! `tarbox`: tenants, from the command line.

use std::process::ExitCode;

use tarbox_mounter::cli::Cli;
use tarbox_runtime::program;

fn main() -> ExitCode {
    program::main("tarbox", Cli::run)
}
