//! What both programs do around their work: read the command line, report a failure, choose the exit code.

use std::{io::Write, process::ExitCode};

use clap::{Parser, error::ErrorKind};

use crate::failure::{FAILED, Failure, OK, USAGE};

/// Reads the command line as `C` and runs it.
pub fn main<C: Parser>(name: &str, run: impl FnOnce(C) -> Result<u8, Failure>) -> ExitCode {
    let command = match C::try_parse() {
        Ok(command) => command,
        Err(error) => return ExitCode::from(explain(&error)),
    };
    match run(command) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            // Nothing is left to be done where standard error is closed.
            let _ = writeln!(std::io::stderr(), "{name}: {}", failure.report());
            ExitCode::from(failure.exit_code())
        }
    }
}

fn explain(error: &clap::Error) -> u8 {
    let printed = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion if printed.is_ok() => OK,
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => FAILED,
        _ => USAGE,
    }
}
