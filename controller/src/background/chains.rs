//! Chains of branches, of clones of clones and of heads that went back often: shortened, family by family.

use std::collections::{BTreeMap, HashMap};

use tarbox_store::{Database, Flattened, Flattening, StoreError, Tenant};
use tarbox_types::FamilyId;
use tokio::time::Instant;

use super::{SLICE, blocks::a_tenant_of_each_family, of_one};
use crate::failure::Result;

/// What this leader has begun, by database: another one begins it anew.
#[derive(Debug, Default)]
pub(super) struct Chains {
    begun: BTreeMap<String, HashMap<FamilyId, Flattening>>,
}

impl Chains {
    /// What was begun while another leads may be done.
    pub(super) fn forget(&mut self, database: &dyn Database) {
        self.begun.remove(&database.display_url());
    }

    /// Goes on in every family, as long as `leads` says so.
    pub(super) async fn flatten<L: Future<Output = Result<bool>>>(
        &mut self,
        database: &dyn Database,
        leads: impl Fn() -> L,
    ) -> Result<()> {
        let begun = self.begun.entry(database.display_url()).or_default();
        for tenant in a_tenant_of_each_family(database).await? {
            if !leads().await? {
                return Ok(());
            }
            let from = begun.remove(&tenant.family);
            let until = Instant::now() + SLICE;
            match flatten_one(database, &tenant, from, until).await {
                Ok(Some(at)) => drop(begun.insert(tenant.family, at)),
                Ok(None) => {}
                Err(error) => of_one(tenant.id, Err(error))?,
            }
        }
        Ok(())
    }
}

/// Steps of one family until the time is over: where it is then, if that is in the middle of a link.
async fn flatten_one(
    database: &dyn Database,
    tenant: &Tenant,
    mut from: Option<Flattening>,
    until: Instant,
) -> Result<Option<Flattening>> {
    let store = match database.open_tenant(tenant.id).await {
        Err(StoreError::NoTenant(_)) => return Ok(None),
        store => store?,
    };
    let mut gone = 0u64;
    while Instant::now() < until {
        match store.flatten(from.take()).await? {
            Flattened::Nothing => break,
            Flattened::More(at) => from = Some(at),
            Flattened::Done => gone += 1,
        }
    }
    if gone > 0 {
        tracing::info!(family = tenant.family, gone, "chains of branches are shorter");
    }
    Ok(from)
}
