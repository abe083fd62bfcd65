//! `tarbox checkpoint create`.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use tarbox_checkpoints::{Checkpoint, Kind};
use tarbox_store::{Purpose, SnapshotRecord};
use tarbox_types::HumanDuration;

use super::{CheckpointView, list::table_of_one};
use crate::{
    cli::{
        context::Context,
        output::{self, show},
        reach::BySocket,
        settle,
    },
    failure::Failure,
};

#[derive(Debug, Args)]
#[command(
    after_long_help = "Takes constant time, however large the tenant. Where the tenant is mounted, the checkpoint holds all that applications had been told was done when the command began, and nothing stops meanwhile. It is listed as a snapshot by CSI as long as the tenant lives.\n\nExamples:\n  tarbox checkpoint create work\n  tarbox checkpoint create work before-tool --tag good\n  name=$(tarbox checkpoint create work -o json | jq -r .name)"
)]
pub(in crate::cli) struct CreateCommand {
    /// Name or id of the tenant
    tenant: String,

    /// Name of the checkpoint: 1 to 128 of a-z, A-Z, 0-9, `-`, `.`, `_`, `:` and `+` [default: the present moment]
    name: Option<String>,

    /// A further name; may be given several times
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,

    /// How long the mounter that has the tenant may take to commit
    #[arg(long, value_name = "DURATION", default_value = "1m")]
    timeout: HumanDuration,
}

impl CreateCommand {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let name = self.name.clone().unwrap_or_else(now);
        tarbox_checkpoints::check_name("name", &name)?;
        for tag in &self.tag {
            tarbox_checkpoints::check_name("tag", tag)?;
        }
        let (database, tenant) = context.tenant(&self.tenant).await?;
        let left = settle::take_up(context, &database, &tenant).await?;
        let new = SnapshotRecord::new(tenant.id, name, Purpose::Checkpoint);
        let reach = BySocket::new(context, tenant.id, self.timeout.0);
        let making = tarbox_checkpoints::create(&*database, &new, self.timeout.0, &reach);
        let made = output::while_waiting("waiting for the commit", making).await;
        left.release();
        let record = made?;
        let Some(layer) = record.layer else {
            return Err(Failure::refused(tarbox_types::ErrorKind::Internal, "the checkpoint has no layer"));
        };
        for tag in &self.tag {
            database.tag(tenant.id, tag, layer.branch, layer.layer).await?;
        }
        let made = Checkpoint {
            layer,
            kind: Kind::Checkpoint,
            id: Some(record.id),
            tags: self.tag,
            is_in_line: true,
        };
        show(context.format, &CheckpointView::new(made), table_of_one)
    }
}

/// A name for who gives none, that sorts by time: `20261122T001816.123Z`.
fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let moment = output::moment(i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
    let digits: String = moment.replace(' ', "T").replace(['-', ':', 'Z'], "");
    format!("{digits}.{:03}Z", since.subsec_millis())
}
