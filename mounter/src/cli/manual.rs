//! `tarbox completions` and `tarbox man`.

use std::path::PathBuf;

use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::Shell;

use super::{Cli, output};
use crate::{
    failure::{Failure, OK},
    mount_command::MountCommand,
};

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Program {
    /// The command line `tarbox`.
    Tarbox,
    /// `tarbox-mount`.
    TarboxMount,
}

impl Program {
    fn command(self) -> clap::Command {
        match self {
            Self::Tarbox => Cli::command(),
            Self::TarboxMount => MountCommand::command(),
        }
    }
}

#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  tarbox completions bash > ~/.local/share/bash-completion/completions/tarbox\n  tarbox completions zsh --program tarbox-mount > ~/.zfunc/_tarbox-mount"
)]
pub(super) struct CompletionsCommand {
    /// Shell
    shell: Shell,
    /// Program to complete
    #[arg(long, default_value = "tarbox")]
    program: Program,
}

impl CompletionsCommand {
    pub(super) fn run(&self) -> Result<u8, Failure> {
        let mut command = self.program.command();
        let name = command.get_name().to_owned();
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, name, &mut script);
        output::print(&String::from_utf8_lossy(&script))?;
        Ok(OK)
    }
}

#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  tarbox man | man -l -\n  tarbox man --directory /usr/local/share/man/man1"
)]
pub(super) struct ManCommand {
    /// Program whose page is printed
    #[arg(long, default_value = "tarbox")]
    program: Program,
    /// Write the pages of both programs and of every command into this directory instead
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
}

impl ManCommand {
    pub(super) fn run(&self) -> Result<u8, Failure> {
        if let Some(directory) = &self.directory {
            for command in [Cli::command(), MountCommand::command()] {
                clap_mangen::generate_to(command, directory)
                    .map_err(Failure::io("write manual pages into", directory))?;
            }
            return Ok(OK);
        }
        let mut page = Vec::new();
        clap_mangen::Man::new(self.program.command())
            .render(&mut page)
            .map_err(|source| Failure::Io { doing: "write the manual page".to_owned(), source })?;
        output::print(&String::from_utf8_lossy(&page))?;
        Ok(OK)
    }
}
