//! Layered configuration: built-in defaults < TOML file < environment (`TARBOX_…`) < flags.
//!
//! A program names its keys once, in camel case (`cacheSize`); the variable (`TARBOX_CACHE_SIZE`) and the flag
//! (`--cache-size`) follow from it. Layers are added in the order of their precedence; then each value is read with
//! its type. Every fault, in every layer, is collected and reported together.

mod fault;
mod names;
mod source;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use toml::de::{DeTable, DeValue};

pub use fault::{ConfigError, Fault};
pub use names::{flag_name, variable_name};
pub use source::Source;

/// Prefix of our variables.
const PREFIX: &str = "TARBOX_";
/// Variables of our own tests and tools, which the programs that they start inherit.
const TEST_PREFIX: &str = "TARBOX_TEST_";

/// A key and the text of its flag, where the flag was given.
pub type Flags = Vec<(&'static str, Option<String>)>;

/// The layers of one program's configuration.
#[derive(Debug)]
pub struct Layers {
    keys: &'static [&'static str],
    values: BTreeMap<&'static str, Vec<(Source, String)>>,
    faults: Vec<Fault>,
}

impl Layers {
    /// No layers yet; `keys` are all that exist.
    #[must_use]
    pub fn new(keys: &'static [&'static str]) -> Self {
        Self { keys, values: BTreeMap::new(), faults: Vec::new() }
    }

    /// The layers of a service: the file that the flag `config` or `TARBOX_CONFIG` names, the process's environment, the flags.
    #[must_use]
    pub fn of_service(keys: &'static [&'static str], flags: Flags) -> Self {
        let mut layers = Self::new(keys);
        let flag = flags.iter().find(|(key, _)| *key == "config").and_then(|(_, value)| value.clone());
        let named =
            flag.map(|path| (PathBuf::from(path), Source::Flag("--config".to_owned()))).or_else(|| {
                let variable = std::env::var_os("TARBOX_CONFIG");
                variable.map(|path| (path.into(), Source::Environment("TARBOX_CONFIG".to_owned())))
            });
        if let Some((path, source)) = named {
            match fs::read_to_string(&path) {
                Ok(text) => layers.file(&path, &text),
                Err(error) => layers.fault(Fault::File { path, reason: error.to_string(), source }),
            }
        }
        layers.environment(std::env::vars_os());
        for (key, value) in flags {
            layers.flag(key, value);
        }
        layers
    }

    /// Adds a TOML file's text; `path` is for messages.
    pub fn file(&mut self, path: &Path, text: &str) {
        let table = match DeTable::parse(text) {
            Ok(table) => table,
            Err(error) => {
                self.faults.push(Fault::Syntax { path: path.to_owned(), reason: error.to_string() });
                return;
            }
        };
        for (key, value) in table.get_ref() {
            let line = text[..key.span().start].matches('\n').count() + 1;
            let source = Source::File { path: path.to_owned(), line };
            match scalar(value.get_ref()) {
                Some(value) => self.add(key.get_ref(), value, source),
                None if self.known(key.get_ref()).is_none() => self.unknown(key.get_ref(), source),
                None => self.faults.push(Fault::Value {
                    key: key.get_ref().to_string(),
                    value: text[value.span()].lines().next().unwrap_or_default().to_owned(),
                    allowed: "one string, number or boolean".to_owned(),
                    source,
                }),
            }
        }
    }

    /// Adds the variables that begin with `TARBOX_`; those that begin with `TARBOX_TEST_` are left out.
    pub fn environment(&mut self, variables: impl Iterator<Item = (OsString, OsString)>) {
        for (name, value) in variables {
            let ours = |name: &&str| name.starts_with(PREFIX) && !name.starts_with(TEST_PREFIX);
            let Some(name) = name.to_str().filter(ours) else { continue };
            let source = Source::Environment(name.to_owned());
            let known = self.keys.iter().copied().find(|key| variable_name(key) == name);
            match (known, value.into_string()) {
                (None, _) => self.unknown(name, source),
                (Some(key), Ok(value)) => self.set(key, value, source),
                (Some(key), Err(value)) => self.faults.push(Fault::Value {
                    key: key.to_owned(),
                    value: value.to_string_lossy().into_owned(),
                    allowed: "text in UTF-8".to_owned(),
                    source,
                }),
            }
        }
    }

    /// Adds a flag's value, where it was given.
    pub fn flag(&mut self, key: &'static str, value: Option<String>) {
        if let Some(value) = value {
            self.set(key, value, Source::Flag(flag_name(key)));
        }
    }

    /// The value of the highest layer that has the key, read by `parse`, which says on failure what is allowed.
    /// A bad value in a layer below is a fault as well: it would show the day the layer above goes.
    pub fn read<T>(&mut self, key: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let mut last = None;
        for (source, value) in self.values.get(key)? {
            match parse(value) {
                Ok(parsed) => last = Some(parsed),
                Err(allowed) => self.faults.push(Fault::Value {
                    key: key.to_owned(),
                    value: value.clone(),
                    allowed,
                    source: source.clone(),
                }),
            }
        }
        last
    }

    /// The text of the highest layer that has the key.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        self.values.get(key)?.last().map(|(_, value)| value.as_str())
    }

    /// Where the value in force comes from.
    #[must_use]
    pub fn source(&self, key: &str) -> Source {
        self.values
            .get(key)
            .and_then(|layers| layers.last())
            .map_or(Source::Default, |(source, _)| source.clone())
    }

    /// Notes a fault found by comparing values.
    pub fn fault(&mut self, fault: Fault) {
        self.faults.push(fault);
    }

    /// Ends reading.
    ///
    /// # Errors
    /// [`ConfigError`] with all faults.
    pub fn finish(self) -> Result<(), ConfigError> {
        if self.faults.is_empty() { Ok(()) } else { Err(ConfigError { faults: self.faults }) }
    }

    fn known(&self, key: &str) -> Option<&'static str> {
        self.keys.iter().copied().find(|known| *known == key)
    }

    fn add(&mut self, key: &str, value: String, source: Source) {
        match self.known(key) {
            Some(key) => self.set(key, value, source),
            None => self.unknown(key, source),
        }
    }

    fn set(&mut self, key: &'static str, value: String, source: Source) {
        self.values.entry(key).or_default().push((source, value));
    }

    fn unknown(&mut self, key: &str, source: Source) {
        let allowed: Vec<String> = match source {
            Source::Environment(_) => self.keys.iter().map(|key| variable_name(key)).collect(),
            Source::Default | Source::File { .. } | Source::Flag(_) => {
                self.keys.iter().map(|&key| key.to_owned()).collect()
            }
        };
        let nearest = names::nearest(key, &allowed);
        self.faults.push(Fault::Unknown { key: key.to_owned(), nearest, allowed, source });
    }
}

fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => Some(number.to_string()),
        DeValue::Float(number) => Some(number.to_string()),
        DeValue::Boolean(value) => Some(value.to_string()),
        DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
    }
}

/// `true` or `false`.
///
/// # Errors
/// What is allowed.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("true or false".to_owned()),
    }
}

/// The text of the file in which a mounter is handed what must stand on no command line.
#[must_use]
pub fn secrets(database_url: &str) -> String {
    format!("database_url = {}\n", toml::Value::from(database_url))
}

/// What reads itself, and says on failure what is allowed.
///
/// # Errors
/// What is allowed.
pub fn parsed<T: FromStr<Err = &'static str>>(text: &str) -> Result<T, String> {
    text.parse().map_err(str::to_owned)
}

/// The path of a unix socket, with or without `unix://`.
///
/// # Errors
/// What is allowed.
pub fn socket(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text.strip_prefix("unix://").unwrap_or(text));
    if path.is_absolute() { Ok(path.to_owned()) } else { Err("unix:///absolute/path".to_owned()) }
}

/// `key=value,key=value`: where something is, in the words of a topology.
///
/// # Errors
/// What is allowed.
pub fn segments(text: &str) -> Result<BTreeMap<String, String>, String> {
    let pairs = text.split(',').filter(|pair| !pair.trim().is_empty());
    pairs
        .map(|pair| match pair.trim().split_once('=') {
            Some((key, value)) if !key.is_empty() && (1..=63).contains(&value.len()) => {
                Ok((key.to_owned(), value.to_owned()))
            }
            _ => Err("key=value,key=value with values of at most 63 bytes".to_owned()),
        })
        .collect()
}

#[cfg(test)]
mod tests;
