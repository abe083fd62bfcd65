//! `tarbox-controller`: makes, copies and removes volumes for a cluster.

use std::process::ExitCode;

fn main() -> ExitCode {
    tarbox_controller::cli::main()
}
