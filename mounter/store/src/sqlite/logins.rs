//! There are no logins: files have owners.

use async_trait::async_trait;
use tarbox_types::TenantId;

use super::database::SqliteDatabase;
use crate::{
    error::Result,
    logins::{Isolation, Logins, Made},
};

#[async_trait]
impl Logins for SqliteDatabase {
    async fn isolation(&self) -> Result<Isolation> {
        Ok(Isolation::Files)
    }

    async fn make_login(&self, _: TenantId, _: &str) -> Result<Made> {
        Ok(Made::Impossible("an SQLite database has no logins: whose the files are decides".to_owned()))
    }

    async fn remove_login(&self, _: TenantId, _: &str) -> Result<()> {
        Ok(())
    }
}
