//! The command line of `tarbox-controller`.

use std::{net::SocketAddr, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use tarbox_runtime::{
    config::Flags,
    program,
    telemetry::{self, LogTarget},
    traces::{self, Origin},
};

use crate::{failure::ControllerError, settings::Settings};

const EXAMPLES: &str = "\
Examples:
  TARBOX_DATABASE_URL=postgresql://me:secret@db/tarbox tarbox-controller serve --endpoint unix:///csi/csi.sock
      Serves CSI Identity and Controller for the external provisioner, resizer and snapshotter.

Configuration of `serve`: built-in defaults < TOML file < environment < flags. The key of the flag --database-url is
`databaseURL` in the file and TARBOX_DATABASE_URL in the environment, and so on for each. An unknown key or a bad value is an error.

Exit codes: 0 done, 64 wrong usage, 78 wrong configuration, 1 anything else.";

/// Makes volumes, snapshots and clones for a cluster, as CSI asks for them.
#[derive(Debug, Parser)]
#[command(name = "tarbox-controller", version, after_long_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves CSI Identity and Controller until SIGINT or SIGTERM
    Serve(ServeCommand),
}

#[derive(Debug, Args)]
struct ServeCommand {
    /// Socket that CSI is served on [default: unix:///csi/csi.sock]
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// Database of requests whose secrets name none; better in the environment or the file
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
    /// Where volumes can be used: key=value,key=value [default: everywhere]
    #[arg(long, value_name = "SEGMENTS")]
    topology: Option<String>,
    /// What all volumes together may have as their capacity, or unlimited [default: unlimited]
    #[arg(long, value_name = "QUANTITY")]
    capacity: Option<String>,
    /// How long nobody may hold a volume that a pod asked for itself before it is deleted, its node being gone [default: 24h]
    #[arg(long, value_name = "DURATION")]
    ephemeral_grace: Option<String>,
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
}

impl ServeCommand {
    fn into_flags(self) -> Flags {
        vec![
            ("config", self.config),
            ("endpoint", self.endpoint),
            ("databaseURL", self.database_url),
            ("topology", self.topology),
            ("capacity", self.capacity),
            ("ephemeralGrace", self.ephemeral_grace),
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
    program::main("tarbox-controller", |cli: Cli| {
        let Command::Serve(serve) = cli.command;
        run(serve).map(|()| program::OK)
    })
}

fn run(command: ServeCommand) -> Result<(), ControllerError> {
    let settings = Settings::load(command.into_flags())?;
    let served = program::block_on(async {
        let node = tarbox_runtime::host_name();
        let origin = Origin { program: "tarbox-controller", node: &node };
        let traces = settings.otlp_endpoint.as_ref().map(|endpoint| (endpoint, origin));
        telemetry::start_with(&settings.log_level, settings.log_format, &LogTarget::Stderr, traces)
            .map_err(ControllerError::io("open the log"))?;
        let served = crate::serve(settings, tell).await;
        traces::end();
        served
    });
    served.map_err(ControllerError::io("start the runtime"))?
}

fn tell(settings: &Settings, metrics: Option<SocketAddr>) {
    program::tell(&format!("serving CSI at {}", settings.endpoint.display()), metrics);
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::settings;

    #[test]
    fn the_command_line_is_sound_and_every_key_has_its_flag() {
        Cli::command().debug_assert();
        let serve = Cli::command().find_subcommand("serve").expect("serve").clone();
        let flags: Vec<_> = serve.get_arguments().filter_map(|arg| arg.get_long()).collect();
        for key in settings::KEYS {
            let flag = tarbox_runtime::config::flag_name(key);
            assert!(flags.iter().any(|known| format!("--{known}") == flag), "{key} has no flag {flag}");
        }
    }
}
