//! How our programs begin and end, and what they run on.

use std::{
    io::{self, Write},
    net::SocketAddr,
    process::ExitCode,
};

use clap::{Parser, error::ErrorKind};

/// Success.
pub const OK: u8 = 0;
/// Anything that is not one of the others.
pub const FAILED: u8 = 1;
/// The command line is wrong (EX_USAGE of sysexits.h).
pub const USAGE: u8 = 64;
/// The configuration is wrong (EX_CONFIG).
pub const CONFIGURATION: u8 = 78;

/// Why a program ends without success.
pub trait Failing {
    /// The exit code that says so.
    fn exit_code(&self) -> u8;

    /// What a user reads.
    fn explanation(&self) -> String;
}

/// Reads the command line as `C` and runs it; a failure is reported under the program's name.
pub fn main<C: Parser, F: Failing>(name: &str, run: impl FnOnce(C) -> Result<u8, F>) -> ExitCode {
    let command = match C::try_parse() {
        Ok(command) => command,
        Err(error) => return ExitCode::from(explain(&error)),
    };
    match run(command) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            // Nothing is left to be done where standard error is closed.
            let _ = writeln!(io::stderr(), "{name}: {}", failure.explanation());
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

/// Says on standard output that a service has begun, and where its metrics are.
pub fn tell(serving: &str, metrics: Option<SocketAddr>) {
    let mut out = io::stdout().lock();
    // Whoever started us may have closed the pipe: no reason not to serve.
    let _ = writeln!(out, "{serving}")
        .and_then(|()| metrics.map_or(Ok(()), |address| writeln!(out, "metrics at http://{address}/metrics")))
        .and_then(|()| out.flush());
}

/// Runs a service's work to its end.
///
/// # Errors
/// Where the runtime cannot be started.
pub fn block_on<T>(work: impl Future<Output = T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(work);
    // A thread that hangs in a system call on a foreign mount must not keep the process.
    runtime.shutdown_background();
    Ok(outcome)
}
