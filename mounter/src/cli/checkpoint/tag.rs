//! `tarbox checkpoint tag`.

use clap::Args;
use serde::Serialize;
use tarbox_checkpoints::{CheckpointError, check_name, find};
use tarbox_store::Database;

use crate::{
    cli::{
        context::Context,
        output::{Table, show},
    },
    failure::Failure,
};

#[derive(Debug, Args)]
#[command(
    after_long_help = "A tag can be given wherever a checkpoint is named. It is unique in the tenant; one that there is already is moved.\n\nExamples:\n  tarbox checkpoint tag work good before-tool\n  tarbox checkpoint tag work good --delete"
)]
pub(in crate::cli) struct TagCommand {
    /// Name or id of the tenant
    tenant: String,

    /// The tag
    tag: String,

    /// Name, tag or id of the checkpoint that gets it
    #[arg(required_unless_present = "delete", conflicts_with = "delete")]
    checkpoint: Option<String>,

    /// Take the tag away; the checkpoint stays
    #[arg(short, long)]
    delete: bool,
}

#[derive(Debug, Serialize)]
struct Tagged {
    tag: String,
    /// Absent where the tag was taken away.
    checkpoint: Option<String>,
}

impl TagCommand {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let (database, tenant) = context.tenant(&self.tenant).await?;
        let checkpoint = match &self.checkpoint {
            Some(name) => {
                check_name("tag", &self.tag)?;
                if database.open_tenant(tenant.id).await?.layer_named(&self.tag).await?.is_some() {
                    let taken = CheckpointError::Taken { what: "checkpoint", name: self.tag };
                    return Err(taken.into());
                }
                let layer = find(&*database, &tenant, name).await?.layer;
                database.tag(tenant.id, &self.tag, layer.branch, layer.layer).await?;
                Some(layer.name)
            }
            None => {
                untag(&*database, &tenant, &self.tag).await?;
                None
            }
        };
        show(context.format, &Tagged { tag: self.tag, checkpoint }, |tagged| {
            Table::of_pairs(vec![
                ("Tag", tagged.tag.clone()),
                ("Checkpoint", tagged.checkpoint.clone().unwrap_or_else(|| "- (taken away)".to_owned())),
            ])
        })
    }
}

async fn untag(database: &dyn Database, tenant: &tarbox_store::Tenant, tag: &str) -> Result<(), Failure> {
    if database.untag(tenant.id, tag).await? {
        return Ok(());
    }
    Err(Failure::refused(
        tarbox_types::ErrorKind::NotFound,
        format!(
            "tenant `{}` has no tag `{tag}`: `tarbox checkpoint list` shows those there are",
            tenant.name
        ),
    ))
}
