//! The command line of `tarbox-mount`.

use std::path::PathBuf;

use clap::Parser;
use tarbox_engine::SessionConfig;
use tarbox_runtime::{
    host_name,
    telemetry::{self, LogLevel, LogTarget},
    traces::{Origin, OtlpEndpoint},
};
use tokio::runtime::{Builder, Runtime};
use tracing::{Instrument, Span, error_span};

use crate::{
    confinement, daemon,
    failure::{Failure, OK},
    keeping,
    settings::{Flags, Settings, TenantChoice},
    supervised,
};

const EXAMPLES: &str = "\
Examples:
  tarbox-mount ./work
      Mounts a tenant named after the directory, kept in SQLite under ~/.local/share/tarbox.
  tarbox-mount --tenant notes --quota-bytes 2Gi --daemon ~/notes
      Mounts the tenant `notes`, at most 2 GiB, and returns when it serves.
  TARBOX_DATABASE_URL=postgresql://me:secret@db/tarbox tarbox-mount --tenant build /srv/build
      The same in PostgreSQL; a variable keeps the password out of the process list.
  tarbox umount ./work
      Commits everything and unmounts. Ctrl-C, SIGTERM and `fusermount3 -u` do as well.

Configuration: built-in defaults < TOML file < environment < flags. The key of the flag --cache-size is `cacheSize` in
the file and TARBOX_CACHE_SIZE in the environment, and so on for each. The file is --config, TARBOX_CONFIG, or
~/.config/tarbox/config.toml if it exists. An unknown key or a bad value is an error.

Exit codes: 0 unmounted with everything committed (with --daemon: it serves), 64 wrong usage, 78 wrong configuration,
1 anything else.";

/// Mounts a tenant: a POSIX file system kept in an SQL database.
///
/// The tenant is made on first use. In the foreground one line is printed when it serves; it then serves until
/// Ctrl-C, SIGTERM or an unmount, and commits everything before it ends.
#[derive(Debug, Parser)]
#[command(name = "tarbox-mount", version, after_long_help = EXAMPLES)]
pub struct MountCommand {
    /// Where to mount: an existing directory
    #[arg(value_name = "MOUNTPOINT")]
    mount_point: PathBuf,

    /// Database: sqlite:///absolute/directory or postgresql://user@host/name [default: sqlite:// under the user's
    /// data directory]
    #[arg(long, value_name = "URL", help_heading = "Which tenant")]
    database_url: Option<String>,

    /// Tenant by name, made where it is missing [default: named after the mount point]
    #[arg(long, value_name = "NAME", conflicts_with = "tenant_id", help_heading = "Which tenant")]
    tenant: Option<String>,

    /// Tenant by id; it must exist
    #[arg(long, value_name = "UUID", help_heading = "Which tenant")]
    tenant_id: Option<String>,

    /// Mount for reading only, as the database has it; works while another mounter writes
    #[arg(long, help_heading = "Which tenant")]
    read_only: bool,

    /// Limit of allocated bytes, for instance 10Gi; `unlimited` removes it. Kept in the tenant
    #[arg(long, value_name = "QUANTITY", help_heading = "Limits")]
    quota_bytes: Option<String>,

    /// Limit of inodes; `unlimited` removes it. Kept in the tenant
    #[arg(long, value_name = "COUNT", help_heading = "Limits")]
    quota_inodes: Option<String>,

    /// Largest file; `unlimited` removes it. Kept in the tenant
    #[arg(long, value_name = "QUANTITY", help_heading = "Limits")]
    max_file_size: Option<String>,

    /// Bytes per block of a new tenant, a power of two from 4Ki to 4Mi; cannot change later [default: 128Ki]
    #[arg(long, value_name = "QUANTITY", help_heading = "Storage")]
    block_size: Option<String>,

    /// Compression of new blocks: none or zstd [default: the tenant's, none for a new one]
    #[arg(long, value_name = "KIND", help_heading = "Storage")]
    compression: Option<String>,

    /// Memory for cached blocks [default: 256Mi]
    #[arg(long, value_name = "QUANTITY", help_heading = "Storage")]
    cache_size: Option<String>,

    /// writeback: a change is acknowledged once it is in the journal; writethrough: once it is committed
    /// [default: writeback]
    #[arg(long, value_name = "MODE", help_heading = "Storage")]
    sync_mode: Option<String>,

    /// What becomes of calls that wait for a database which does not answer: wait, or eio-after=DURATION [default: wait]
    #[arg(long, value_name = "POLICY", help_heading = "Storage")]
    on_database_outage: Option<String>,

    /// How long a change waits for its commit while the database keeps up [default: 1s]
    #[arg(long, value_name = "DURATION", help_heading = "Storage")]
    flush_interval: Option<String>,

    /// How old what is not committed may become: writers are slowed to keep it [default: 5s]
    #[arg(long, value_name = "DURATION", help_heading = "Storage")]
    max_lag: Option<String>,

    /// Bound of the journal [default: 256Mi]
    #[arg(long, value_name = "QUANTITY", help_heading = "Storage")]
    journal_size: Option<String>,

    /// true or false: whether there is a control directory `/.tarbox` with history, state and orders as files
    /// [default: true]
    #[arg(long, value_name = "BOOL", help_heading = "Storage")]
    control_dir: Option<String>,

    /// What is audited: off; basic: names, owners, modes, refusals, mounts; standard: changes of content as well, summed up;
    /// full: every open, read and write [default: standard]
    #[arg(long, value_name = "LEVEL", help_heading = "Audit")]
    audit_level: Option<String>,

    /// How many days audit events are kept; 0 = for ever [default: 90]
    #[arg(long, value_name = "DAYS", help_heading = "Audit")]
    audit_retention_days: Option<String>,

    /// Directories of this machine shown inside the tenant, for root: TOML, [[native_mounts]] with path, source, mode, priority
    #[arg(long, value_name = "TOML", help_heading = "Storage")]
    native_mounts: Option<String>,

    /// Where journals and control sockets lie; in memory by default, so that they outlive a crash but not the machine
    /// [default: $XDG_RUNTIME_DIR/tarbox, /run/tarbox for root, or /dev/shm/tarbox-UID where those are on a disk]
    #[arg(long, value_name = "DIR", help_heading = "Process")]
    state_dir: Option<String>,

    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE", help_heading = "Process")]
    config: Option<String>,

    /// Return when it serves, and go on in the background; logs go to a file in the state directory
    #[arg(long, help_heading = "Process")]
    daemon: bool,

    /// Messages: error, warn, info, debug, trace, or with targets: info,tarbox_fs=debug [default:
    /// info,tarbox_engine=warn]
    #[arg(long, value_name = "LEVEL", help_heading = "Process")]
    log_level: Option<String>,

    /// Log lines: text or json [default: text]
    #[arg(long, value_name = "FORMAT", help_heading = "Process")]
    log_format: Option<String>,

    #[arg(long, hide = true)]
    daemon_child: bool,

    /// Serve from what comes over this inherited descriptor; neither mount nor unmount
    #[arg(long, hide = true, value_name = "N", conflicts_with = "daemon")]
    control_fd: Option<i32>,

    /// Log into this file, of bounded size, instead of standard error
    #[arg(long, hide = true, value_name = "FILE", requires = "control_fd")]
    log_file: Option<PathBuf>,

    /// Do as if the kernel could not send requests again: for tests
    #[arg(long, hide = true, requires = "control_fd")]
    without_resend: bool,
}

impl MountCommand {
    /// Does what the command line says; returns the exit code.
    ///
    /// # Errors
    /// Why it could not.
    pub fn run(self) -> Result<u8, Failure> {
        // Before anything is opened: the number must be the inherited descriptor's.
        let link = self.control_fd.map(supervised::take_link).transpose()?;
        let session = SessionConfig { resend: !self.without_resend, ..SessionConfig::default() };
        let (daemon, is_child) = (self.daemon, self.daemon_child);
        let log_file = self.log_file.clone();
        let (mount_point, flags) = self.into_flags();
        // Read in the parent as well: its faults need no child.
        let settings = Settings::load(flags)?;
        if daemon && !is_child {
            return daemon::start(std::env::args_os().skip(1));
        }
        if is_child {
            daemon::leave_terminal()?;
        }
        if let Some(link) = link {
            // Before there are threads: they all inherit it.
            confinement::confine()?;
            // Executed from a descriptor it would be shown as that: as a number, or as the name of a content.
            let _ = nix::sys::prctl::set_name(c"tarbox-mount");
            let runtime = start_runtime(Builder::new_multi_thread().worker_threads(2))?;
            let outcome = runtime.block_on(async {
                let traces = OtlpEndpoint::of_environment();
                start_logging(&settings, log_file, is_child, traces.as_ref())?;
                let span = span_of(&settings.tenant);
                // Traces are not ended: a successor waits for the end of this process, and a collector may be slow.
                supervised::run(link, settings, session, mount_point).instrument(span).await
            });
            // What waits stays in its slots.
            runtime.shutdown_background();
            return outcome;
        }
        let log = start_logging(&settings, log_file, is_child, None)?;
        let output = log.clone().map_or(keeping::Output::Stderr, keeping::Output::File);
        let report = move |mounted: &keeping::Mounted| tell(mounted, is_child);
        let runtime = start_runtime(&mut Builder::new_current_thread())?;
        let outcome = runtime.block_on(keeping::run(settings, mount_point, output, report));
        // A thread that hangs in a system call on a foreign mount must not keep the process.
        runtime.shutdown_background();
        match (&log, &outcome) {
            // Its standard error leads nowhere once it has served.
            (Some(_), Err(failure)) => tracing::error!(reason = %failure.report(), "ended with a failure"),
            (Some(path), Ok(())) => {
                let _ = std::fs::remove_file(path);
            }
            (None, _) => {}
        }
        outcome.map(|()| OK)
    }

    fn into_flags(self) -> (PathBuf, Flags) {
        let flags = vec![
            ("config", self.config),
            ("databaseURL", self.database_url),
            ("tenant", self.tenant),
            ("tenantId", self.tenant_id),
            ("stateDir", self.state_dir),
            ("readOnly", self.read_only.then(|| "true".to_owned())),
            ("quotaBytes", self.quota_bytes),
            ("quotaInodes", self.quota_inodes),
            ("maxFileSize", self.max_file_size),
            ("blockSize", self.block_size),
            ("compression", self.compression),
            ("cacheSize", self.cache_size),
            ("syncMode", self.sync_mode),
            ("onDatabaseOutage", self.on_database_outage),
            ("flushInterval", self.flush_interval),
            ("maxLag", self.max_lag),
            ("journalSize", self.journal_size),
            ("controlDir", self.control_dir),
            ("nativeMounts", self.native_mounts),
            ("auditLevel", self.audit_level),
            ("auditRetentionDays", self.audit_retention_days),
            ("logLevel", self.log_level),
            ("logFormat", self.log_format),
        ];
        (self.mount_point, flags)
    }
}

/// What a mounter logs says whose it is.
fn span_of(tenant: &TenantChoice) -> Span {
    let id = match tenant {
        TenantChoice::Id(id) => id.to_string(),
        TenantChoice::Name(name) => name.clone(),
        TenantChoice::OfMountPoint => String::new(),
    };
    error_span!("mounter", volume_id = id, tenant_id = id, node = host_name())
}

fn start_runtime(builder: &mut Builder) -> Result<Runtime, Failure> {
    let started = builder.enable_all().build();
    started.map_err(|source| Failure::Io { doing: "start the runtime".to_owned(), source })
}

/// Starts logging. A daemon logs into a file in the state directory, removed when it has ended well; the tenant is not
/// known yet, so that it is named after the process.
fn start_logging(
    settings: &Settings,
    file: Option<PathBuf>,
    is_daemon: bool,
    traces: Option<&OtlpEndpoint>,
) -> Result<Option<PathBuf>, Failure> {
    let level = settings.log_level.clone().unwrap_or_else(LogLevel::of_mounter);
    let own = is_daemon.then(|| settings.state_dir.join(format!("log.{}", std::process::id())));
    if own.is_some() {
        crate::settings::ensure_state_dir(&settings.state_dir)?;
    }
    let log = file.or_else(|| own.clone());
    let target = log.clone().map_or(LogTarget::Stderr, LogTarget::File);
    let node = host_name();
    let origin = Origin { program: "tarbox-mount", node: &node };
    let traces = traces.map(|endpoint| (endpoint, origin));
    telemetry::start_with(&level, settings.log_format, &target, traces).map_err(|source| {
        let shown = log.unwrap_or_default();
        Failure::io("open the log", &shown)(source)
    })?;
    Ok(own)
}

fn tell(mounted: &keeping::Mounted, is_daemon: bool) -> Result<(), Failure> {
    use std::io::Write;
    if is_daemon {
        return daemon::report(&mounted.to_string());
    }
    // Whoever started us may have closed the pipe: no reason not to serve.
    let _ = writeln!(std::io::stdout(), "{mounted}").and_then(|()| std::io::stdout().flush());
    Ok(())
}
