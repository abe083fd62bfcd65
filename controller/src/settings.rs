//! The controller's configuration: keys, defaults, and their values once every layer has been read.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use tarbox_runtime::{
    Layers,
    config::{self, Flags},
    monitoring,
    telemetry::{LogFormat, LogLevel},
    traces::{self, OtlpEndpoint},
};
use tarbox_types::{ByteSize, HumanDuration};

use crate::failure::ControllerError;

/// All keys, in camel case. The variable and the flag follow: `databaseURL`, `TARBOX_DATABASE_URL`, `--database-url`.
pub const KEYS: &[&str] = &[
    "config",
    "endpoint",
    "databaseURL",
    "topology",
    "capacity",
    "ephemeralGrace",
    "metricsAddress",
    "otlpEndpoint",
    "logLevel",
    "logFormat",
];

/// The configuration in force.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The socket that CSI is served on.
    pub endpoint: PathBuf,
    /// The database of requests whose secrets name none.
    pub database_url: Option<String>,
    /// Where volumes can be used; empty = everywhere.
    pub topology: BTreeMap<String, String>,
    /// What all volumes together may have as their capacity; `None` = no limit.
    pub capacity: Option<ByteSize>,
    /// How long nobody may hold a volume that a pod asked for itself before it is deleted: its node is gone.
    pub ephemeral_grace: Duration,
    /// Where metrics and health are served; `None` = nowhere.
    pub metrics_address: Option<SocketAddr>,
    /// The collector that traces are sent to; `None` = nowhere.
    pub otlp_endpoint: Option<OtlpEndpoint>,
    /// Which messages are logged.
    pub log_level: LogLevel,
    /// How.
    pub log_format: LogFormat,
}

impl Settings {
    /// Reads every layer: the file, the process's environment, the flags.
    ///
    /// # Errors
    /// All faults together.
    pub fn load(flags: Flags) -> Result<Self, ControllerError> {
        let mut layers = Layers::of_service(KEYS, flags);
        let settings = Self {
            endpoint: layers.read("endpoint", config::socket).unwrap_or_else(|| "/csi/csi.sock".into()),
            database_url: layers.read("databaseURL", |text| Ok(text.to_owned())),
            topology: layers.read("topology", config::segments).unwrap_or_default(),
            capacity: layers.read("capacity", capacity).unwrap_or(None),
            ephemeral_grace: layers.read("ephemeralGrace", grace).unwrap_or(Duration::from_secs(24 * 3600)),
            metrics_address: layers.read("metricsAddress", monitoring::address).unwrap_or(None),
            otlp_endpoint: layers
                .read("otlpEndpoint", traces::endpoint)
                .unwrap_or_else(OtlpEndpoint::of_environment),
            log_level: layers.read("logLevel", config::parsed).unwrap_or_else(LogLevel::of_mounter),
            log_format: layers.read("logFormat", config::parsed).unwrap_or(LogFormat::Text),
        };
        layers.finish()?;
        Ok(settings)
    }
}

fn capacity(text: &str) -> Result<Option<ByteSize>, String> {
    if text == "unlimited" {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| "a size, or unlimited".to_owned())
}

fn grace(text: &str) -> Result<Duration, String> {
    let time = text.parse::<HumanDuration>().ok().map(|time| time.0);
    time.filter(|time| *time >= Duration::from_secs(1)).ok_or_else(|| "a duration of 1s or more".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(flags: &[(&'static str, &str)]) -> Result<Settings, ControllerError> {
        Settings::load(flags.iter().map(|&(key, value)| (key, Some(value.to_owned()))).collect())
    }

    #[test]
    fn nothing_has_to_be_said_and_bad_values_say_what_is_allowed() {
        let settings = load(&[("capacity", "unlimited")]).expect("defaults");
        assert_eq!((settings.capacity, settings.topology.len(), settings.metrics_address), (None, 0, None));
        for (key, value, allowed) in [
            ("endpoint", "tcp://0.0.0.0:1", "unix:///absolute/path"),
            ("topology", "zone", "key=value"),
            ("capacity", "much", "a size, or unlimited"),
            ("ephemeralGrace", "0s", "a duration of 1s or more"),
            ("otlpEndpoint", "https://otel:4317", "off, or http://host:port"),
            ("metricsAddress", ":9780", "off, or an address and a port such as 127.0.0.1:9780"),
        ] {
            let text = load(&[(key, value)]).expect_err(key).to_string();
            assert!(text.contains(allowed) && text.contains(&format!("{key} = `{value}`")), "{text}");
        }
    }
}
