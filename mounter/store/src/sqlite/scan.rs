//! What the check reads from SQLite.

use super::store::SqliteTenant;
use crate::{
    api::{CheckProgress, CheckReport},
    error::Result,
};

pub(super) async fn check(
    _tenant: &SqliteTenant,
    _repair: bool,
    _progress: &(dyn Fn(CheckProgress) + Send + Sync),
) -> Result<CheckReport> {
    Ok(CheckReport::default())
}
