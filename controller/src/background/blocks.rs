//! Blocks, rows and history that nothing refers to: family by family.

use std::collections::HashSet;

use tarbox_store::{Database, StoreError, Tenant, all};

use super::of_one;
use crate::failure::Result;

/// Batches of one family before the others have their turn.
const BATCHES: usize = 200;

/// Collects in every family, as long as `leads` says so.
pub(super) async fn collect<L: Future<Output = Result<bool>>>(
    database: &dyn Database,
    leads: impl Fn() -> L,
) -> Result<()> {
    for tenant in a_tenant_of_each_family(database).await? {
        if !leads().await? {
            return Ok(());
        }
        of_one(tenant.id, collect_one(database, &tenant).await)?;
    }
    Ok(())
}

/// One living tenant of each family.
pub(super) async fn a_tenant_of_each_family(database: &dyn Database) -> Result<Vec<Tenant>> {
    let tenants =
        all(|tenant: &Tenant| tenant.id, |after, limit| database.live_tenants(after, limit)).await?;
    let mut seen = HashSet::new();
    Ok(tenants.into_iter().filter(|tenant| seen.insert(tenant.family)).collect())
}

async fn collect_one(database: &dyn Database, tenant: &Tenant) -> Result<()> {
    let store = match database.open_tenant(tenant.id).await {
        Err(StoreError::NoTenant(_)) => return Ok(()),
        store => store?,
    };
    let mut gone = 0;
    for _ in 0..BATCHES {
        match store.collect().await? {
            0 => break,
            count => gone += count,
        }
    }
    if gone > 0 {
        tracing::info!(family = tenant.family, gone, "what nothing referred to is gone");
    }
    Ok(())
}
