//! The configuration of our programs: keys, defaults, and their values once every layer has been read.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use tarbox_runtime::{
    Layers, Source,
    config::{self, Fault},
    directories,
    telemetry::{LogFormat, LogLevel},
};
use tarbox_store::{Compression, Limits};
use tarbox_types::{AuditLevel, ByteSize, HumanDuration, OutagePolicy, TenantId};

use crate::{failure::Failure, places};

/// All keys, in camel case. The variable and the flag follow: `cacheSize`, `TARBOX_CACHE_SIZE`, `--cache-size`.
pub const KEYS: &[&str] = &[
    "config",
    "databaseURL",
    "tenant",
    "tenantId",
    "stateDir",
    "readOnly",
    "quotaBytes",
    "quotaInodes",
    "maxFileSize",
    "blockSize",
    "compression",
    "cacheSize",
    "syncMode",
    "onDatabaseOutage",
    "flushInterval",
    "maxLag",
    "journalSize",
    "controlDir",
    "auditLevel",
    "auditRetentionDays",
    "nativeMounts",
    "logLevel",
    "logFormat",
];

/// Which tenant is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TenantChoice {
    /// The one of this id; it must exist.
    Id(TenantId),
    /// The one of this name, made where it is missing.
    Name(String),
    /// The one named after the mount point, made where it is missing.
    OfMountPoint,
}

/// Limits that were named; `Some(0)` = unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitChoice {
    /// Allocated bytes.
    pub bytes: Option<u64>,
    /// Inodes.
    pub inodes: Option<u64>,
    /// Bytes of the largest file.
    pub file_bytes: Option<u64>,
}

impl LimitChoice {
    /// `now`, with what was named in its place.
    #[must_use]
    pub fn over(self, now: Limits) -> Limits {
        Limits {
            bytes: self.bytes.unwrap_or(now.bytes),
            inodes: self.inodes.unwrap_or(now.inodes),
            file_bytes: self.file_bytes.unwrap_or(now.file_bytes),
        }
    }
}

/// No limit at all: the default of a workstation.
pub const UNLIMITED: Limits = Limits { bytes: 0, inodes: 0, file_bytes: 0 };

/// How many days audit events are kept where nothing is said.
pub const DEFAULT_AUDIT_RETENTION_DAYS: u32 = 90;

/// When a change is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncMode {
    /// Once it is in the journal.
    Writeback,
    /// Once the database has committed it.
    Writethrough,
}

/// The configuration in force.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Database.
    pub database_url: String,
    /// Tenant to mount.
    pub tenant: TenantChoice,
    /// Where journals and control sockets lie.
    pub state_dir: PathBuf,
    /// Mount for reading only.
    pub read_only: bool,
    /// Limits named.
    pub limits: LimitChoice,
    /// Bytes per block, where named.
    pub block_size: Option<u32>,
    /// Compression, where named.
    pub compression: Option<Compression>,
    /// Bound of the block cache.
    pub cache_bytes: u64,
    /// When a change is acknowledged.
    pub sync_mode: SyncMode,
    /// What becomes of calls that wait for a database which does not answer.
    pub on_database_outage: OutagePolicy,
    /// How long a change waits for its commit while the database keeps up.
    pub flush_interval: Duration,
    /// How long at most.
    pub max_lag: Duration,
    /// Bound of the journal.
    pub journal_bytes: u64,
    /// Whether there is a control directory.
    pub control_dir: bool,
    /// What is audited.
    pub audit_level: AuditLevel,
    /// How many days events are kept; 0 = for ever.
    pub audit_retention_days: u32,
    /// Directories of this machine that are shown inside the tenant, as TOML; empty for none.
    pub native_mounts: String,
    /// Which messages are logged; `None` where nothing was said.
    pub log_level: Option<LogLevel>,
    /// How.
    pub log_format: LogFormat,
}

/// A key and the text of its flag, where the flag was given.
pub type Flags = Vec<(&'static str, Option<String>)>;

impl Settings {
    /// Reads every layer: the file, the process's environment, the flags.
    ///
    /// # Errors
    /// All faults together.
    pub fn load(flags: Flags) -> Result<Self, Failure> {
        Self::from_layers(flags, std::env::vars_os())
    }

    fn from_layers(
        flags: Flags,
        variables: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<Self, Failure> {
        let variables: Vec<_> = variables.collect();
        let mut layers = Layers::new(KEYS);
        add_file(&mut layers, &flags, &variables);
        layers.environment(variables.into_iter());
        for (key, value) in flags {
            layers.flag(key, value);
        }
        let settings = Self::read(&mut layers);
        layers.finish()?;
        settings.ok_or_else(|| Failure::Mismatch(directories::NoHome.to_string()))
    }

    /// `None` only where a default needs a home directory and there is none.
    fn read(layers: &mut Layers) -> Option<Self> {
        let working_directory = std::env::current_dir().unwrap_or_default();
        let url = layers.read("databaseURL", |text| Ok(text.to_owned()));
        let url = url.map_or_else(places::database_url, |url| places::complete_url(&url, &working_directory));
        let log_level = layers.read("logLevel", |text| text.parse::<LogLevel>().map_err(str::to_owned));
        let log_format = layers.read("logFormat", |text| text.parse::<LogFormat>().map_err(str::to_owned));
        let flush_interval = layers.read("flushInterval", |text| duration(text, Duration::from_secs(3600)));
        let max_lag = layers.read("maxLag", |text| duration(text, Duration::from_secs(3600)));
        let settings = Self {
            database_url: String::new(),
            tenant: tenant(layers),
            state_dir: layers
                .read("stateDir", |text| Ok(working_directory.join(text)))
                .unwrap_or_else(places::state_dir),
            read_only: layers.read("readOnly", config::boolean).unwrap_or(false),
            limits: LimitChoice {
                bytes: layers.read("quotaBytes", limit_bytes),
                inodes: layers.read("quotaInodes", limit_count),
                file_bytes: layers.read("maxFileSize", limit_file),
            },
            block_size: layers.read("blockSize", block_size),
            compression: layers.read("compression", compression),
            cache_bytes: layers.read("cacheSize", |text| size(text, 1 << 20, 1 << 50)).unwrap_or(256 << 20),
            sync_mode: layers.read("syncMode", sync_mode).unwrap_or(SyncMode::Writeback),
            on_database_outage: layers.read("onDatabaseOutage", config::parsed).unwrap_or_default(),
            flush_interval: flush_interval.unwrap_or(Duration::from_secs(1)),
            max_lag: max_lag.unwrap_or(Duration::from_secs(5)),
            journal_bytes: layers
                .read("journalSize", |text| size(text, 8 << 20, 1 << 46))
                .unwrap_or(256 << 20),
            control_dir: layers.read("controlDir", config::boolean).unwrap_or(true),
            audit_level: layers.read("auditLevel", config::parsed).unwrap_or_default(),
            audit_retention_days: layers
                .read("auditRetentionDays", days)
                .unwrap_or(DEFAULT_AUDIT_RETENTION_DAYS),
            native_mounts: layers.read("nativeMounts", |text| Ok(text.to_owned())).unwrap_or_default(),
            log_level,
            log_format: log_format.unwrap_or(LogFormat::Text),
        };
        Some(Self { database_url: url.ok()?, ..settings })
    }
}

/// What must not stand on a command line, as TOML. Of what a later release adds, nothing is known here.
#[derive(Debug, Default, serde::Deserialize)]
struct Secrets {
    database_url: Option<String>,
}

impl Settings {
    /// Takes what was handed over in a memory file.
    ///
    /// # Errors
    /// Where it cannot be read. What is in it is never shown.
    pub fn take_secrets(&mut self, file: Option<&std::os::fd::OwnedFd>) -> Result<(), Failure> {
        let Some(file) = file else { return Ok(()) };
        let bytes = tarbox_handover::read_sealed(file).map_err(|error| Failure::Part {
            kind: error.kind(),
            doing: "read the secrets that were handed over".to_owned(),
            source: error.into(),
        })?;
        let text = String::from_utf8(bytes).ok();
        let secrets = text.and_then(|text| toml::from_str::<Secrets>(&text).ok()).ok_or_else(|| {
            Failure::Mismatch("the secrets that were handed over are no TOML of `key = \"value\"`".to_owned())
        })?;
        if let Some(url) = secrets.database_url {
            self.database_url = url;
        }
        Ok(())
    }
}

/// The file is named by the flag or the variable, else it is the user's own, if there is one.
fn add_file(layers: &mut Layers, flags: &Flags, variables: &[(OsString, OsString)]) {
    let flag = flags.iter().find(|(key, _)| *key == "config").and_then(|(_, value)| value.as_ref());
    let variable = variables.iter().find(|(name, _)| name == "TARBOX_CONFIG").map(|(_, value)| value);
    let named = flag
        .map(|path| (PathBuf::from(path), Source::Flag("--config".to_owned())))
        .or_else(|| variable.map(|path| (path.into(), Source::Environment("TARBOX_CONFIG".to_owned()))));
    let (path, source) = match named {
        Some(named) => named,
        None => match directories::config_file() {
            Ok(path) => (path, Source::Default),
            Err(directories::NoHome) => return,
        },
    };
    match fs::read_to_string(&path) {
        Ok(text) => layers.file(&path, &text),
        Err(error) if source == Source::Default && error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => layers.fault(Fault::File { path, reason: error.to_string(), source }),
    }
}

/// The id and the name exclude each other within a layer; a higher layer's choice replaces a lower one's.
fn tenant(layers: &mut Layers) -> TenantChoice {
    let id = layers.read("tenantId", |text| {
        text.parse::<TenantId>().map_err(|_| "a UUID such as 3f2b8c1e-0d4a-4b6f-9a57-1c2d3e4f5a6b".to_owned())
    });
    let name = layers.read("tenant", tenant_name);
    match (id, name) {
        (Some(id), Some(name)) => {
            let (by_id, by_name) = (layers.source("tenantId"), layers.source("tenant"));
            match rank(&by_id).cmp(&rank(&by_name)) {
                std::cmp::Ordering::Greater => TenantChoice::Id(id),
                std::cmp::Ordering::Less => TenantChoice::Name(name),
                std::cmp::Ordering::Equal => {
                    layers.fault(Fault::Value {
                        key: "tenant".to_owned(),
                        value: name.clone(),
                        allowed: format!("only one of it and tenantId (from {by_id})"),
                        source: by_name,
                    });
                    TenantChoice::Name(name)
                }
            }
        }
        (Some(id), None) => TenantChoice::Id(id),
        (None, Some(name)) => TenantChoice::Name(name),
        (None, None) => TenantChoice::OfMountPoint,
    }
}

fn rank(source: &Source) -> u8 {
    match source {
        Source::Default => 0,
        Source::File { .. } => 1,
        Source::Environment(_) => 2,
        Source::Flag(_) => 3,
    }
}

// === Values ===

/// A tenant's name.
///
/// # Errors
/// What is allowed.
pub fn tenant_name(text: &str) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(&byte);
    if (1..=63).contains(&text.len()) && text.bytes().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("1 to 63 of a-z, 0-9, `-`, `.` and `_`".to_owned())
    }
}

fn size(text: &str, least: u64, most: u64) -> Result<u64, String> {
    let bytes = text.parse::<ByteSize>().map_err(|error| error.expected.to_owned())?.bytes();
    if (least..=most).contains(&bytes) {
        Ok(bytes)
    } else {
        Err(format!("a size from {} to {}", ByteSize(least), ByteSize(most)))
    }
}

fn duration(text: &str, most: Duration) -> Result<Duration, String> {
    let HumanDuration(duration) =
        text.parse().map_err(|error: tarbox_types::QuantityError| error.expected.to_owned())?;
    if duration >= Duration::from_millis(1) && duration <= most {
        Ok(duration)
    } else {
        Err(format!("a duration from 1ms to {}", HumanDuration(most)))
    }
}

fn days(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "a whole number of days; 0 = for ever".to_owned())
}

const UNLIMITED_WORD: &str = "unlimited";

/// A limit in bytes; `unlimited` or 0 = none.
///
/// # Errors
/// What is allowed.
pub fn limit_bytes(text: &str) -> Result<u64, String> {
    if text == UNLIMITED_WORD {
        return Ok(0);
    }
    size(text, 0, i64::MAX as u64).map_err(|allowed| format!("{allowed}, or `{UNLIMITED_WORD}`"))
}

/// A limit of the largest file; `unlimited` or 0 = none.
///
/// # Errors
/// What is allowed.
pub fn limit_file(text: &str) -> Result<u64, String> {
    if text == UNLIMITED_WORD {
        return Ok(0);
    }
    size(text, 0, 1 << 53).map_err(|allowed| format!("{allowed}, or `{UNLIMITED_WORD}`"))
}

/// A limit in inodes; `unlimited` or 0 = none.
///
/// # Errors
/// What is allowed.
pub fn limit_count(text: &str) -> Result<u64, String> {
    if text == UNLIMITED_WORD {
        return Ok(0);
    }
    let count = text.parse::<u64>().ok().filter(|count| *count <= i64::MAX as u64);
    count.ok_or_else(|| format!("a whole number, or `{UNLIMITED_WORD}`"))
}

/// Bytes per block.
///
/// # Errors
/// What is allowed.
pub fn block_size(text: &str) -> Result<u32, String> {
    let bytes = size(text, 4 << 10, 4 << 20).ok().filter(|bytes| bytes.is_power_of_two());
    bytes
        .and_then(|bytes| u32::try_from(bytes).ok())
        .ok_or_else(|| "a power of two from 4Ki to 4Mi".to_owned())
}

/// Compression.
///
/// # Errors
/// What is allowed.
pub fn compression(text: &str) -> Result<Compression, String> {
    match text {
        "none" => Ok(Compression::None),
        "zstd" => Ok(Compression::Zstd),
        _ => Err("none or zstd".to_owned()),
    }
}

fn sync_mode(text: &str) -> Result<SyncMode, String> {
    match text {
        "writeback" => Ok(SyncMode::Writeback),
        "writethrough" => Ok(SyncMode::Writethrough),
        _ => Err("writeback or writethrough".to_owned()),
    }
}

/// The state directory, made where it is missing: it must be this user's own, for others could read what is in it.
///
/// # Errors
/// As mkdir(2); where it belongs to somebody else.
pub fn ensure_state_dir(path: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(Failure::io("make the state directory", path))?;
    let owner = fs::metadata(path).map_err(Failure::io("reach the state directory", path))?.uid();
    let me = nix::unistd::Uid::effective();
    if owner != me.as_raw() && !me.is_root() {
        let message = format!(
            "the state directory {} belongs to user {owner}: name another one with --state-dir",
            path.display()
        );
        return Err(Failure::refused(tarbox_types::ErrorKind::PermissionDenied, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(flags: Flags, variables: &[(&str, &str)]) -> Result<Settings, Failure> {
        let variables: Vec<(OsString, OsString)> =
            variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
        Settings::from_layers(flags, variables.into_iter())
    }

    #[test]
    fn nothing_has_to_be_said() {
        let settings = load(vec![], &[]).expect("settings");
        assert!(settings.database_url.starts_with("sqlite:///"), "{}", settings.database_url);
        assert_eq!(settings.tenant, TenantChoice::OfMountPoint);
        assert_eq!(settings.limits.over(UNLIMITED), UNLIMITED);
        assert_eq!((settings.cache_bytes, settings.journal_bytes), (256 << 20, 256 << 20));
        assert!(settings.control_dir);
        assert_eq!((settings.audit_level, settings.audit_retention_days), (AuditLevel::Standard, 90));
        assert_eq!((settings.flush_interval.as_secs(), settings.max_lag.as_secs()), (1, 5));
    }

    #[test]
    fn the_named_file_is_read_below_the_environment_and_the_flags() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("c.toml");
        fs::write(&path, "cacheSize = '64Mi'\nquotaBytes = '1Gi'\nblockSize = 4096\n").expect("write");
        let file = path.to_str().expect("utf-8").to_owned();
        let flags = vec![("config", Some(file)), ("quotaBytes", Some("3Gi".into())), ("tenant", None)];
        let settings =
            load(flags, &[("TARBOX_QUOTA_BYTES", "2Gi"), ("TARBOX_CACHE_SIZE", "32Mi")]).expect("settings");
        assert_eq!(settings.cache_bytes, 32 << 20);
        assert_eq!(settings.limits.bytes, Some(3 << 30));
        assert_eq!(settings.block_size, Some(4096));
    }

    #[test]
    fn a_file_that_was_named_and_is_missing_is_a_fault() {
        let failure = load(vec![("config", Some("/nonexistent/c.toml".into()))], &[]).expect_err("a fault");
        assert_eq!(crate::failure::Failing::exit_code(&failure), crate::failure::CONFIGURATION);
        assert!(failure.to_string().contains("/nonexistent/c.toml (from the flag --config)"), "{failure}");
    }

    #[test]
    fn bad_values_say_what_is_allowed() {
        for (key, value, allowed) in [
            ("blockSize", "5000", "a power of two from 4Ki to 4Mi"),
            ("blockSize", "8Mi", "a power of two from 4Ki to 4Mi"),
            ("compression", "gzip", "none or zstd"),
            ("syncMode", "async", "writeback or writethrough"),
            ("onDatabaseOutage", "eio", "wait, or eio-after="),
            ("onDatabaseOutage", "eio-after=1ms", "from 1s to 24h"),
            ("quotaBytes", "much", "`unlimited`"),
            ("quotaInodes", "-1", "a whole number, or `unlimited`"),
            ("maxFileSize", "16Pi", "8Pi"),
            ("tenant", "Work", "1 to 63 of a-z"),
            ("tenantId", "42", "a UUID"),
            ("flushInterval", "0s", "a duration from 1ms to 1h"),
            ("journalSize", "1Mi", "a size from 8Mi"),
            ("controlDir", "maybe", "true or false"),
            ("auditLevel", "all", "off, basic, standard or full"),
            ("auditRetentionDays", "1y", "a whole number of days"),
            ("logLevel", "loud", "error, warn, info"),
            ("logFormat", "xml", "text or json"),
        ] {
            let failure = load(vec![(key, Some(value.into()))], &[]).expect_err(key);
            let text = failure.to_string();
            assert!(text.contains(allowed) && text.contains(&format!("{key} = `{value}`")), "{text}");
            assert_eq!(crate::failure::Failing::exit_code(&failure), crate::failure::USAGE, "{text}");
        }
    }

    #[test]
    fn a_tenant_named_by_a_flag_replaces_the_one_of_the_environment() {
        let id = TenantId::random();
        let flags = || vec![("tenantId", Some(id.to_string()))];
        let settings = load(flags(), &[("TARBOX_TENANT", "work")]).expect("settings");
        assert_eq!(settings.tenant, TenantChoice::Id(id));
        let mut both = flags();
        both.push(("tenant", Some("work".into())));
        assert!(load(both, &[]).expect_err("both").to_string().contains("only one of it and tenantId"));
    }
}
