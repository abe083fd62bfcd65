//! `tarbox tenant …`.

use std::{path::PathBuf, sync::Arc, time::Duration};

use clap::{Args, Subcommand};
use serde::Serialize;
use tarbox_store::{Compression, Database, InUse, Tenant};
use tarbox_types::{ErrorKind, TenantId};

use super::{
    checkpoint::CheckpointView,
    context::Context,
    output::{self, Table, bytes, bytes_limit, count_limit, limit, share},
};
use crate::{
    admission,
    control::client::Mounter,
    failure::{Failure, OK},
    settings::{self, Flags, LimitChoice},
    tenant_dir,
};

/// How long a mounter may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug, Subcommand)]
pub(super) enum TenantCommand {
    /// Make a tenant
    #[command(
        after_long_help = "Examples:\n  tarbox tenant create notes --quota-bytes 2Gi --compression zstd\n  tarbox tenant create cache --block-size 4Ki --quota-inodes 1000000"
    )]
    Create(CreateCommand),
    /// List the tenants
    #[command(visible_alias = "ls")]
    List,
    /// Check that no tenant is mounted for writing on any machine; fails, and names those that are
    #[command(
        after_long_help = "What is mounted read-only holds nothing in the database, and is not seen.\n\nExit codes: 0 none is mounted, 1 some are."
    )]
    Idle,
    /// Show one tenant
    Show {
        /// Name or id
        tenant: String,
    },
    /// Change limits; takes effect at once where it is mounted on this machine, elsewhere within seconds
    #[command(
        after_long_help = "Examples:\n  tarbox tenant resize notes --quota-bytes 10Gi\n  tarbox tenant resize notes --quota-bytes unlimited"
    )]
    Resize(ResizeCommand),
    /// Delete a tenant and all its data; refused while it is mounted
    #[command(visible_alias = "rm")]
    Delete {
        /// Name or id
        tenant: String,
    },
}

/// Options of a new tenant.
#[derive(Debug, Default, Args)]
pub(super) struct NewTenantOptions {
    #[command(flatten)]
    limits: LimitOptions,

    /// Bytes per block, a power of two from 4Ki to 4Mi; cannot change later [default: 128Ki]
    #[arg(long, value_name = "QUANTITY")]
    block_size: Option<String>,

    /// Compression of blocks: none or zstd [default: none]
    #[arg(long, value_name = "KIND")]
    compression: Option<String>,
}

#[derive(Debug, Default, Args)]
pub(super) struct LimitOptions {
    /// Limit of allocated bytes, for instance 10Gi, or `unlimited`
    #[arg(long, value_name = "QUANTITY")]
    quota_bytes: Option<String>,

    /// Limit of inodes, or `unlimited`
    #[arg(long, value_name = "COUNT")]
    quota_inodes: Option<String>,

    /// Largest file, or `unlimited`
    #[arg(long, value_name = "QUANTITY")]
    max_file_size: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct CreateCommand {
    /// 1 to 63 of a-z, 0-9, `-`, `.` and `_`; unique in the database
    name: String,
    #[command(flatten)]
    options: NewTenantOptions,
}

#[derive(Debug, Args)]
pub(super) struct ResizeCommand {
    /// Name or id
    tenant: String,
    #[command(flatten)]
    limits: LimitOptions,
}

impl NewTenantOptions {
    pub(super) fn flags(&self) -> Flags {
        vec![
            ("quotaBytes", self.limits.quota_bytes.clone()),
            ("quotaInodes", self.limits.quota_inodes.clone()),
            ("maxFileSize", self.limits.max_file_size.clone()),
            ("blockSize", self.block_size.clone()),
            ("compression", self.compression.clone()),
        ]
    }
}

impl LimitOptions {
    /// Only what was given here counts: a variable meant for new tenants must not resize an old one.
    pub(super) fn choice(&self) -> Result<LimitChoice, Failure> {
        let read = |flag: &str, text: &Option<String>, parse: fn(&str) -> Result<u64, String>| {
            let parsed = text.as_deref().map(|text| {
                parse(text).map_err(|allowed| Failure::Usage(format!("{flag} {text}: allowed is {allowed}")))
            });
            parsed.transpose()
        };
        Ok(LimitChoice {
            bytes: read("--quota-bytes", &self.quota_bytes, settings::limit_bytes)?,
            inodes: read("--quota-inodes", &self.quota_inodes, settings::limit_count)?,
            file_bytes: read("--max-file-size", &self.max_file_size, settings::limit_file)?,
        })
    }
}

impl TenantCommand {
    pub(super) fn flags(&self) -> Flags {
        match self {
            Self::Create(create) => create.options.flags(),
            Self::List | Self::Idle | Self::Show { .. } | Self::Resize(_) | Self::Delete { .. } => vec![],
        }
    }

    pub(super) async fn run(self, context: &Context) -> Result<u8, Failure> {
        match self {
            Self::Create(create) => make(context, &create.name).await,
            Self::List => list(context).await,
            Self::Idle => idle(context).await,
            Self::Show { tenant } => show(context, &tenant).await,
            Self::Resize(resize) => resize_tenant(context, &resize).await,
            Self::Delete { tenant } => delete(context, &tenant).await,
        }?;
        Ok(OK)
    }
}

// === What is printed ===

#[derive(Debug, Serialize)]
struct TenantView {
    id: TenantId,
    name: String,
    used_bytes: u64,
    quota_bytes: Option<u64>,
    used_inodes: u64,
    quota_inodes: Option<u64>,
    max_file_bytes: Option<u64>,
    block_size: u32,
    compression: &'static str,
    sequence: u64,
    epoch: i64,
    holder: Option<HolderView>,
}

#[derive(Debug, Serialize)]
struct HolderView {
    node: String,
    pid: u32,
    /// Only known on the machine that mounts it.
    mount_point: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct DetailView {
    #[serde(flatten)]
    tenant: TenantView,
    database: String,
    checkpoints: Vec<CheckpointView>,
}

fn view(context: &Context, tenant: &Tenant) -> TenantView {
    let mounter = Mounter::writer_of(&context.settings.state_dir, tenant.id);
    let holder = tenant.holder.as_ref().map(|holder| HolderView {
        node: holder.node.clone(),
        pid: holder.pid,
        mount_point: mounter
            .filter(|mounter| mounter.note.session == holder.session)
            .map(|mounter| mounter.note.mount_point),
    });
    TenantView {
        id: tenant.id,
        name: tenant.name.clone(),
        used_bytes: tenant.used_bytes,
        quota_bytes: limit(tenant.limits.bytes),
        used_inodes: tenant.used_inodes,
        quota_inodes: limit(tenant.limits.inodes),
        max_file_bytes: limit(tenant.limits.file_bytes),
        block_size: tenant.block_size,
        compression: match tenant.compression {
            Compression::None => "none",
            Compression::Zstd => "zstd",
        },
        sequence: tenant.seq,
        epoch: tenant.epoch,
        holder,
    }
}

fn held_by(holder: Option<&HolderView>) -> String {
    holder.map_or_else(
        || "-".to_owned(),
        |holder| match &holder.mount_point {
            Some(point) => point.display().to_string(),
            None => format!("pid {} on {}", holder.pid, holder.node),
        },
    )
}

fn table_of_all(tenants: &Vec<TenantView>) -> Table {
    let mut table = Table::new(&["NAME", "USED", "QUOTA", "USE%", "INODES", "MOUNTED", "ID"]);
    for tenant in tenants {
        table.row(vec![
            tenant.name.clone(),
            bytes(tenant.used_bytes),
            bytes_limit(tenant.quota_bytes),
            share(tenant.used_bytes, tenant.quota_bytes),
            tenant.used_inodes.to_string(),
            held_by(tenant.holder.as_ref()),
            tenant.id.to_string(),
        ]);
    }
    table
}

fn pairs(tenant: &TenantView) -> Vec<(&'static str, String)> {
    vec![
        ("Name", tenant.name.clone()),
        ("Id", tenant.id.to_string()),
        ("Used", format!("{} of {}", bytes(tenant.used_bytes), bytes_limit(tenant.quota_bytes))),
        ("Inodes", format!("{} of {}", tenant.used_inodes, count_limit(tenant.quota_inodes))),
        ("Largest file", bytes_limit(tenant.max_file_bytes)),
        ("Block size", bytes(tenant.block_size.into())),
        ("Compression", tenant.compression.to_owned()),
        ("Mounted", held_by(tenant.holder.as_ref())),
    ]
}

fn table_of_one(tenant: &TenantView) -> Table {
    Table::of_pairs(pairs(tenant))
}

fn table_of_details(details: &DetailView) -> Table {
    let mut all = pairs(&details.tenant);
    all.push(("Position", format!("{} (epoch {})", details.tenant.sequence, details.tenant.epoch)));
    all.push(("Checkpoints", details.checkpoints.len().to_string()));
    all.push(("Database", details.database.clone()));
    Table::of_pairs(all)
}

// === What is done ===

async fn make(context: &Context, name: &str) -> Result<(), Failure> {
    settings::tenant_name(name)
        .map_err(|allowed| Failure::Usage(format!("the name `{name}`: allowed is {allowed}")))?;
    let database = context.database().await?;
    let tenant = database.create_tenant(&admission::new_tenant(&context.settings, name)).await?;
    output::show(context.format, &view(context, &tenant), table_of_one)
}

async fn list(context: &Context) -> Result<(), Failure> {
    let tenants = context.database().await?.tenants().await?;
    let live = tenants.iter().filter(|tenant| tenant.state == tarbox_store::TenantState::Live);
    let views: Vec<TenantView> = live.map(|tenant| view(context, tenant)).collect();
    output::show(context.format, &views, table_of_all)
}

/// Those that are deleted while they are mounted count as well: somebody works in them.
async fn idle(context: &Context) -> Result<(), Failure> {
    let tenants = context.database().await?.tenants().await?;
    let mounted: Vec<TenantView> =
        tenants.iter().filter(|tenant| tenant.holder.is_some()).map(|tenant| view(context, tenant)).collect();
    output::show(context.format, &mounted, table_of_all)?;
    match mounted.len() {
        0 => Ok(()),
        count => Err(Failure::refused(ErrorKind::FailedPrecondition, still_mounted(count, &mounted))),
    }
}

fn still_mounted(count: usize, mounted: &[TenantView]) -> String {
    let named = |tenant: &TenantView| format!("{} ({})", tenant.name, held_by(tenant.holder.as_ref()));
    let named: Vec<_> = mounted.iter().map(named).collect();
    let what = if count == 1 { "tenant is" } else { "tenants are" };
    format!(
        "{count} {what} mounted: {}; unmount them first (in a cluster: delete the pods that use these volumes)",
        named.join(", ")
    )
}

async fn show(context: &Context, name_or_id: &str) -> Result<(), Failure> {
    let (database, tenant) = context.tenant(name_or_id).await?;
    let checkpoints = tarbox_checkpoints::list(&*database, tenant.id).await?;
    let details = DetailView {
        tenant: view(context, &tenant),
        database: database.display_url(),
        checkpoints: checkpoints.into_iter().map(CheckpointView::new).collect(),
    };
    output::show(context.format, &details, table_of_details)
}

async fn resize_tenant(context: &Context, resize: &ResizeCommand) -> Result<(), Failure> {
    let choice = resize.limits.choice()?;
    if choice == LimitChoice::default() {
        let message = "nothing to change: give --quota-bytes, --quota-inodes or --max-file-size";
        return Err(Failure::Usage(message.to_owned()));
    }
    let (database, tenant) = context.tenant(&resize.tenant).await?;
    let limits = choice.over(tenant.limits);
    let tenant = database.resize_tenant(tenant.id, &limits).await?;
    if let Some(mounter) = Mounter::writer_of(&context.settings.state_dir, tenant.id) {
        let told = async { mounter.connect(ANSWER_WITHIN).await?.set_quota(&limits).await }.await;
        // Whoever comes after one that just died finds them in the database.
        if !mounter.is_gone() {
            told?;
        }
    }
    output::show(context.format, &view(context, &tenant), table_of_one)
}

#[derive(Debug, Serialize)]
struct Deleted {
    id: TenantId,
    name: String,
    deleted: bool,
}

async fn delete(context: &Context, name_or_id: &str) -> Result<(), Failure> {
    let (database, tenant) = context.tenant(name_or_id).await?;
    database.delete_tenant(tenant.id, InUse::Refuse).await?;
    reap(&database, tenant.id).await?;
    // Where it began in another one's history, that may have kept a layer only for it.
    tarbox_checkpoints::clear_dropped(&*database, &|| false).await?;
    forget_state(context, tenant.id);
    let deleted = Deleted { id: tenant.id, name: tenant.name, deleted: true };
    output::show(context.format, &deleted, |deleted| {
        Table::of_pairs(vec![("Deleted", format!("{} ({})", deleted.name, deleted.id))])
    })
}

async fn reap(database: &Arc<dyn Database>, tenant: TenantId) -> Result<(), Failure> {
    let bar = output::bar("{spinner} removing data, {elapsed}", None);
    while !database.reap_tenant(tenant).await? {
        bar.tick();
    }
    bar.finish_and_clear();
    Ok(())
}

/// The journal of a tenant that is gone is of no use to anybody; a journal that was set aside stays.
fn forget_state(context: &Context, tenant: TenantId) {
    let directory = tenant_dir::of(&context.settings.state_dir, tenant);
    let _ = std::fs::remove_dir_all(tenant_dir::journal(&directory));
    if let Ok(Some(locked)) = tenant_dir::TenantDir::lock_writer(&context.settings.state_dir, tenant) {
        locked.clear();
    }
    let _ = std::fs::remove_file(directory.join("lock"));
    let _ = std::fs::remove_dir(directory.join("readers"));
    let _ = std::fs::remove_dir(directory);
}
