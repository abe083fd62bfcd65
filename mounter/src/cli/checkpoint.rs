//! `tarbox checkpoint …`.

mod create;
mod diff;
mod list;
mod restore;
mod squash;
mod tag;

use clap::Subcommand;
use serde::Serialize;
use tarbox_checkpoints::Checkpoint;
use tarbox_types::{BranchId, Layer};
use uuid::Uuid;

use super::context::Context;
use crate::failure::{Failure, OK};

#[derive(Debug, Subcommand)]
pub(super) enum CheckpointCommand {
    /// Keep the tenant as it is now, in constant time
    Create(create::CreateCommand),
    /// List the tenant's checkpoints, newest first
    #[command(
        visible_alias = "ls",
        after_long_help = "KIND is `checkpoint` (made by a user), `snapshot` (of CSI), `base` (a clone begins there) or `before-restore`. A checkpoint without `*` is of a line of history that a restore has left: it can be restored like any other.\n\nExamples:\n  tarbox checkpoint list work\n  tarbox checkpoint list work -o json | jq -r '.[] | select(.kind == \"checkpoint\") | .name'"
    )]
    List {
        /// Name or id of the tenant
        tenant: String,
    },
    /// Show one checkpoint, and what begins there
    #[command(after_long_help = "Examples:\n  tarbox checkpoint show work before-tool")]
    Show(list::ShowCommand),
    /// Delete checkpoints and the history that nothing else needs
    #[command(
        visible_alias = "rm",
        after_long_help = "One where a clone, or the tenant's own present, begins is refused, and so is a snapshot of CSI, which is deleted where it was made. The space of what only the checkpoint held comes back in the background.\n\nExamples:\n  tarbox checkpoint delete work before-tool\n  tarbox checkpoint delete work monday tuesday"
    )]
    Delete(list::DeleteCommand),
    /// Put the tenant back to a checkpoint, mounted or not
    Restore(restore::RestoreCommand),
    /// Show what differs between two checkpoints, or between one and the present
    Diff(diff::DiffCommand),
    /// Make one step of the history between two checkpoints
    Squash(squash::SquashCommand),
    /// Give a checkpoint a further name, move it, or take it away
    Tag(tag::TagCommand),
}

impl CheckpointCommand {
    pub(super) async fn run(self, context: &Context) -> Result<u8, Failure> {
        match self {
            Self::Create(command) => command.run(context).await,
            Self::List { tenant } => list::list(context, &tenant).await,
            Self::Show(command) => command.run(context).await,
            Self::Delete(command) => command.run(context).await,
            Self::Restore(command) => command.run(context).await,
            Self::Diff(command) => command.run(context).await,
            Self::Squash(command) => command.run(context).await,
            Self::Tag(command) => command.run(context).await,
        }?;
        Ok(OK)
    }
}

/// A checkpoint as it is printed.
#[derive(Debug, Serialize)]
pub(crate) struct CheckpointView {
    pub(super) name: String,
    pub(super) kind: &'static str,
    /// By which CSI knows it, too.
    pub(super) id: Option<Uuid>,
    pub(super) tags: Vec<String>,
    pub(super) sealed_at: i64,
    pub(super) used_bytes: u64,
    pub(super) used_inodes: u64,
    /// The tenant's present has come from there.
    pub(super) in_line: bool,
    pub(super) branch: BranchId,
    pub(super) layer: Layer,
}

impl CheckpointView {
    /// The tenant's present has come from there.
    pub(crate) fn is_in_line(&self) -> bool {
        self.in_line
    }

    pub(crate) fn new(checkpoint: Checkpoint) -> Self {
        let Checkpoint { layer, kind, id, tags, is_in_line } = checkpoint;
        Self {
            kind: kind.word(),
            id,
            tags,
            sealed_at: layer.sealed_at,
            used_bytes: layer.used_bytes,
            used_inodes: layer.used_inodes,
            in_line: is_in_line,
            branch: layer.branch,
            layer: layer.layer,
            name: layer.name,
        }
    }
}
