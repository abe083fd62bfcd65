//! Results for people, as a table, and for programs, as JSON.

use std::io::{self, Write};

use clap::ValueEnum;
use indicatif::{BinaryBytes, ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::failure::Failure;

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// JSON, for programs.
    Json,
}

/// Rows with a heading, each column as wide as its widest cell.
#[derive(Clone, Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    #[must_use]
    pub fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(ToString::to_string).collect()] }
    }

    /// A table without headings: names and values.
    #[must_use]
    pub fn of_pairs(pairs: Vec<(&str, String)>) -> Self {
        Self { rows: pairs.into_iter().map(|(name, value)| vec![format!("{name}:"), value]).collect() }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
        };
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:<width$}  "));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

impl Format {
    /// Prints `value` as JSON, or the table made of it.
    ///
    /// # Errors
    /// As write(2); a reader that went away is none.
    pub fn print<T: Serialize>(self, value: &T, table: impl FnOnce(&T) -> Table) -> Result<(), Failure> {
        let text = match self {
            Self::Table => table(value).to_string(),
            Self::Json => format!("{}\n", json(value)?),
        };
        print(&text)
    }
}

fn json<T: Serialize>(value: &T) -> Result<String, Failure> {
    serde_json::to_string_pretty(value)
        .map_err(|error| Failure::Io { doing: "write JSON".to_owned(), source: error.into() })
}

/// Writes to standard output.
///
/// # Errors
/// As write(2); a reader that went away is none.
pub fn print(text: &str) -> Result<(), Failure> {
    match io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::Io { doing: "write to standard output".to_owned(), source: error })
        }
        _ => Ok(()),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_do_not_end_in_blanks() {
        let mut table = Table::new(&["NAME", "USED"]);
        table.row(vec!["a-long-name".into(), "1".into()]);
        table.row(vec!["b".into(), String::new()]);
        assert_eq!(table.to_string(), "NAME         USED\na-long-name  1\nb\n");
    }
}
