//! `tarbox-keeper`: the parent of the mounters on a node.

use std::env;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tarbox_keeper::{Keeper, KeeperError, Server};

const HELP: &str = "\
Holds the descriptors of mounted tenants, and is the parent of the processes that serve them.

Usage: tarbox-keeper --socket PATH

Options:
      --socket PATH  Where it listens (unix socket, SOCK_SEQPACKET); root and its own user may connect
  -h, --help         Print help
  -V, --version      Print version

SIGTERM is passed on to the children, which commit what they have and go on; without children it ends the keeper.
Exit codes: 0 ended, 1 failed, 64 wrong usage.
";

/// What the command line says.
#[derive(Debug, PartialEq)]
enum Wanted {
    Help,
    Version,
    Serve(PathBuf),
}

fn main() -> ExitCode {
    match wanted(env::args_os().skip(1)) {
        Ok(Wanted::Help) => print!("{HELP}"),
        Ok(Wanted::Version) => println!("tarbox-keeper {}", env!("CARGO_PKG_VERSION")),
        Ok(Wanted::Serve(socket)) => {
            if let Err(error) = serve(&socket) {
                eprintln!("tarbox-keeper: {error}");
                return ExitCode::from(1);
            }
        }
        Err(wrong) => {
            eprintln!("tarbox-keeper: {wrong}\n\n{HELP}");
            return ExitCode::from(64);
        }
    }
    ExitCode::SUCCESS
}

fn wanted(mut arguments: impl Iterator<Item = OsString>) -> Result<Wanted, String> {
    let mut socket = None;
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("-h" | "--help") => return Ok(Wanted::Help),
            Some("-V" | "--version") => return Ok(Wanted::Version),
            Some("--socket") => {
                let path = arguments.next().ok_or("--socket needs a path")?;
                socket = Some(PathBuf::from(path));
            }
            _ => return Err(format!("unknown argument `{}`", argument.display())),
        }
    }
    socket.map(Wanted::Serve).ok_or_else(|| "--socket PATH is missing".to_owned())
}

fn serve(socket: &std::path::Path) -> Result<(), KeeperError> {
    raise_descriptor_limit();
    let mut server = Server::listen(socket, Keeper::new(report))?;
    server.heed_sigterm()?;
    // A volume that it was started in could not be unmounted.
    env::set_current_dir("/").map_err(|source| KeeperError::Io { doing: "go to /".to_owned(), source })?;
    server.run()
}

/// A line that cannot be written (the disk is full, nobody reads) is no reason to end: whom it keeps alive would end with it.
fn report(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "tarbox-keeper: {line}");
}

/// A tenant takes about ten descriptors: hundreds of tenants do not fit in the usual 1024.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    // Where it cannot be raised it stays as it is; what does not fit is refused then.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Wanted, String> {
        wanted(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn the_command_line_is_read_and_its_faults_are_named() {
        assert_eq!(read("--socket /run/k"), Ok(Wanted::Serve("/run/k".into())));
        assert_eq!(read("--socket /run/k --help"), Ok(Wanted::Help));
        assert_eq!(read("-V"), Ok(Wanted::Version));
        assert_eq!(read(""), Err("--socket PATH is missing".into()));
        assert_eq!(read("--socket"), Err("--socket needs a path".into()));
        assert_eq!(read("--sock /run/k"), Err("unknown argument `--sock`".into()));
    }
}
