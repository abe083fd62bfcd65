//! `tarbox kubectl install`: this executable under the plugin's name.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use clap::Args;

use super::PLUGIN;
use crate::{
    cli::output,
    failure::{Failure, OK},
};

#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  tarbox kubectl install ~/.local/bin")]
pub(super) struct InstallCommand {
    /// A directory of PATH
    directory: PathBuf,
}

impl InstallCommand {
    pub(super) fn run(self) -> Result<u8, Failure> {
        let own = env::current_exe().map_err(Failure::io("look for", Path::new("this executable")))?;
        let place = self.directory.join(PLUGIN);
        // Beside it, then in its place: one that runs is not written to.
        let fresh = self.directory.join(format!(".{PLUGIN}.{}", std::process::id()));
        fs::copy(&own, &fresh).map_err(Failure::io("write", &fresh))?;
        fs::rename(&fresh, &place).map_err(Failure::io("write", &place))?;
        output::print(&format!("{}\n", place.display()))?;
        Ok(OK)
    }
}
