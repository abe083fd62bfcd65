//! `tarbox checkpoint diff`.

use std::sync::Arc;

use clap::Args;
use serde::Serialize;
use tarbox_checkpoints::{
    HEAD,
    diff::{Change, Diff, Difference},
    find,
};
use tarbox_store::{Database, InodeRow, Tenant, TenantStore, View};

use crate::{
    cli::{
        context::Context,
        output::{self, Format, Table, bytes, show},
        settle,
    },
    failure::Failure,
};

#[derive(Debug, Args)]
#[command(
    after_long_help = "The time it takes goes with what has changed, not with what there is. Times alone are no difference. Lines are counted where both sides are text (UTF-8 without NUL, at most 4 MiB). Of a tenant mounted on this machine everything is committed first where `head` is compared.\n\nExamples:\n  tarbox checkpoint diff work before-tool\n  tarbox checkpoint diff work monday tuesday --patch | less\n  tarbox checkpoint diff work before-tool -o json | jq -r '.[] | select(.change == \"added\") | .path'"
)]
pub(in crate::cli) struct DiffCommand {
    /// Name or id of the tenant
    tenant: String,

    /// Name, tag or id of the checkpoint that is compared
    from: String,

    /// The one it is compared with; `head` is the present
    #[arg(default_value = HEAD)]
    to: String,

    /// Show text files as a unified diff
    #[arg(short, long)]
    patch: bool,
}

#[derive(Debug, Serialize)]
struct DifferenceView {
    path: String,
    change: &'static str,
    /// Where it was, if it was renamed.
    from: Option<String>,
    kind: &'static str,
    /// The content differs; of what was added or removed: there is some.
    content: bool,
    /// Owner, mode, target, device or extended attributes differ.
    attributes: bool,
    size_before: Option<u64>,
    size_after: Option<u64>,
    /// Of text files.
    lines_added: Option<usize>,
    lines_removed: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<String>,
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// Only files have a size that says something.
fn size(row: Option<&InodeRow>) -> Option<u64> {
    row.filter(|row| row.mode & libc::S_IFMT == libc::S_IFREG).map(|row| row.size)
}

fn kind(row: &InodeRow) -> &'static str {
    match row.mode & libc::S_IFMT {
        libc::S_IFREG => "file",
        libc::S_IFDIR => "directory",
        libc::S_IFLNK => "symlink",
        libc::S_IFIFO => "fifo",
        libc::S_IFSOCK => "socket",
        _ => "device",
    }
}

impl DifferenceView {
    fn new(difference: Difference) -> Self {
        let Difference { path, change, before, after, is_content, is_attributes, lines, patch } = difference;
        let (change, from) = match change {
            Change::Added => ("added", None),
            Change::Removed => ("removed", None),
            Change::Changed => ("changed", None),
            Change::Renamed { from } => ("renamed", Some(shown(&from))),
        };
        Self {
            path: shown(&path),
            change,
            from,
            kind: after.as_ref().or(before.as_ref()).map_or("file", kind),
            content: is_content,
            attributes: is_attributes,
            size_before: size(before.as_ref()),
            size_after: size(after.as_ref()),
            lines_added: lines.map(|lines| lines.added),
            lines_removed: lines.map(|lines| lines.removed),
            patch,
        }
    }

    fn path_shown(&self) -> String {
        self.from.as_ref().map_or_else(|| self.path.clone(), |from| format!("{from} -> {}", self.path))
    }

    fn what(&self) -> String {
        let lines = match (self.lines_added, self.lines_removed) {
            (Some(added), Some(removed)) => Some(format!("+{added} -{removed}")),
            _ if self.content => Some(match (self.size_before, self.size_after) {
                (Some(before), Some(after)) => format!("{} -> {}", bytes(before), bytes(after)),
                (one, other) => one.or(other).map_or_else(String::new, bytes),
            }),
            _ => None,
        };
        let attributes = self.attributes.then(|| "attributes".to_owned());
        lines.into_iter().chain(attributes).collect::<Vec<_>>().join(", ")
    }
}

impl DiffCommand {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let (database, tenant) = context.tenant(&self.tenant).await?;
        // Kept until the end: nobody on this machine mounts the tenant meanwhile.
        let is_of_head = self.from == HEAD || self.to == HEAD;
        let lock = if is_of_head { settle::whole(context, &database, &tenant).await? } else { None };
        let compared = self.compare(&database, &tenant).await;
        if let Some(directory) = lock {
            directory.clear();
        }
        let views: Vec<DifferenceView> = compared?.into_iter().map(DifferenceView::new).collect();
        match (self.patch, context.format) {
            (true, Format::Table) => output::print(&patches(&views)),
            _ => show(context.format, &views, table),
        }
    }

    async fn compare(
        &self,
        database: &Arc<dyn Database>,
        tenant: &Tenant,
    ) -> Result<Vec<Difference>, Failure> {
        let store = database.open_tenant(tenant.id).await?;
        let from = view(&**database, tenant, &*store, &self.from).await?;
        let to = view(&**database, tenant, &*store, &self.to).await?;
        Ok(Diff::new(store, tenant.block_size, from, to, self.patch).run().await?)
    }
}

async fn view(
    database: &dyn Database,
    tenant: &Tenant,
    store: &dyn TenantStore,
    name: &str,
) -> Result<View, Failure> {
    if name == HEAD {
        return Ok(store.head().await?.1);
    }
    let layer = find(database, tenant, name).await?.layer;
    Ok(store.view(layer.branch, layer.layer).await?)
}

fn table(all: &Vec<DifferenceView>) -> Table {
    let mut table = Table::new(&["CHANGE", "PATH", "WHAT"]);
    for one in all {
        let slash = if one.kind == "directory" && one.path != "." { "/" } else { "" };
        table.row(vec![one.change.to_owned(), format!("{}{slash}", one.path_shown()), one.what()]);
    }
    table
}

/// As patch(1) reads it; what it does not, is said in a line that it passes over.
fn patches(all: &[DifferenceView]) -> String {
    let mut text = String::new();
    for one in all {
        text.push_str(
            &format!("# {} {} {}\n", one.change, one.path_shown(), one.what()).replace(" \n", "\n"),
        );
        text.push_str(one.patch.as_deref().unwrap_or_default());
    }
    text
}
