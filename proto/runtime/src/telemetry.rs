//! Logs: readable on a terminal, JSON for machines; on standard error, or in a file of bounded size.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use opentelemetry_sdk::trace::Tracer;
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{LevelFilter, filter_fn},
    fmt::MakeWriter,
    layer::SubscriberExt,
    reload,
    util::SubscriberInitExt,
};

use crate::traces::{self, Origin, OtlpEndpoint};

/// How the level of this process's log is changed.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// How lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("text or json"),
        }
    }
}

/// Which messages are written: `error`, `warn`, `info`, `debug`, `trace`, or with targets: `info,tarbox_fs=debug`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLevel(String);

impl FromStr for LogLevel {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const ALLOWED: &str =
            "off, error, warn, info, debug, trace, or a list with targets such as info,tarbox_fs=debug";
        let levels = ["off", "error", "warn", "info", "debug", "trace"];
        // EnvFilter would take an unknown word for a target and then log everything of it.
        let known = |part: &str| {
            levels.contains(
                &part.rsplit_once('=').map_or(part, |(_, level)| level).to_ascii_lowercase().as_str(),
            )
        };
        if !text.split(',').map(str::trim).all(known) || EnvFilter::try_new(text).is_err() {
            return Err(ALLOWED);
        }
        Ok(Self(text.to_owned()))
    }
}

impl std::fmt::Display for LogLevel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Default for LogLevel {
    fn default() -> Self {
        Self("info".to_owned())
    }
}

impl LogLevel {
    /// What a mounter says by default: not what it agreed with the kernel.
    #[must_use]
    pub fn of_mounter() -> Self {
        Self("info,tarbox_engine=warn".to_owned())
    }

    /// Only warnings and errors.
    #[must_use]
    pub fn warn() -> Self {
        Self("warn".to_owned())
    }
}

/// Where lines go.
#[derive(Clone, Debug)]
pub enum LogTarget {
    /// Standard error.
    Stderr,
    /// This file; past 1 MiB it becomes `<file>.1`, of which there is one.
    File(PathBuf),
}

/// Starts logging. Later calls change nothing.
///
/// # Errors
/// Where the log file cannot be opened.
pub fn start(level: &LogLevel, format: LogFormat, target: &LogTarget) -> io::Result<()> {
    start_with(level, format, target, None)
}

/// Starts logging and, where somebody takes them, sending traces: then it has to be called within a runtime.
///
/// # Errors
/// Where the log file cannot be opened.
pub fn start_with(
    level: &LogLevel,
    format: LogFormat,
    target: &LogTarget,
    traces: Option<(&OtlpEndpoint, Origin<'_>)>,
) -> io::Result<()> {
    let filter = EnvFilter::new(&level.0);
    let tracer = traces.map(|(endpoint, origin)| traces::tracer(endpoint, origin)).transpose();
    let tracer = tracer.map_err(io::Error::other)?;
    match target {
        LogTarget::Stderr => install(filter, format, io::stderr().is_terminal(), io::stderr, tracer),
        LogTarget::File(path) => install(filter, format, false, BoundedFile::open(path)?, tracer),
    }
    Ok(())
}

fn install<W>(filter: EnvFilter, format: LogFormat, colours: bool, writer: W, tracer: Option<Tracer>)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(filter);
    let lines = tracing_subscriber::fmt::layer().with_ansi(colours).with_writer(writer);
    let lines = match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    // Spans of our own, whatever is logged: sending them makes spans in the libraries that do it.
    let ours = filter_fn(|metadata| metadata.is_span() && metadata.target().starts_with("tarbox"))
        .with_max_level_hint(LevelFilter::DEBUG);
    let sent = tracer.map(|tracer| tracing_opentelemetry::layer().with_tracer(tracer).with_filter(ours));
    // A second subscriber is refused: the first one goes on, which is what a test wants.
    let installed = tracing_subscriber::registry().with(lines.with_filter(filter)).with(sent).try_init();
    if installed.is_ok() {
        let _ = FILTER.set(handle);
    }
}

/// Another level from now on; false where nothing is logged by [`start`].
pub fn set_level(level: &LogLevel) -> bool {
    FILTER.get().is_some_and(|filter| filter.reload(EnvFilter::new(&level.0)).is_ok())
}

const FILE_BYTES_MAX: u64 = 1 << 20;

/// A log file that cannot grow without bound: the state directory lies in memory by default.
#[derive(Clone, Debug)]
pub struct BoundedFile {
    inner: Arc<Mutex<Open>>,
}

#[derive(Debug)]
struct Open {
    path: PathBuf,
    file: File,
    bytes: u64,
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

impl BoundedFile {
    /// Opens the file for appending.
    ///
    /// # Errors
    /// As open(2).
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = append(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { inner: Arc::new(Mutex::new(Open { path: path.to_owned(), file, bytes })) })
    }
}

impl Write for BoundedFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut open = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if open.bytes > FILE_BYTES_MAX {
            let mut old = open.path.clone().into_os_string();
            old.push(".1");
            fs::rename(&open.path, old)?;
            open.file = append(&open.path)?;
            open.bytes = 0;
        }
        open.file.write_all(line)?;
        open.bytes += line.len() as u64;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for BoundedFile {
    type Writer = Self;

    fn make_writer(&'w self) -> Self::Writer {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_level_is_refused() {
        for bad in ["", "verbose", "info,tarbox_fs=loud", "infos"] {
            assert!(bad.parse::<LogLevel>().is_err(), "{bad}");
        }
        for good in ["info", "off", "warn,tarbox_fs=debug", "DEBUG"] {
            assert!(good.parse::<LogLevel>().is_ok(), "{good}");
        }
    }

    #[test]
    fn a_log_file_keeps_one_predecessor_and_stays_bounded() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("log");
        let mut log = BoundedFile::open(&path).expect("open");
        let line = [b'x'; 64 << 10];
        for _ in 0..64 {
            log.write_all(&line).expect("write");
        }
        let bound = FILE_BYTES_MAX + 2 * line.len() as u64;
        assert!(fs::metadata(&path).expect("log").len() <= bound);
        assert!(fs::metadata(directory.path().join("log.1")).expect("log.1").len() <= bound);
        assert_eq!(fs::read_dir(directory.path()).expect("list").count(), 2);
    }
}
