//! `tarbox log`.

use std::collections::{HashMap, hash_map::Entry};

use clap::Args;
use serde::Serialize;
use tarbox_store::{Database, LayerRow, Tenant};
use tarbox_types::TenantId;

use super::{
    context::Context,
    output::{Table, bytes, moment, show},
};
use crate::failure::{Failure, OK};

#[derive(Debug, Args)]
#[command(
    after_long_help = "Shows the checkpoints that the tenant's present has come from, newest first, across clones: those of the tenant that it was cloned from are shown with its name. Lines of history that a restore has left are shown by `tarbox checkpoint list`.\n\nExamples:\n  tarbox log work\n  tarbox log work -n 5\n  tarbox log work -o json"
)]
pub(super) struct LogCommand {
    /// Name or id of the tenant
    tenant: String,

    /// Show at most so many checkpoints
    #[arg(short = 'n', long, value_name = "COUNT")]
    max_count: Option<usize>,
}

#[derive(Debug, Serialize)]
struct Line {
    /// Absent for the present.
    name: Option<String>,
    tags: Vec<String>,
    /// Whose checkpoint it is; nothing where that tenant is gone.
    tenant: Option<String>,
    sealed_at: Option<i64>,
    used_bytes: u64,
    used_inodes: u64,
}

impl LogCommand {
    pub(super) async fn run(self, context: &Context) -> Result<u8, Failure> {
        let (database, tenant) = context.tenant(&self.tenant).await?;
        let line = database.open_tenant(tenant.id).await?.layers().await?;
        let most = self.max_count.unwrap_or(usize::MAX);
        let entries = entries(&*database, &tenant, line.into_iter().take(most)).await?;
        show(context.format, &entries, |entries| table(&tenant.name, entries))?;
        Ok(OK)
    }
}

async fn entries(
    database: &dyn Database,
    tenant: &Tenant,
    line: impl Iterator<Item = LayerRow> + Send,
) -> Result<Vec<Line>, Failure> {
    let mut entries = vec![Line {
        name: None,
        tags: Vec::new(),
        tenant: Some(tenant.name.clone()),
        sealed_at: None,
        used_bytes: tenant.used_bytes,
        used_inodes: tenant.used_inodes,
    }];
    let mut owners: HashMap<TenantId, (Option<String>, Vec<tarbox_store::Tag>)> = HashMap::new();
    for layer in line {
        let (owner, tags) = match owners.entry(layer.tenant) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                let name = database.tenant(layer.tenant).await?.map(|owner| owner.name);
                unknown.insert((name, database.tags(layer.tenant).await?))
            }
        };
        let here = |tag: &&tarbox_store::Tag| (tag.branch, tag.layer) == (layer.branch, layer.layer);
        entries.push(Line {
            tags: tags.iter().filter(here).map(|tag| tag.name.clone()).collect(),
            tenant: owner.clone(),
            sealed_at: Some(layer.sealed_at),
            used_bytes: layer.used_bytes,
            used_inodes: layer.used_inodes,
            name: Some(layer.name),
        });
    }
    Ok(entries)
}

fn table(own: &str, entries: &[Line]) -> Table {
    let mut table = Table::new(&["CHECKPOINT", "MADE", "USED", "INODES", "OF", "TAGS"]);
    for entry in entries {
        let of = match entry.tenant.as_deref() {
            Some(name) if name == own => "",
            Some(name) => name,
            None => "a tenant that is gone",
        };
        table.row(vec![
            entry.name.clone().unwrap_or_else(|| tarbox_checkpoints::HEAD.to_owned()),
            entry.sealed_at.map_or_else(|| "(now)".to_owned(), moment),
            bytes(entry.used_bytes),
            entry.used_inodes.to_string(),
            of.to_owned(),
            entry.tags.join(" "),
        ]);
    }
    table
}
