//! `tarbox checkpoint squash`.

use clap::Args;
use serde::Serialize;
use tarbox_checkpoints::{CheckpointError, between, find};

use crate::{
    cli::{
        context::Context,
        output::{self, Table, show},
    },
    failure::Failure,
};

#[derive(Debug, Args)]
#[command(
    after_long_help = "FROM and TO stay, and what they show stays the same; the way from one to the other becomes one step. Kept are snapshots of CSI, checkpoints with a tag, those where a clone or the tenant's own present begins, and lines of history that a restore has left.\n\nExamples:\n  tarbox checkpoint squash work monday friday"
)]
pub(in crate::cli) struct SquashCommand {
    /// Name or id of the tenant
    tenant: String,
    /// Name, tag or id of one checkpoint
    from: String,
    /// Name, tag or id of another one of the same line of history
    to: String,
}

#[derive(Debug, Serialize)]
struct Squashed {
    name: String,
    deleted: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<String>,
}

impl SquashCommand {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let (database, tenant) = context.tenant(&self.tenant).await?;
        let from = find(&*database, &tenant, &self.from).await?;
        let to = find(&*database, &tenant, &self.to).await?;
        let all = tarbox_checkpoints::list(&*database, tenant.id).await?;
        let mut done = Vec::new();
        for checkpoint in between(&all, &from, &to) {
            let deleting = tarbox_checkpoints::delete(&*database, &tenant, checkpoint);
            let kept = match output::while_waiting("removing history", deleting).await {
                Ok(()) => None,
                Err(error @ CheckpointError::InUse { .. }) => Some(error.to_string()),
                Err(error) => return Err(error.into()),
            };
            done.push(Squashed { name: checkpoint.layer.name.clone(), deleted: kept.is_none(), kept });
        }
        show(context.format, &done, |done| {
            let mut table = Table::new(&["CHECKPOINT", "DELETED", "WHY NOT"]);
            for one in done {
                let deleted = if one.deleted { "yes" } else { "no" };
                table.row(vec![
                    one.name.clone(),
                    deleted.to_owned(),
                    one.kept.clone().unwrap_or_else(|| "-".to_owned()),
                ]);
            }
            table
        })
    }
}
