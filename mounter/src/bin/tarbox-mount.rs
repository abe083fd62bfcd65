//! `tarbox-mount`: mounts a tenant.

use std::process::ExitCode;

use tarbox_mounter::mount_command::MountCommand;
use tarbox_runtime::program;

fn main() -> ExitCode {
    program::main("tarbox-mount", MountCommand::run)
}
