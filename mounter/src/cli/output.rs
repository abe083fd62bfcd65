//! Results for people: quantities, limits, progress. Tables and JSON are everybody's: [`tarbox_runtime::output`].

use std::time::Duration;

use indicatif::{BinaryBytes, ProgressBar, ProgressStyle};
use serde::Serialize;
use tarbox_runtime::output;
pub use tarbox_runtime::output::{Format, Table};

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

/// A moment as people read it: `2026-11-22 00:18:16Z`.
#[must_use]
pub fn moment(seconds: i64) -> String {
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Counted from the first of March of a year 0 that never was: leap days come last. Source: Hinnant, "chrono-compatible
    // low-level date algorithms", civil_from_days.
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march + 2) / 5 + 1;
    let month = if march < 10 { march + 3 } else { march - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z")
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

#[cfg(test)]
mod tests {
    use super::moment;

    #[test]
    fn moments_are_as_date_prints_them() {
        // Source: `date -u -d @N`.
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00Z"),
            (951_782_399, "2000-02-28 23:59:59Z"),
            (951_868_799, "2000-02-29 23:59:59Z"),
            (1_795_306_696, "2026-11-22 00:18:16Z"),
            (4_107_542_400, "2100-03-01 00:00:00Z"),
            (-1, "1969-12-31 23:59:59Z"),
        ] {
            assert_eq!(moment(seconds), text);
        }
    }
}
