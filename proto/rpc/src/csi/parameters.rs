//! What a volume's context and secrets say to a node: the mounter's options. Pure.

use std::{collections::HashMap, fmt, time::Duration};

use serde::{Deserialize, Serialize};
use tarbox_types::{ByteSize, HumanDuration, OutagePolicy};

use super::{native, request::RequestError};

/// Where a node finds a volume's parameters.
pub(super) const CONTEXT: &str = "volume_context";
/// Keys that the provisioner and the kubelet add, whatever is asked for.
const FOREIGN_PREFIXES: [&str; 2] = ["csi.storage.k8s.io/", "storage.kubernetes.io/"];
/// The only key of a secret that is read; others belong to whoever shares the secret.
pub const DATABASE_URL: &str = "databaseURL";

/// What the mounter is told beside the tenant and the place.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameters {
    /// The database, with its password: never written to disk, never shown.
    #[serde(skip)]
    pub database_url: Option<String>,
    /// Options of the mounter: flag and value.
    pub options: Vec<(String, String)>,
    /// What the block cache is allowed, where it was said.
    pub cache_bytes: Option<u64>,
    /// What the journal is allowed, where it was said.
    pub journal_bytes: Option<u64>,
    /// The tenant's name, where it is known: what the mount table shows.
    pub tenant_name: Option<String>,
}

impl fmt::Debug for Parameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { database_url: _, options, cache_bytes, journal_bytes, tenant_name } = self;
        f.debug_struct("Parameters")
            .field("options", options)
            .field("cache_bytes", cache_bytes)
            .field("journal_bytes", journal_bytes)
            .field("tenant_name", tenant_name)
            .finish_non_exhaustive()
    }
}

/// Cache and journal of a mounter that was told nothing about them.
const DEFAULT_BYTES: u64 = 256 << 20;

impl Parameters {
    /// With the options that were changed since the volume was made, which come first.
    #[must_use]
    pub fn changed_by(mut self, newer: Self) -> Self {
        self.options.retain(|(flag, _)| newer.options.iter().all(|(newer, _)| newer != flag));
        self.options.extend(newer.options);
        self.cache_bytes = newer.cache_bytes.or(self.cache_bytes);
        self.journal_bytes = newer.journal_bytes.or(self.journal_bytes);
        self
    }

    /// Memory that the mounter's cache and its journal may take.
    #[must_use]
    pub fn working_bytes(&self) -> u64 {
        self.cache_bytes.unwrap_or(DEFAULT_BYTES) + self.journal_bytes.unwrap_or(DEFAULT_BYTES)
    }
}

/// What a value has to be, and what becomes of it.
enum Meaning {
    /// An option of the mounter.
    Option(&'static str, Kind),
    /// Of no concern to a node; checked all the same.
    Checked(Kind),
    /// Read here.
    Ours,
}

enum Kind {
    Size(u64, u64),
    Time(Duration),
    Word(&'static [&'static str]),
    Outage,
    Count,
    Text,
}

const HOUR: Duration = Duration::from_secs(3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
const SWITCH: Kind = Kind::Word(&["true", "false"]);

/// Every key of a StorageClass or a PersistentVolume, with its meaning. Source: the documentation of the parameters.
const KEYS: &[(&str, Meaning)] = &[
    (DATABASE_URL, Meaning::Ours),
    ("tenant_id", Meaning::Ours),
    ("tenant_name", Meaning::Ours),
    ("cacheSize", Meaning::Option("--cache-size", Kind::Size(1 << 20, 1 << 50))),
    ("journalSize", Meaning::Option("--journal-size", Kind::Size(8 << 20, 1 << 46))),
    ("maxLag", Meaning::Option("--max-lag", Kind::Time(HOUR))),
    ("flushInterval", Meaning::Option("--flush-interval", Kind::Time(HOUR))),
    ("syncMode", Meaning::Option("--sync-mode", Kind::Word(&["writeback", "writethrough"]))),
    ("controlDir", Meaning::Option("--control-dir", SWITCH)),
    ("compression", Meaning::Option("--compression", Kind::Word(&["none", "zstd"]))),
    ("onDatabaseOutage", Meaning::Option("--on-database-outage", Kind::Outage)),
    ("autoCheckpoint", Meaning::Checked(SWITCH)),
    ("checkpointInterval", Meaning::Checked(Kind::Time(YEAR))),
    ("checkpointRetention", Meaning::Checked(Kind::Count)),
    ("auditLevel", Meaning::Option("--audit-level", Kind::Word(&["off", "basic", "standard", "full"]))),
    ("auditRetentionDays", Meaning::Option("--audit-retention-days", Kind::Count)),
    ("blockSize", Meaning::Checked(Kind::Size(4 << 10, 4 << 20))),
    ("maxFileSize", Meaning::Checked(Kind::Size(0, 1 << 53))),
    ("inodes", Meaning::Checked(Kind::Count)),
    ("maxCheckpoints", Meaning::Checked(Kind::Count)),
    ("historyQuota", Meaning::Checked(Kind::Size(0, i64::MAX as u64))),
    ("namespace", Meaning::Checked(Kind::Text)),
    (native::KEY, Meaning::Ours),
];

/// Checks a key and its value, which stand in `field` of a request.
///
/// # Errors
/// A key that there is not, or a value that is not allowed.
pub fn check(field: &'static str, key: &str, value: &str) -> Result<(), RequestError> {
    apply(&mut Parameters::default(), field, key, value)
}

/// Those of them that are fixed when a volume is made: what is stored goes by them, or where it is stored.
const FIXED: &[&str] = &[DATABASE_URL, "tenant_id", "tenant_name", "blockSize", "namespace", native::KEY];

/// Whether a key may have another value later.
#[must_use]
pub fn may_change(key: &str) -> bool {
    KEYS.iter().any(|(known, _)| *known == key) && !FIXED.contains(&key)
}

/// All keys that may, for messages.
#[must_use]
pub fn mutable() -> String {
    let keys: Vec<&str> = KEYS.iter().map(|(key, _)| *key).filter(|key| may_change(key)).collect();
    keys.join(", ")
}

/// Whether a key was added by the provisioner or the kubelet, and is none of ours.
#[must_use]
pub fn is_foreign(key: &str) -> bool {
    FOREIGN_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
}

/// Reads a volume's context and secrets. A secret's URL comes before the context's.
///
/// # Errors
/// Every key that there is not, and every value that is not allowed: the first of them, by key.
pub fn read(
    context: &HashMap<String, String>,
    secrets: &HashMap<String, String>,
) -> Result<Parameters, RequestError> {
    let mut parameters = Parameters::default();
    let mut sorted: Vec<_> = context.iter().collect();
    sorted.sort_unstable();
    for (key, value) in sorted {
        if !is_foreign(key) {
            apply(&mut parameters, CONTEXT, key, value)?;
        }
    }
    if let Some(url) = secret_url(secrets)? {
        parameters.database_url = Some(url);
    }
    Ok(parameters)
}

/// The database that the secrets name.
///
/// # Errors
/// Where it is no URL of a database.
pub fn secret_url(secrets: &HashMap<String, String>) -> Result<Option<String>, RequestError> {
    secrets.get(DATABASE_URL).map(|url| checked_url(url.trim())).transpose()
}

fn apply(
    parameters: &mut Parameters,
    field: &'static str,
    key: &str,
    value: &str,
) -> Result<(), RequestError> {
    let known = KEYS.iter().find(|(known, _)| *known == key);
    let Some((_, meaning)) = known else {
        let allowed: Vec<&str> = KEYS.iter().map(|(key, _)| *key).collect();
        return Err(RequestError::UnknownKey { field, key: key.to_owned(), allowed: allowed.join(", ") });
    };
    match meaning {
        Meaning::Option(flag, kind) => {
            check_value(field, key, value, kind)?;
            parameters.options.push(((*flag).to_owned(), value.to_owned()));
            let bytes = || value.parse::<ByteSize>().ok().map(ByteSize::bytes);
            match key {
                "cacheSize" => parameters.cache_bytes = bytes(),
                "journalSize" => parameters.journal_bytes = bytes(),
                _ => {}
            }
        }
        Meaning::Checked(kind) => check_value(field, key, value, kind)?,
        Meaning::Ours if key == DATABASE_URL => parameters.database_url = Some(checked_url(value)?),
        Meaning::Ours if key == "tenant_name" => parameters.tenant_name = Some(value.to_owned()),
        Meaning::Ours => {}
    }
    Ok(())
}

fn bad(field: &str, key: &str, value: &str, allowed: &str) -> RequestError {
    RequestError::value(format!("{field}.{key}"), value, allowed)
}

/// The URL itself is not repeated in the message: it may hold a password.
fn checked_url(url: &str) -> Result<String, RequestError> {
    let schemes = ["sqlite:///", "postgresql://", "postgres://"];
    if schemes.iter().any(|scheme| url.starts_with(scheme)) {
        return Ok(url.to_owned());
    }
    let scheme = url.split_once("://").map_or("(no scheme)", |(scheme, _)| scheme);
    Err(RequestError::value(DATABASE_URL, scheme, "postgresql://… or sqlite:///absolute/directory"))
}

fn check_value(field: &str, key: &str, value: &str, kind: &Kind) -> Result<(), RequestError> {
    let (is_right, allowed) = match kind {
        Kind::Size(least, most) => (
            value.parse::<ByteSize>().is_ok_and(|size| (*least..=*most).contains(&size.bytes())),
            format!("a size from {} to {}", ByteSize(*least), ByteSize(*most)),
        ),
        Kind::Time(most) => {
            let least = Duration::from_millis(1);
            let right = value.parse::<HumanDuration>().is_ok_and(|time| time.0 >= least && time.0 <= *most);
            (right, format!("a duration from 1ms to {}", HumanDuration(*most)))
        }
        Kind::Word(words) => (words.contains(&value), words.join(" or ")),
        Kind::Outage => (value.parse::<OutagePolicy>().is_ok(), OutagePolicy::ALLOWED.to_owned()),
        Kind::Count => (value.parse::<u32>().is_ok(), "a whole number".to_owned()),
        Kind::Text => (!value.is_empty(), "a text".to_owned()),
    };
    if is_right { Ok(()) } else { Err(bad(field, key, value, &allowed)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn what_concerns_a_node_becomes_an_option_of_the_mounter() {
        let context = map(&[
            ("cacheSize", "1Gi"),
            ("controlDir", "false"),
            ("syncMode", "writethrough"),
            ("auditLevel", "full"),
            ("csi.storage.k8s.io/pod.name", "p"),
            ("storage.kubernetes.io/csiProvisionerIdentity", "x"),
            ("tenant_name", "work"),
        ]);
        let read = read(&context, &map(&[])).expect("known keys");
        let expected = [
            ("--audit-level", "full"),
            ("--cache-size", "1Gi"),
            ("--control-dir", "false"),
            ("--sync-mode", "writethrough"),
        ];
        assert_eq!(read.options, expected.map(|(flag, value)| (flag.to_owned(), value.to_owned())));
        assert_eq!((read.cache_bytes, read.tenant_name.as_deref()), (Some(1 << 30), Some("work")));
    }

    #[test]
    fn what_was_changed_comes_before_what_the_volume_was_made_with() {
        let of = |pairs: &[(&str, &str)]| read(&map(pairs), &map(&[])).expect("known keys");
        let made = of(&[("cacheSize", "1Gi"), ("maxLag", "2s"), ("tenant_name", "work")]);
        let now = made.changed_by(of(&[("cacheSize", "2Gi"), ("syncMode", "writethrough"), ("inodes", "7")]));
        let expected = [("--max-lag", "2s"), ("--cache-size", "2Gi"), ("--sync-mode", "writethrough")];
        assert_eq!(now.options, expected.map(|(flag, value)| (flag.to_owned(), value.to_owned())));
        assert_eq!((now.cache_bytes, now.tenant_name.as_deref()), (Some(2 << 30), Some("work")));
    }

    #[test]
    fn unknown_keys_and_bad_values_are_named_with_what_is_allowed() {
        for (key, value, words) in [
            ("cachesize", "1Gi", ["`cachesize`", "cacheSize"]),
            ("cacheSize", "1K", ["`1K`", "a size from 1Mi"]),
            ("maxLag", "2h", ["`2h`", "1ms to 1h"]),
            ("syncMode", "async", ["`async`", "writeback or writethrough"]),
            ("controlDir", "off", ["`off`", "true or false"]),
            ("autoCheckpoint", "yes", ["`yes`", "true or false"]),
            ("onDatabaseOutage", "eio-after=5ms", ["eio-after=5ms", "wait, or eio-after="]),
            ("databaseURL", "mysql://x", ["mysql", "postgresql"]),
        ] {
            let error = read(&map(&[(key, value)]), &map(&[])).expect_err(key);
            let text = error.to_string();
            assert!(words.iter().all(|word| text.contains(word)), "{text}");
        }
    }

    #[test]
    fn the_secret_comes_first_and_is_shown_nowhere() {
        let read = read(
            &map(&[("databaseURL", "sqlite:///a")]),
            &map(&[("databaseURL", "postgresql://u:secret@h/d"), ("other", "x")]),
        )
        .expect("URLs");
        assert_eq!(read.database_url.as_deref(), Some("postgresql://u:secret@h/d"));
        assert!(!format!("{read:?}").contains("secret"));
        let error = secret_url(&map(&[("databaseURL", "u:secret@h")])).expect_err("no scheme").to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}
