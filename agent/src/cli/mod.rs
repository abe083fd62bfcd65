//! The command line of `tarbox-agent`.

mod csi;
mod doctor;
mod operator;
mod output;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use tarbox_runtime::{
    program,
    telemetry::{self, LogTarget},
    traces::{self, Origin},
};

use crate::{
    failure::AgentError,
    settings::{self, Flags, Settings},
};

use self::output::Format;

const EXAMPLES: &str = "\
Examples:
  tarbox-agent serve --endpoint unix:///csi/csi.sock --node-id $NODE_NAME
      Serves CSI Identity and Node, and supervises one mounter per staged volume.
  tarbox-agent ps
      Tenants of this node: who serves them, restarts, pauses, memory.
  tarbox-agent upgrade --dry-run
      Which mounters would be replaced by the executable now on disk, and why not the others.

Configuration of `serve`: built-in defaults < TOML file < environment < flags. The key of the flag --node-id is `nodeId` in
the file and TARBOX_NODE_ID in the environment, and so on for each. An unknown key or a bad value is an error.

Exit codes: 0 done, 64 wrong usage, 78 wrong configuration, 1 anything else.";

/// Serves CSI on a node and supervises its mounters.
#[derive(Debug, Parser)]
#[command(name = "tarbox-agent", version, after_long_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves CSI Identity and Node until SIGINT or SIGTERM; mounters go on without the agent
    Serve(Box<ServeCommand>),
    /// Lists the tenants of this node
    Ps(AskCommand),
    /// Replaces mounters by the executable now on disk, without failing an operation
    Upgrade(UpgradeCommand),
    /// Commits everything that was acknowledged; tenants go on being served
    Drain(AskCommand),
    /// Says what of this node is fine, what is not, and what to do
    Doctor(AskCommand),
    /// Calls the agent as the kubelet does, for demonstrations and tests
    #[command(hide = true)]
    Csi(csi::CsiCommand),
}

/// Which agent is asked, and how its answer is printed.
#[derive(Clone, Debug, Args)]
struct AskCommand {
    /// Only this tenant
    #[arg(long, value_name = "UUID")]
    tenant: Option<String>,
    /// The agent's state directory
    #[arg(long, value_name = "DIR", env = "TARBOX_STATE_DIR", default_value = settings::DEFAULT_STATE_DIR)]
    state_dir: PathBuf,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

#[derive(Debug, Args)]
struct UpgradeCommand {
    #[command(flatten)]
    ask: AskCommand,
    /// Say only what would be done
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
struct ServeCommand {
    /// Socket that CSI is served on [default: unix:///csi/csi.sock]
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// This node's name [default: the host's]
    #[arg(long, value_name = "NAME")]
    node_id: Option<String>,
    /// What outlives the agent: state, executables, sockets [default: /var/lib/tarbox/agent]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<String>,
    /// Journals and control sockets of the mounters; in memory [default: /run/tarbox/agent]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<String>,
    /// Database of volumes that name none; better in the environment or the file
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
    /// Roles of a PostgreSQL database, one for each tenant, that reach nothing else: auto (where they can be made), required or off
    /// [default: auto]
    #[arg(long, value_name = "WHEN")]
    tenant_roles: Option<String>,
    /// Who starts the keeper: child (the agent), host (the agent, in a scope of systemd or a control group of its own, so that it outlives
    /// the agent's pod or service) or runtime (it is there) [default: child]
    #[arg(long, value_name = "KIND")]
    launcher: Option<String>,
    /// Where the keeper listens [default: keeper.sock in the state directory]
    #[arg(long, value_name = "PATH")]
    keeper_socket: Option<String>,
    /// The keeper's executable [default: tarbox-keeper beside this one]
    #[arg(long, value_name = "PATH")]
    keeper: Option<String>,
    /// The mounters' executable [default: tarbox-mount beside this one]
    #[arg(long, value_name = "PATH")]
    mounter: Option<String>,
    /// Most volumes on this node, 0 = no limit [default: 0]
    #[arg(long, value_name = "COUNT")]
    max_volumes: Option<String>,
    /// Where this node is: key=value,key=value
    #[arg(long, value_name = "SEGMENTS")]
    topology: Option<String>,
    /// Memory of a mounter beside its cache and journal [default: 256Mi]
    #[arg(long, value_name = "QUANTITY")]
    memory: Option<String>,
    /// Memory that all volumes of this node may be promised together, or unlimited [default: unlimited]
    #[arg(long, value_name = "QUANTITY")]
    memory_budget: Option<String>,
    /// Host directories that volumes may show inside them: /directory=rw,/directory=ro [default: none]
    #[arg(long, value_name = "DIRS")]
    native_sources: Option<String>,
    /// Let pods ask for volumes of their own (CSI ephemeral inline volumes): true or false [default: true]
    #[arg(long, value_name = "BOOL")]
    ephemeral: Option<String>,
    /// The largest of them; one that says nothing has 1Gi [default: 10Gi]
    #[arg(long, value_name = "QUANTITY")]
    ephemeral_max_size: Option<String>,
    /// The largest cache that one of them may ask for [default: 256Mi]
    #[arg(long, value_name = "QUANTITY")]
    ephemeral_max_cache: Option<String>,
    /// Keep a prepared mounter beside each, so that a crash costs milliseconds: true or false [default: true]
    #[arg(long, value_name = "BOOL")]
    stand_by: Option<String>,
    /// Replace mounters of another build when the agent starts: true or false [default: true]
    #[arg(long, value_name = "BOOL")]
    upgrade: Option<String>,
    /// In a pod: tell the pods that have a volume, by Kubernetes events, what their users must know of it: true or false [default: true]
    #[arg(long, value_name = "BOOL")]
    kubernetes_events: Option<String>,
    /// Where metrics (/metrics) and health (/healthz, /readyz) are served over HTTP: IP:port, or off [default: off]
    #[arg(long, value_name = "ADDRESS")]
    metrics_address: Option<String>,
    /// Collector that traces are sent to by OTLP over gRPC: http://host:port, or off [default: what OTEL_EXPORTER_OTLP_ENDPOINT says, else off]
    #[arg(long, value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<String>,
    /// Messages: error, warn, info, debug, trace, or with targets
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Log lines: text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// Mounters do as if the kernel could not send requests again: for tests
    #[arg(long, hide = true)]
    without_resend: bool,
}

impl ServeCommand {
    fn into_flags(self) -> Flags {
        vec![
            ("config", self.config),
            ("endpoint", self.endpoint),
            ("nodeId", self.node_id),
            ("stateDir", self.state_dir),
            ("runDir", self.run_dir),
            ("databaseURL", self.database_url),
            ("tenantRoles", self.tenant_roles),
            ("launcher", self.launcher),
            ("keeperSocket", self.keeper_socket),
            ("keeper", self.keeper),
            ("mounter", self.mounter),
            ("maxVolumes", self.max_volumes),
            ("topology", self.topology),
            ("memory", self.memory),
            ("memoryBudget", self.memory_budget),
            ("nativeSources", self.native_sources),
            ("ephemeral", self.ephemeral),
            ("ephemeralMaxSize", self.ephemeral_max_size),
            ("ephemeralMaxCache", self.ephemeral_max_cache),
            ("standBy", self.stand_by),
            ("upgrade", self.upgrade),
            ("kubernetesEvents", self.kubernetes_events),
            ("metricsAddress", self.metrics_address),
            ("otlpEndpoint", self.otlp_endpoint),
            ("logLevel", self.log_level),
            ("logFormat", self.log_format),
        ]
    }
}

/// Reads the command line and does what it says.
#[must_use]
pub fn main() -> ExitCode {
    program::main("tarbox-agent", |cli: Cli| {
        run(cli.command).map(|is_done| if is_done { program::OK } else { program::FAILED })
    })
}

/// Whether all that was asked for was done.
fn run(command: Command) -> Result<bool, AgentError> {
    match command {
        Command::Serve(serve) => {
            let without_resend = serve.without_resend;
            let settings = Settings { without_resend, ..Settings::load(serve.into_flags())? };
            // Started from within a volume, the agent and the keeper would keep it from being unmounted.
            std::env::set_current_dir("/").map_err(AgentError::io("go to", std::path::Path::new("/")))?;
            block_on(async {
                let origin = Origin { program: "tarbox-agent", node: &settings.node_id };
                let traces = settings.otlp_endpoint.as_ref().map(|endpoint| (endpoint, origin));
                telemetry::start_with(&settings.log_level, settings.log_format, &LogTarget::Stderr, traces)
                    .map_err(AgentError::io("open", std::path::Path::new("the log")))?;
                let served = crate::serve(settings, tell).await;
                traces::end();
                served.map(|()| true)
            })?
        }
        Command::Ps(ask) => block_on(operator::ps(ask))?,
        Command::Upgrade(UpgradeCommand { ask, dry_run }) => block_on(operator::upgrade(ask, dry_run))?,
        Command::Drain(ask) => block_on(operator::drain(ask))?,
        Command::Doctor(ask) => block_on(doctor::doctor(ask))?,
        Command::Csi(command) => block_on(csi::run(command))?,
    }
}

fn tell(settings: &Settings, metrics: Option<SocketAddr>) {
    let (endpoint, node) = (settings.endpoint.display(), &settings.node_id);
    program::tell(&format!("serving CSI at {endpoint} as node {node}"), metrics);
}

fn block_on<T>(work: impl Future<Output = T>) -> Result<T, AgentError> {
    program::block_on(work).map_err(AgentError::io("start", std::path::Path::new("the runtime")))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound_and_every_key_has_its_flag() {
        Cli::command().debug_assert();
        let serve = ServeCommand::command_for_update_of();
        for key in settings::KEYS {
            let flag = tarbox_runtime::config::flag_name(key);
            assert!(serve.contains(&flag), "{key} has no flag {flag}");
        }
    }

    impl ServeCommand {
        /// The flags that there are.
        fn command_for_update_of() -> Vec<String> {
            let serve = Cli::command().find_subcommand("serve").expect("serve").clone();
            serve.get_arguments().filter_map(|arg| Some(format!("--{}", arg.get_long()?))).collect()
        }
    }
}
