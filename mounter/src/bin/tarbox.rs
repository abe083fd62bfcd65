//! `tarbox`: tenants, from the command line.

use std::process::ExitCode;

use tarbox_mounter::{cli::Cli, program};

fn main() -> ExitCode {
    program::main("tarbox", Cli::run)
}
