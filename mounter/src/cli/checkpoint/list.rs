//! `tarbox checkpoint list|show|delete`.

use clap::Args;
use serde::Serialize;
use tarbox_checkpoints::{beginning_at, find};

use super::CheckpointView;
use crate::{
    cli::{
        context::Context,
        output::{self, Table, bytes, moment, show},
    },
    failure::Failure,
};

#[derive(Debug, Args)]
pub(in crate::cli) struct ShowCommand {
    /// Name or id of the tenant
    tenant: String,
    /// Name, tag or id of the checkpoint
    checkpoint: String,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct DeleteCommand {
    /// Name or id of the tenant
    tenant: String,
    /// Names, tags or ids of checkpoints
    #[arg(required = true, value_name = "CHECKPOINT")]
    checkpoints: Vec<String>,
}

pub(super) async fn list(context: &Context, tenant: &str) -> Result<(), Failure> {
    let (database, tenant) = context.tenant(tenant).await?;
    let all = tarbox_checkpoints::list(&*database, tenant.id).await?;
    let views: Vec<CheckpointView> = all.into_iter().map(CheckpointView::new).collect();
    show(context.format, &views, table_of_all)
}

fn table_of_all(all: &Vec<CheckpointView>) -> Table {
    let mut table = Table::new(&["", "NAME", "MADE", "USED", "INODES", "KIND", "TAGS"]);
    for one in all {
        table.row(vec![
            if one.in_line { "*" } else { "" }.to_owned(),
            one.name.clone(),
            moment(one.sealed_at),
            bytes(one.used_bytes),
            one.used_inodes.to_string(),
            one.kind.to_owned(),
            one.tags.join(" "),
        ]);
    }
    table
}

fn pairs(one: &CheckpointView) -> Vec<(&'static str, String)> {
    let or_none = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    vec![
        ("Name", one.name.clone()),
        ("Kind", one.kind.to_owned()),
        ("Id", one.id.map_or_else(|| "-".to_owned(), |id| id.to_string())),
        ("Tags", or_none(one.tags.join(" "))),
        ("Made", moment(one.sealed_at)),
        ("Used", bytes(one.used_bytes)),
        ("Inodes", one.used_inodes.to_string()),
        (
            "In line",
            if one.in_line { "yes" } else { "no: a restore has left this line of history" }.to_owned(),
        ),
    ]
}

pub(super) fn table_of_one(one: &CheckpointView) -> Table {
    Table::of_pairs(pairs(one))
}

#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    checkpoint: CheckpointView,
    /// Tenants whose present begins there: clones, or the tenant itself.
    begins_here: Vec<String>,
}

impl ShowCommand {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let (database, tenant) = context.tenant(&self.tenant).await?;
        let checkpoint = find(&*database, &tenant, &self.checkpoint).await?;
        let beginning = beginning_at(&*database, &checkpoint.layer).await?;
        let shown = Shown {
            checkpoint: CheckpointView::new(checkpoint),
            begins_here: beginning.into_iter().map(|tenant| tenant.name).collect(),
        };
        show(context.format, &shown, |shown| {
            let mut all = pairs(&shown.checkpoint);
            let begins = shown.begins_here.join(" ");
            all.push(("Begins here", if begins.is_empty() { "-".to_owned() } else { begins }));
            Table::of_pairs(all)
        })
    }
}

#[derive(Debug, Serialize)]
struct Deleted {
    name: String,
    deleted: bool,
}

impl DeleteCommand {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let (database, tenant) = context.tenant(&self.tenant).await?;
        // All are looked for first: a name that is wrong leaves everything as it is.
        let mut found = Vec::new();
        for name in &self.checkpoints {
            found.push(find(&*database, &tenant, name).await?);
        }
        let mut all = Vec::new();
        for checkpoint in found {
            let deleting = tarbox_checkpoints::delete(&*database, &tenant, &checkpoint);
            output::while_waiting("removing history", deleting).await?;
            all.push(Deleted { name: checkpoint.layer.name, deleted: true });
        }
        show(context.format, &all, |all| {
            let mut table = Table::new(&["DELETED"]);
            all.iter().for_each(|one| table.row(vec![one.name.clone()]));
            table
        })
    }
}
