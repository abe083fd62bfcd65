//! Results for people, as a table, and for programs, as JSON.

use std::{
    io::{self, Write},
    path::Path,
};

use clap::ValueEnum;
use serde::Serialize;

use crate::failure::AgentError;

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people.
    Table,
    /// JSON, for programs.
    Json,
}

/// Rows, the first with headings, each column as wide as its widest cell.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

impl Format {
    /// Prints `value` as JSON, or the rows made of it.
    ///
    /// # Errors
    /// As write(2); a reader that went away is none.
    pub(super) fn print<T: Serialize>(
        self,
        value: &T,
        rows: impl FnOnce(&T) -> Vec<Vec<String>>,
    ) -> Result<(), AgentError> {
        let failed = || AgentError::io("write to", Path::new("standard output"));
        let text = match self {
            Self::Table => table(&rows(value)),
            Self::Json => {
                let json = serde_json::to_string_pretty(value).map_err(|error| failed()(error.into()))?;
                format!("{json}\n")
            }
        };
        match io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(failed()(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_do_not_end_in_blanks() {
        let row = |a: &str, b: &str| vec![a.to_owned(), b.to_owned()];
        let text = table(&[row("NAME", "USED"), row("a-long-name", "1"), row("b", "")]);
        assert_eq!(text, "NAME         USED\na-long-name  1\nb\n");
    }
}
