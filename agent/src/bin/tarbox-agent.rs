//! `tarbox-agent`: serves CSI on this node, and supervises its mounters.

use std::process::ExitCode;

fn main() -> ExitCode {
    tarbox_agent::cli::main()
}
