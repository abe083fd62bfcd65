//! What every command works with: the configuration, the database, the way to print.

use std::sync::Arc;

use tarbox_runtime::telemetry::{self, LogLevel, LogTarget};
use tarbox_store::{Database, Tenant};

use super::{Global, output::Format};
use crate::{
    admission,
    failure::Failure,
    settings::{Flags, Settings},
};

/// The configuration in force and how to print.
#[derive(Debug)]
pub struct Context {
    /// Configuration.
    pub settings: Settings,
    /// How results are printed.
    pub format: Format,
}

impl Context {
    pub(super) fn new(global: Global, mut flags: Flags) -> Result<Self, Failure> {
        flags.extend([
            ("config", global.config),
            ("databaseURL", global.database_url),
            ("stateDir", global.state_dir),
            ("logLevel", global.log_level),
        ]);
        let settings = Settings::load(flags)?;
        let level = settings.log_level.clone().unwrap_or_else(LogLevel::warn);
        telemetry::start(&level, settings.log_format, &LogTarget::Stderr)
            .map_err(|source| Failure::Io { doing: "start logging".to_owned(), source })?;
        Ok(Self { settings, format: global.output })
    }

    /// Opens the database.
    ///
    /// # Errors
    /// As [`tarbox_store::open`].
    pub async fn database(&self) -> Result<Arc<dyn Database>, Failure> {
        Ok(tarbox_store::open(&self.settings.database_url).await?)
    }

    /// Opens the database and finds a tenant by its name or id.
    ///
    /// # Errors
    /// As [`Self::database`]; where there is no such tenant.
    pub async fn tenant(&self, name_or_id: &str) -> Result<(Arc<dyn Database>, Tenant), Failure> {
        let database = self.database().await?;
        let tenant = admission::named(&database, name_or_id).await?;
        Ok((database, tenant))
    }
}
