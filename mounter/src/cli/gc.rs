//! `tarbox gc`.

use std::collections::HashSet;

use clap::Args;
use serde::Serialize;
use tarbox_checkpoints::{Orphan, orphans};
use tarbox_store::{Database, Flattened, TenantState};

use super::{
    context::Context,
    output::{self, Table, show},
};
use crate::failure::{Failure, OK};

#[derive(Debug, Args)]
#[command(
    after_long_help = "Looks through the whole database for layers that are kept for nobody, records and tags of layers that are gone, and blocks that no content has, and removes them; then collects what deleted checkpoints and files have left, and shortens chains of clones of clones. Where a controller works, its leader does all that by itself. Nothing that is mounted is disturbed.\n\nExamples:\n  tarbox gc --dry-run\n  tarbox gc -o json"
)]
pub(super) struct GcCommand {
    /// Only show what would be removed
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Serialize)]
struct Found {
    kind: &'static str,
    what: String,
    removed: bool,
}

impl GcCommand {
    pub(super) async fn run(self, context: &Context) -> Result<u8, Failure> {
        let database = context.database().await?;
        let found = output::while_waiting("looking", orphans(&*database)).await?;
        let mut all = Vec::with_capacity(found.len());
        for orphan in &found {
            all.push(self.treat(&*database, orphan).await?);
        }
        if !self.dry_run {
            output::while_waiting("collecting", collect(&*database)).await?;
        }
        show(context.format, &all, |all| {
            let mut table = Table::new(&["KIND", "WHAT", "REMOVED"]);
            for one in all {
                let removed = if one.removed { "yes" } else { "no" };
                table.row(vec![one.kind.to_owned(), one.what.clone(), removed.to_owned()]);
            }
            table
        })?;
        Ok(OK)
    }

    async fn treat(&self, database: &dyn Database, orphan: &Orphan) -> Result<Found, Failure> {
        let (kind, what) = orphan.describe();
        let removed = !self.dry_run && tarbox_checkpoints::remove(database, orphan).await?;
        Ok(Found { kind, what, removed })
    }
}

/// What otherwise happens in the background, of each family.
async fn collect(database: &dyn Database) -> Result<(), Failure> {
    let mut seen = HashSet::new();
    for tenant in database.tenants().await? {
        if tenant.state != TenantState::Live || !seen.insert(tenant.family) {
            continue;
        }
        let store = database.open_tenant(tenant.id).await?;
        while store.collect().await? > 0 {}
        let mut from = None;
        loop {
            from = match store.flatten(from).await? {
                Flattened::Nothing => break,
                Flattened::More(at) => Some(at),
                Flattened::Done => None,
            };
        }
    }
    Ok(())
}
