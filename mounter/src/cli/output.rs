//! Results for people: quantities, limits, progress. Tables and JSON are everybody's: [`tarbox_runtime::output`].

use std::time::Duration;

use indicatif::{BinaryBytes, ProgressBar, ProgressStyle};
use serde::Serialize;
use tarbox_runtime::output;
pub use tarbox_runtime::output::{Format, Table};
pub use tarbox_types::moment;

use crate::failure::Failure;

/// Prints `value` as JSON, or the table made of it.
///
/// # Errors
/// As write(2); a reader that went away is none.
pub fn show<T: Serialize>(format: Format, value: &T, table: impl FnOnce(&T) -> Table) -> Result<(), Failure> {
    format.print(value, table).map_err(failed)
}

/// Writes to standard output.
///
/// # Errors
/// As write(2); a reader that went away is none.
pub fn print(text: &str) -> Result<(), Failure> {
    output::print(text).map_err(failed)
}

fn failed(source: std::io::Error) -> Failure {
    Failure::Io { doing: "write to standard output".to_owned(), source }
}

/// A limit: `None` where there is none.
#[must_use]
pub fn limit(value: u64) -> Option<u64> {
    (value != 0).then_some(value)
}

/// Bytes as people read them: `1.50 GiB`.
#[must_use]
pub fn bytes(value: u64) -> String {
    BinaryBytes(value).to_string()
}

/// A limit in bytes as people read it.
#[must_use]
pub fn bytes_limit(value: Option<u64>) -> String {
    value.map_or_else(|| "unlimited".to_owned(), bytes)
}

/// A limit in numbers as people read it.
#[must_use]
pub fn count_limit(value: Option<u64>) -> String {
    value.map_or_else(|| "unlimited".to_owned(), |count| count.to_string())
}

/// The share of a limit that is used.
#[must_use]
pub fn share(used: u64, limit: Option<u64>) -> String {
    limit.map_or_else(|| "-".to_owned(), |limit| format!("{:.0}%", used as f64 * 100.0 / limit as f64))
}

/// A bar on standard error; nothing where that is not a terminal.
#[must_use]
pub fn bar(template: &str, total: Option<u64>) -> ProgressBar {
    let bar = total.map_or_else(ProgressBar::no_length, ProgressBar::new);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// Awaits `work`; what it is about stands on a terminal meanwhile.
pub async fn while_waiting<T>(about: &str, work: impl Future<Output = T>) -> T {
    let bar = bar(&format!("{{spinner}} {about}, {{elapsed}}"), None);
    bar.enable_steady_tick(Duration::from_millis(200));
    let done = work.await;
    bar.finish_and_clear();
    done
}
