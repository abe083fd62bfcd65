//! Where a user's data, configuration and state lie when nothing else is said.

use std::path::PathBuf;

use etcetera::{BaseStrategy, base_strategy::Xdg};

/// A user without a home directory: nowhere to keep anything by default.
#[derive(Debug, thiserror::Error)]
#[error("this user has no home directory; set HOME, or name the place explicitly")]
pub struct NoHome;

fn xdg() -> Result<Xdg, NoHome> {
    Xdg::new().map_err(|_| NoHome)
}

/// `$XDG_DATA_HOME/tarbox`, by default `~/.local/share/tarbox`.
///
/// # Errors
/// [`NoHome`].
pub fn data() -> Result<PathBuf, NoHome> {
    Ok(xdg()?.data_dir().join("tarbox"))
}

/// `$XDG_CONFIG_HOME/tarbox/config.toml`, by default `~/.config/tarbox/config.toml`.
///
/// # Errors
/// [`NoHome`].
pub fn config_file() -> Result<PathBuf, NoHome> {
    Ok(xdg()?.config_dir().join("tarbox/config.toml"))
}

/// `$XDG_RUNTIME_DIR`, where it is set and absolute.
#[must_use]
pub fn runtime() -> Option<PathBuf> {
    std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute())
}
