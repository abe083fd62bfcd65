//! The agent's configuration: keys, defaults, and their values once every layer has been read.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Component, Path, PathBuf},
};

use tarbox_native::NativeSource;
pub use tarbox_runtime::config::Flags;
use tarbox_runtime::{
    Layers, config, host_name, monitoring,
    telemetry::{LogFormat, LogLevel},
    traces::{self, OtlpEndpoint},
};
use tarbox_types::ByteSize;

use crate::failure::AgentError;

/// All keys, in camel case. The variable and the flag follow: `nodeId`, `TARBOX_NODE_ID`, `--node-id`.
pub const KEYS: &[&str] = &[
    "config",
    "endpoint",
    "nodeId",
    "stateDir",
    "runDir",
    "databaseURL",
    "tenantRoles",
    "launcher",
    "keeperSocket",
    "keeper",
    "mounter",
    "maxVolumes",
    "topology",
    "memory",
    "memoryBudget",
    "nativeSources",
    "ephemeral",
    "ephemeralMaxSize",
    "ephemeralMaxCache",
    "standBy",
    "upgrade",
    "kubernetesEvents",
    "metricsAddress",
    "otlpEndpoint",
    "logLevel",
    "logFormat",
];

/// Who starts the keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LauncherKind {
    /// The agent, where none is there; it outlives the agent.
    Child,
    /// The agent, but outside of its own control groups: it outlives what the agent runs in, too.
    Host,
    /// Somebody else: a second DaemonSet.
    Runtime,
}

/// Whether each tenant's mounters get a role of the database of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TenantRoles {
    /// Where they can be made; elsewhere mounters get the driver's, and that is said.
    Auto,
    /// Always: nothing is staged without.
    Required,
    /// Never.
    Off,
}

/// The configuration in force.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The socket that CSI is served on.
    pub endpoint: PathBuf,
    /// This node's name.
    pub node_id: String,
    /// What outlives the agent: state per tenant, executables, its private sockets.
    pub state_dir: PathBuf,
    /// What outlives a mounter but not the machine: journals and control sockets; in memory.
    pub run_dir: PathBuf,
    /// The database of volumes that name none.
    pub database_url: Option<String>,
    /// Whether tenants get roles of the database of their own.
    pub tenant_roles: TenantRoles,
    /// Who starts the keeper.
    pub launcher: LauncherKind,
    /// Where it listens.
    pub keeper_socket: PathBuf,
    /// Its executable.
    pub keeper: PathBuf,
    /// The mounters' executable.
    pub mounter: PathBuf,
    /// Most volumes on this node; 0 = no limit.
    pub max_volumes: u32,
    /// Where this node is, for the scheduler.
    pub topology: BTreeMap<String, String>,
    /// Memory of a mounter beside its cache and its journal.
    pub memory: ByteSize,
    /// Memory that all volumes of this node may be promised together; `None` = no limit.
    pub memory_budget: Option<ByteSize>,
    /// Directories of the host that volumes may show inside them; none by default.
    pub native_sources: Vec<NativeSource>,
    /// Whether pods may ask for volumes of their own.
    pub ephemeral: bool,
    /// The largest of them.
    pub ephemeral_max_size: ByteSize,
    /// The largest cache that one may ask for.
    pub ephemeral_max_cache: ByteSize,
    /// Whether a stand-by is kept beside each mounter.
    pub stand_by: bool,
    /// Whether mounters of another build are replaced when the agent starts.
    pub upgrade: bool,
    /// Whether pods are told, by events, what their users must know of their volumes.
    pub kubernetes_events: bool,
    /// Where metrics and health are served; `None` = nowhere.
    pub metrics_address: Option<SocketAddr>,
    /// The collector that traces are sent to; `None` = nowhere.
    pub otlp_endpoint: Option<OtlpEndpoint>,
    /// Which messages are logged.
    pub log_level: LogLevel,
    /// How.
    pub log_format: LogFormat,
    /// Whether mounters do as if the kernel could not send requests again. No key: tests alone ask for it.
    pub without_resend: bool,
}

/// Where the private sockets and the state are when nothing else is said.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/tarbox/agent";

impl Settings {
    /// Reads every layer: the file, the process's environment, the flags.
    ///
    /// # Errors
    /// All faults together.
    pub fn load(flags: Flags) -> Result<Self, AgentError> {
        let mut layers = Layers::of_service(KEYS, flags);
        let settings = Self::read(&mut layers);
        layers.finish()?;
        Ok(settings)
    }

    fn read(layers: &mut Layers) -> Self {
        let here = std::env::current_dir().unwrap_or_default();
        let path = |text: &str| Ok(here.join(text));
        let state_dir = layers.read("stateDir", path).unwrap_or_else(|| DEFAULT_STATE_DIR.into());
        let node_id = layers.read("nodeId", node_id).unwrap_or_else(host_name);
        let mut topology = layers.read("topology", config::segments).unwrap_or_default();
        topology.entry("topology.tarbox.csi.io/node".to_owned()).or_insert_with(|| node_id.clone());
        Self {
            endpoint: layers.read("endpoint", config::socket).unwrap_or_else(|| "/csi/csi.sock".into()),
            node_id,
            run_dir: layers.read("runDir", path).unwrap_or_else(|| "/run/tarbox/agent".into()),
            database_url: layers.read("databaseURL", |text| Ok(text.to_owned())),
            tenant_roles: layers.read("tenantRoles", tenant_roles).unwrap_or(TenantRoles::Auto),
            launcher: layers.read("launcher", launcher).unwrap_or(LauncherKind::Child),
            keeper_socket: layers.read("keeperSocket", path).unwrap_or_else(|| state_dir.join("keeper.sock")),
            keeper: layers.read("keeper", path).unwrap_or_else(|| beside_us("tarbox-keeper")),
            mounter: layers.read("mounter", path).unwrap_or_else(|| beside_us("tarbox-mount")),
            max_volumes: layers.read("maxVolumes", count).unwrap_or(0),
            topology,
            memory: layers.read("memory", at_least(ByteSize::mib(64))).unwrap_or(ByteSize::mib(256)),
            memory_budget: layers.read("memoryBudget", memory_budget).unwrap_or(None),
            native_sources: layers.read("nativeSources", native_sources).unwrap_or_default(),
            ephemeral: layers.read("ephemeral", config::boolean).unwrap_or(true),
            ephemeral_max_size: layers
                .read("ephemeralMaxSize", at_least(ByteSize::mib(1)))
                .unwrap_or(ByteSize::mib(10 << 10)),
            ephemeral_max_cache: layers
                .read("ephemeralMaxCache", at_least(ByteSize::mib(1)))
                .unwrap_or(ByteSize::mib(256)),
            stand_by: layers.read("standBy", config::boolean).unwrap_or(true),
            upgrade: layers.read("upgrade", config::boolean).unwrap_or(true),
            kubernetes_events: layers.read("kubernetesEvents", config::boolean).unwrap_or(true),
            metrics_address: layers.read("metricsAddress", monitoring::address).unwrap_or(None),
            otlp_endpoint: layers
                .read("otlpEndpoint", traces::endpoint)
                .unwrap_or_else(OtlpEndpoint::of_environment),
            log_level: layers.read("logLevel", config::parsed).unwrap_or_else(LogLevel::of_mounter),
            log_format: layers.read("logFormat", config::parsed).unwrap_or(LogFormat::Text),
            without_resend: false,
            state_dir,
        }
    }
}

/// Where the agent of this state directory answers its operator.
#[must_use]
pub fn agent_socket(state_dir: &Path) -> PathBuf {
    state_dir.join("agent.sock")
}

/// A program that was installed beside this one.
fn beside_us(name: &str) -> PathBuf {
    let here = std::env::current_exe().ok();
    here.and_then(|path| path.parent().map(|folder| folder.join(name)))
        .unwrap_or_else(|| Path::new("/usr/local/bin").join(name))
}

// === Values ===

/// Source: CSI "NodeGetInfoResponse.node_id".
fn node_id(text: &str) -> Result<String, String> {
    if (1..=192).contains(&text.len()) && !text.contains(char::is_whitespace) {
        Ok(text.to_owned())
    } else {
        Err("1 to 192 bytes without blanks".to_owned())
    }
}

fn tenant_roles(text: &str) -> Result<TenantRoles, String> {
    match text {
        "auto" => Ok(TenantRoles::Auto),
        "required" => Ok(TenantRoles::Required),
        "off" => Ok(TenantRoles::Off),
        _ => Err("auto, required or off".to_owned()),
    }
}

fn launcher(text: &str) -> Result<LauncherKind, String> {
    match text {
        "child" => Ok(LauncherKind::Child),
        "host" => Ok(LauncherKind::Host),
        "runtime" => Ok(LauncherKind::Runtime),
        _ => Err("child, host or runtime".to_owned()),
    }
}

fn count(text: &str) -> Result<u32, String> {
    let allowed = "a whole number up to 2147483647; 0 = no limit";
    text.parse().ok().filter(|count| i32::try_from(*count).is_ok()).ok_or_else(|| allowed.to_owned())
}

/// A size that is no smaller.
fn at_least(least: ByteSize) -> impl Fn(&str) -> Result<ByteSize, String> {
    move |text| {
        let size = text.parse::<ByteSize>().ok().filter(|size| *size >= least);
        size.ok_or_else(|| format!("a size of {least} or more"))
    }
}

fn memory_budget(text: &str) -> Result<Option<ByteSize>, String> {
    if text == "unlimited" {
        return Ok(None);
    }
    let size = at_least(ByteSize::mib(64))(text);
    size.map(Some).map_err(|allowed| format!("{allowed}, or unlimited"))
}

/// `/directory=rw,/directory=ro`.
fn native_sources(text: &str) -> Result<Vec<NativeSource>, String> {
    let allowed = || "/directory=rw,/directory=ro with absolute paths without `..`".to_owned();
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    entries
        .map(|entry| {
            let (path, mode) = entry.rsplit_once('=').ok_or_else(allowed)?;
            let path = PathBuf::from(path);
            let is_plain = path.is_absolute() && !path.components().any(|part| part == Component::ParentDir);
            match mode {
                "rw" | "ro" if is_plain => Ok(NativeSource { path, writable: mode == "rw" }),
                _ => Err(allowed()),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn load(flags: &[(&'static str, &str)]) -> Result<Settings, AgentError> {
        Settings::load(flags.iter().map(|&(key, value)| (key, Some(value.to_owned()))).collect())
    }

    #[test]
    fn nothing_has_to_be_said() {
        let settings = load(&[]).expect("defaults");
        assert_eq!(settings.endpoint, Path::new("/csi/csi.sock"));
        assert_eq!(settings.launcher, LauncherKind::Child);
        assert_eq!(settings.topology["topology.tarbox.csi.io/node"], settings.node_id);
        assert!(settings.keeper_socket.starts_with(DEFAULT_STATE_DIR));
    }

    #[test]
    fn bad_values_say_what_is_allowed() {
        for (key, value, allowed) in [
            ("endpoint", "tcp://0.0.0.0:1", "unix:///absolute/path"),
            ("nodeId", "a b", "without blanks"),
            ("launcher", "systemd", "child, host or runtime"),
            ("tenantRoles", "yes", "auto, required or off"),
            ("maxVolumes", "-1", "a whole number"),
            ("memory", "1Mi", "64Mi or more"),
            ("topology", "zone", "key=value"),
            ("memoryBudget", "0", "64Mi or more, or unlimited"),
            ("nativeSources", "/srv", "/directory=rw"),
            ("nativeSources", "srv=rw", "absolute paths"),
            ("nativeSources", "/srv/../etc=rw", "without `..`"),
            ("standBy", "yes", "true or false"),
            ("kubernetesEvents", "auto", "true or false"),
            ("ephemeral", "no", "true or false"),
            ("ephemeralMaxSize", "0", "1Mi or more"),
            ("ephemeralMaxCache", "much", "1Mi or more"),
            ("otlpEndpoint", "https://otel:4317", "off, or http://host:port"),
            ("metricsAddress", "localhost", "off, or an address and a port such as 127.0.0.1:9780"),
        ] {
            let text = load(&[(key, value)]).expect_err(key).to_string();
            assert!(text.contains(allowed) && text.contains(&format!("{key} = `{value}`")), "{text}");
        }
    }

    #[test]
    fn a_file_is_read_below_the_flags_and_its_unknown_keys_are_refused() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("agent.toml");
        fs::write(&path, "nodeId = 'a'\nmaxVolumes = 7\ntopology = 'zone=z'\n").expect("write");
        let file = path.to_str().expect("UTF-8");
        let settings = load(&[("config", file), ("nodeId", "b")]).expect("settings");
        assert_eq!((settings.node_id.as_str(), settings.max_volumes), ("b", 7));
        assert_eq!(settings.topology["zone"], "z");
        fs::write(&path, "nodeID = 'a'\n").expect("write");
        let text = load(&[("config", file)]).expect_err("unknown").to_string();
        assert!(text.contains("`nodeID`") && text.contains("did you mean `nodeId`"), "{text}");
    }
}
