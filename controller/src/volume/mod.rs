//! Volumes: tenants, and the requests that they were made for.

mod capacity;
mod create;
mod delete;
mod description;
mod expand;
mod list;
mod modify;
mod publish;
mod tenant_name;

pub(crate) use capacity::available;
pub(crate) use create::{Create, create};
pub(crate) use delete::delete;
pub(crate) use description::{Description, Source};
pub(crate) use expand::expand;
pub(crate) use list::{Page, find, page};
pub(crate) use modify::{Modify, modify};
pub(crate) use publish::{nodes, publish, unpublish};
pub(crate) use tenant_name::namespace;

use tarbox_store::{Database, Tenant, TenantState};
use tarbox_types::TenantId;

use crate::failure::{ControllerError, Result};

/// A volume, with what was asked for where it was made by a request.
#[derive(Clone, Debug)]
pub(crate) struct Volume {
    /// Its tenant.
    pub(crate) tenant: Tenant,
    /// Nothing where the tenant was made on a command line.
    pub(crate) description: Description,
}

/// The tenant of a volume that can be used.
async fn live(database: &dyn Database, id: TenantId) -> Result<Tenant> {
    let found = database.tenant(id).await?.filter(|tenant| tenant.state == TenantState::Live);
    found.ok_or_else(|| ControllerError::NoVolume(id.to_string()))
}
