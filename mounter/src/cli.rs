//! The command line of `tarbox`.

mod archive;
mod audit;
pub(crate) mod checkpoint;
mod clone;
pub mod context;
mod doctor;
mod fsck;
mod gc;
pub mod kubectl;
mod log;
mod manual;
pub mod output;
mod reach;
mod settle;
mod tenant;
mod umount;
mod usage;

use clap::{Args, Parser, Subcommand};

use crate::failure::Failure;
use context::Context;
use output::Format;

const EXAMPLES: &str = "\
Examples:
  tarbox tenant create notes --quota-bytes 2Gi
  tarbox tenant list -o json
  tarbox usage
  tarbox checkpoint create notes before-tool
  tarbox clone notes attempt
  tarbox audit notes --since 1h
  tarbox export notes | zstd > notes.tar.zst
  tarbox umount ~/notes
  tarbox doctor

Configuration: built-in defaults < TOML file < environment (TARBOX_…) < flags, with the same keys as tarbox-mount.

Exit codes: 0 done, 64 wrong usage, 78 wrong configuration, 1 anything else (of fsck: faults are left; of doctor:
something is not fine).";

/// Tenants of Tarbox: POSIX file systems kept in an SQL database. `tarbox-mount` mounts them.
#[derive(Debug, Parser)]
#[command(name = "tarbox", version, after_long_help = EXAMPLES, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
pub struct Global {
    /// Database: sqlite:///absolute/directory or postgresql://user@host/name [default: sqlite:// under the user's
    /// data directory]
    #[arg(long, value_name = "URL", global = true, help_heading = "Global options")]
    database_url: Option<String>,

    /// State directory that tarbox-mount was started with [default: as tarbox-mount's]
    #[arg(long, value_name = "DIR", global = true, help_heading = "Global options")]
    state_dir: Option<String>,

    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE", global = true, help_heading = "Global options")]
    config: Option<String>,

    /// How results are printed
    #[arg(
        short,
        long,
        value_name = "FORMAT",
        global = true,
        default_value = "table",
        help_heading = "Global options"
    )]
    output: Format,

    /// Messages: error, warn, info, debug, trace, or with targets: info,tarbox_fs=debug [default: warn]
    #[arg(long, value_name = "LEVEL", global = true, help_heading = "Global options")]
    log_level: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make, list, show, resize and delete tenants
    #[command(subcommand)]
    Tenant(tenant::TenantCommand),
    /// Make, list, compare, restore and delete checkpoints: moments of a tenant that are kept
    #[command(subcommand)]
    Checkpoint(checkpoint::CheckpointCommand),
    /// Make a tenant that begins as another one is, or was
    Clone(clone::CloneCommand),
    /// Show the checkpoints that a tenant has come from
    Log(log::LogCommand),
    /// Show who did what in a tenant
    Audit(audit::AuditCommand),
    /// Show how much tenants use; live numbers of those mounted on this machine
    Usage(usage::UsageCommand),
    /// Commit everything and unmount
    Umount(umount::UmountCommand),
    /// Check every invariant of a tenant in the database
    Fsck(fsck::FsckCommand),
    /// Remove what nothing refers to, in the whole database
    Gc(gc::GcCommand),
    /// Write a tenant as a tar archive
    Export(archive::ExportCommand),
    /// Make a tenant from a tar archive
    Import(archive::ImportCommand),
    /// Tell what on this machine is fine, what is not, and what to do about it
    Doctor(doctor::DoctorCommand),
    /// Volumes in Kubernetes; the same as `kubectl tarbox`
    Kubectl(kubectl::KubectlCommand),
    /// Print a completion script for a shell
    Completions(manual::CompletionsCommand),
    /// Print the manual page, or write all of them into a directory
    Man(manual::ManCommand),
}

impl Cli {
    /// Does what the command line says; returns the exit code.
    ///
    /// # Errors
    /// Why it could not.
    pub fn run(self) -> Result<u8, Failure> {
        let global = self.global;
        match self.command {
            Command::Completions(command) => command.run(),
            Command::Kubectl(command) => command.run(global.output),
            Command::Man(command) => command.run(),
            Command::Tenant(command) => {
                let flags = command.flags();
                block_on(global, flags, async |context| command.run(&context).await)
            }
            Command::Checkpoint(command) => {
                block_on(global, vec![], async |context| command.run(&context).await)
            }
            Command::Clone(command) => block_on(global, vec![], async |context| command.run(&context).await),
            Command::Log(command) => block_on(global, vec![], async |context| command.run(&context).await),
            Command::Audit(command) => block_on(global, vec![], async |context| command.run(&context).await),
            Command::Usage(command) => block_on(global, vec![], async |context| command.run(&context).await),
            Command::Umount(command) => block_on(global, vec![], async |context| command.run(&context).await),
            Command::Fsck(command) => block_on(global, vec![], async |context| command.run(&context).await),
            Command::Gc(command) => block_on(global, vec![], async |context| command.run(&context).await),
            Command::Export(command) => block_on(global, vec![], async |context| command.run(&context).await),
            Command::Import(command) => {
                let flags = command.options.flags();
                block_on(global, flags, async |context| command.run(&context).await)
            }
            Command::Doctor(command) => block_on(global, vec![], async |context| command.run(&context).await),
        }
    }
}

/// Reads the configuration and runs a command on a runtime of its own.
fn block_on(
    global: Global,
    flags: crate::settings::Flags,
    command: impl AsyncFnOnce(Context) -> Result<u8, Failure>,
) -> Result<u8, Failure> {
    let context = Context::new(global, flags)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|source| Failure::Io { doing: "start the runtime".to_owned(), source })?;
    let outcome = runtime.block_on(command(context));
    runtime.shutdown_background();
    outcome
}
