//! `kubectl tarbox …`, or `tarbox kubectl …`: volumes as a cluster knows them.
//!
//! The way to the API server is `kubectl` itself: its configuration, its ways to log in and its proxies are the user's already. What only a
//! node knows is asked of its agent, by `kubectl exec` in the agent's pod.

mod api;
mod checkpoint;
mod doctor;
mod fork;
mod install;
mod objects;
mod untaint;
mod volumes;

use clap::{Args, Parser, Subcommand};

use super::output::Format;
use crate::failure::Failure;
use api::Kubectl;

/// The name under which kubectl finds the executable as its plugin.
pub const PLUGIN: &str = "kubectl-tarbox";

const EXAMPLES: &str = "\
Examples:
  kubectl tarbox volumes -A
  kubectl tarbox checkpoint work before-tool
  kubectl tarbox fork work attempt
  kubectl tarbox doctor

`tarbox kubectl install DIR` puts the executable into a directory of PATH as kubectl-tarbox, where kubectl finds it. It asks through `kubectl`
(KUBECTL names another one). `volumes`, `checkpoint` and `doctor` need the right to `exec` into the driver's pods.

Exit codes: 0 done, 64 wrong usage, 1 anything else (of volumes: a node could not be asked; of doctor: something is not fine).";

/// Tarbox's volumes in Kubernetes.
#[derive(Debug, Parser)]
#[command(name = PLUGIN, bin_name = "kubectl tarbox", version, after_long_help = EXAMPLES, arg_required_else_help = true)]
pub struct Plugin {
    #[command(flatten)]
    command: KubectlCommand,

    /// How results are printed
    #[arg(short, long, value_name = "FORMAT", global = true, default_value = "table")]
    output: Format,
}

impl Plugin {
    /// Does what the command line says; returns the exit code.
    ///
    /// # Errors
    /// Why it could not.
    pub fn run(self) -> Result<u8, Failure> {
        self.command.run(self.output)
    }
}

#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct KubectlCommand {
    #[command(flatten)]
    reach: Reach,
    #[command(subcommand)]
    order: Order,
}

/// Options of kubectl that are passed on.
#[derive(Debug, Default, Args)]
struct Reach {
    /// Namespace of the claims [default: that of kubectl's context]
    #[arg(short, long, value_name = "NAME", global = true)]
    namespace: Option<String>,

    /// Context of kubectl's configuration
    #[arg(long, value_name = "NAME", global = true)]
    context: Option<String>,

    /// Kubectl's configuration
    #[arg(long, value_name = "FILE", global = true)]
    kubeconfig: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Order {
    /// List volumes: claim, node, mounter, restarts, condition
    Volumes(volumes::VolumesCommand),
    /// Make a checkpoint of a claim's volume, in constant time and while it is used
    Checkpoint(checkpoint::CheckpointCommand),
    /// Make a claim whose volume begins as another one's is, in constant time
    Fork(fork::ForkCommand),
    /// Tell what of the driver in this cluster is fine, what is not, and what to do about it
    Doctor,
    /// Take a start-up taint from the nodes whose kubelet knows the driver
    Untaint(untaint::UntaintCommand),
    /// Put this executable into a directory, under the name by which kubectl finds it
    Install(install::InstallCommand),
}

impl KubectlCommand {
    pub(super) fn run(self, format: Format) -> Result<u8, Failure> {
        let Reach { namespace, context, kubeconfig } = self.reach;
        let kubectl = Kubectl::new(namespace, context, kubeconfig);
        match self.order {
            Order::Volumes(command) => command.run(&kubectl, format),
            Order::Checkpoint(command) => command.run(&kubectl, format),
            Order::Fork(command) => command.run(&kubectl, format),
            Order::Doctor => doctor::run(&kubectl, format),
            Order::Untaint(command) => command.run(&kubectl, format),
            Order::Install(command) => command.run(),
        }
    }
}
