//! How the serving process is started: everything as it was settled at the beginning, whatever files and variables say later.

use std::{
    env,
    fs::{File, OpenOptions},
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use tarbox_handover::{CONTROL_FD, FEW_ARENAS, SpawnSpec};
use tarbox_keeper::Started;
use tarbox_runtime::telemetry::LogFormat;
use tarbox_store::Compression;
use tarbox_types::{AuditLevel, ByteSize, HumanDuration, OutagePolicy, TenantId};

use crate::{
    failure::Failure,
    settings::{DEFAULT_AUDIT_RETENTION_DAYS, Settings, SyncMode},
};

/// Where the serving process logs.
#[derive(Clone, Debug)]
pub enum Output {
    /// To our own standard error.
    Stderr,
    /// To this file, behind what is there.
    File(PathBuf),
}

/// How to start a serving process.
#[derive(Debug)]
pub(super) struct Order {
    arguments: Vec<Vec<u8>>,
    environment: Vec<Vec<u8>>,
    log: File,
    /// Where this program lies on the disk, whatever lies there by now.
    program: PathBuf,
    /// What is executed to begin with.
    pub(super) executable: Arc<File>,
}

impl Order {
    /// # Errors
    /// Where this program cannot be found, or the log not be opened.
    pub(super) fn new(
        settings: &Settings,
        tenant: TenantId,
        database: &str,
        point: &Path,
        output: Output,
    ) -> Result<Self, Failure> {
        let failed = |source| Failure::Io { doing: "find this program".to_owned(), source };
        let program = env::current_exe().map_err(failed)?;
        // What runs, even if something else lies at its place by now.
        let executable = File::open("/proc/self/exe").map_err(failed)?;
        Ok(Self {
            arguments: arguments(settings, tenant, database, point, &output),
            environment: environment(),
            log: log(&output)?,
            program,
            executable: Arc::new(executable),
        })
    }

    /// What now lies where this program was started from.
    pub(super) fn on_disk(&self) -> Result<Arc<File>, Failure> {
        File::open(&self.program).map(Arc::new).map_err(Failure::io("open", &self.program))
    }

    /// Starts a process of this executable.
    pub(super) fn start(&self, executable: &File) -> Result<Started, Failure> {
        let spec = SpawnSpec {
            executable: 0,
            argv: self.arguments.clone(),
            env: self.environment.clone(),
            // Neither Ctrl-C nor a lost terminal reaches it: what that means is decided here.
            new_session: true,
            log: Some(1),
            ..SpawnSpec::default()
        };
        let copies = [executable, &self.log].map(|file| file.try_clone().map(OwnedFd::from));
        let copies: io::Result<Vec<OwnedFd>> = copies.into_iter().collect();
        let failed = |source| Failure::Io { doing: "duplicate a descriptor".to_owned(), source };
        tarbox_keeper::spawn(&spec, &copies.map_err(failed)?).map_err(|error| Failure::Part {
            kind: error.kind(),
            doing: "start the serving process".to_owned(),
            source: error.into(),
        })
    }
}

fn log(output: &Output) -> Result<File, Failure> {
    use std::os::fd::AsFd;
    match output {
        Output::Stderr => {
            let copy = io::stderr().as_fd().try_clone_to_owned();
            copy.map(File::from)
                .map_err(|source| Failure::Io { doing: "duplicate standard error".to_owned(), source })
        }
        Output::File(path) => {
            OpenOptions::new().append(true).create(true).open(path).map_err(Failure::io("open the log", path))
        }
    }
}

/// Nothing of ours from the environment: what it said is settled.
fn environment() -> Vec<Vec<u8>> {
    let (name, value) = FEW_ARENAS;
    // Whoever runs it may want something else.
    let arenas = env::var_os(name).is_none().then(|| (name.into(), value.into()));
    env::vars_os()
        .filter(|(name, _)| !name.as_bytes().starts_with(b"TARBOX_"))
        .chain(arenas)
        .map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat())
        .collect()
}

/// Limits are left out: they are kept in the tenant since it was admitted, and may be changed there meanwhile.
fn arguments(
    settings: &Settings,
    tenant: TenantId,
    database: &str,
    point: &Path,
    output: &Output,
) -> Vec<Vec<u8>> {
    let compression = settings.compression.map(|compression| match compression {
        Compression::None => "none",
        Compression::Zstd => "zstd",
    });
    let sync_mode = match settings.sync_mode {
        SyncMode::Writeback => "writeback",
        SyncMode::Writethrough => "writethrough",
    };
    let format = match settings.log_format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    };
    let mut all: Vec<Vec<u8>> = vec![
        b"tarbox-mount".to_vec(),
        // No file is read a second time.
        b"--config=/dev/null".to_vec(),
        format!("--control-fd={CONTROL_FD}").into(),
        format!("--tenant-id={tenant}").into(),
        // Only shown: the one with the password comes in a sealed memory file.
        format!("--database-url={database}").into(),
        [b"--state-dir=", settings.state_dir.as_os_str().as_bytes()].concat(),
        format!("--cache-size={}", ByteSize(settings.cache_bytes)).into(),
        format!("--journal-size={}", ByteSize(settings.journal_bytes)).into(),
        format!("--flush-interval={}", HumanDuration(settings.flush_interval)).into(),
        format!("--max-lag={}", HumanDuration(settings.max_lag)).into(),
        format!("--sync-mode={sync_mode}").into(),
        format!("--log-format={format}").into(),
    ];
    // Only where it was said: a build that is gone back to may not know it.
    let outage = Some(settings.on_database_outage).filter(|policy| *policy != OutagePolicy::Wait);
    all.extend(outage.map(|policy| format!("--on-database-outage={policy}").into()));
    all.extend(compression.map(|compression| format!("--compression={compression}").into()));
    all.extend(settings.log_level.as_ref().map(|level| format!("--log-level={level}").into()));
    // Only where it is not what every release does.
    // The child mounts nothing; it notes where they are for whoever unmounts.
    let native = Some(&settings.native_mounts).filter(|text| !text.trim().is_empty());
    all.extend(native.map(|text| [b"--native-mounts=", text.as_bytes()].concat()));
    all.extend((!settings.control_dir).then(|| b"--control-dir=false".to_vec()));
    let level = Some(settings.audit_level).filter(|level| *level != AuditLevel::default());
    all.extend(level.map(|level| format!("--audit-level={level}").into()));
    let days = Some(settings.audit_retention_days).filter(|days| *days != DEFAULT_AUDIT_RETENTION_DAYS);
    all.extend(days.map(|days| format!("--audit-retention-days={days}").into()));
    all.extend(settings.read_only.then(|| b"--read-only".to_vec()));
    if let Output::File(path) = output {
        // Opened by itself, so that it stays of bounded size.
        all.push([b"--log-file=", path.as_os_str().as_bytes()].concat());
    }
    all.push(b"--".to_vec());
    all.push(point.as_os_str().as_bytes().to_vec());
    all
}
