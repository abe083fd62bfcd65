//! `tarbox fsck`.

use std::sync::{Arc, Mutex};

use clap::Args;
use indicatif::ProgressBar;
use serde::Serialize;
use tarbox_store::{CheckProgress, CheckReport, Database, StoreError, Tenant};
use tarbox_types::TenantId;

use super::{
    context::Context,
    output::{self, Table, show},
};
use crate::{
    failure::{FAILED, Failure, OK},
    offline, serve,
    tenant_dir::TenantDir,
};

#[derive(Debug, Args)]
#[command(
    after_long_help = "Checked are link counts, sizes, counters, references, the tree's shape, and the hashes of all blocks, as the database has them. Of a mounted tenant only what is committed is seen.\n\nExit code 1 while any fault is left.\n\nExamples:\n  tarbox fsck notes\n  tarbox fsck notes --repair -o json"
)]
pub(super) struct FsckCommand {
    /// Name or id
    tenant: String,

    /// Set counters right and remove orphans; the tenant must not be mounted
    #[arg(long)]
    repair: bool,
}

#[derive(Debug, Serialize)]
struct FsckView {
    tenant_id: TenantId,
    tenant: String,
    inodes: u64,
    entries: u64,
    extents: u64,
    blocks: u64,
    faults: Vec<FaultView>,
    clean: bool,
}

#[derive(Debug, Serialize)]
struct FaultView {
    message: String,
    repaired: bool,
}

impl FsckCommand {
    pub(super) async fn run(self, context: &Context) -> Result<u8, Failure> {
        let (database, tenant) = context.tenant(&self.tenant).await?;
        let lock = if self.repair { Some(self.claim(context, &database, &tenant).await?) } else { None };
        if let Some(directory) = &lock
            && offline::has_journal(directory.path())
        {
            // Repairs would take the ground from under what the journal still holds.
            offline::open(&database, context, &tenant, directory).await?.close().await?;
        }
        let store = database.open_tenant(tenant.id).await?;
        let progress = Progress::new();
        let report = store.check(self.repair, &|now| progress.show(now)).await;
        progress.bar.finish_and_clear();
        if let Some(directory) = lock {
            directory.clear();
        }
        let view = view(&tenant, report?);
        show(context.format, &view, table)?;
        Ok(if view.clean { OK } else { FAILED })
    }

    async fn claim(
        &self,
        context: &Context,
        database: &Arc<dyn Database>,
        tenant: &Tenant,
    ) -> Result<TenantDir, Failure> {
        crate::settings::ensure_state_dir(&context.settings.state_dir)?;
        let directory = serve::lock(database, &context.settings, tenant).await?;
        match &tenant.holder {
            None => Ok(directory),
            Some(holder) if directory.previous().is_some_and(|note| note.session == holder.session) => {
                // It died on this machine: see `lease`.
                database.close_session(holder.session).await?;
                Ok(directory)
            }
            Some(holder) => Err(StoreError::Held { tenant: tenant.id, holder: holder.clone() }.into()),
        }
    }
}

/// One bar whose message is the phase.
struct Progress {
    bar: ProgressBar,
    phase: Mutex<&'static str>,
}

impl Progress {
    fn new() -> Self {
        Self {
            bar: output::bar("{msg:12} {wide_bar} {human_pos}/{human_len} {eta}", Some(0)),
            phase: Mutex::new(""),
        }
    }

    fn show(&self, now: CheckProgress) {
        if let Ok(mut phase) = self.phase.lock()
            && *phase != now.phase
        {
            *phase = now.phase;
            self.bar.reset();
            self.bar.set_message(now.phase);
        }
        self.bar.set_length(now.total);
        self.bar.set_position(now.done);
    }
}

fn view(tenant: &Tenant, report: CheckReport) -> FsckView {
    let faults: Vec<FaultView> = report
        .faults
        .into_iter()
        .map(|fault| FaultView { message: fault.message, repaired: fault.repaired })
        .collect();
    FsckView {
        tenant_id: tenant.id,
        tenant: tenant.name.clone(),
        inodes: report.inodes,
        entries: report.entries,
        extents: report.extents,
        blocks: report.blocks,
        clean: faults.iter().all(|fault| fault.repaired),
        faults,
    }
}

fn table(view: &FsckView) -> Table {
    let seen = format!(
        "{} inodes, {} names, {} extents, {} blocks",
        view.inodes, view.entries, view.extents, view.blocks
    );
    let mut pairs = vec![("Tenant", view.tenant.clone()), ("Checked", seen)];
    for fault in &view.faults {
        pairs.push((if fault.repaired { "Repaired" } else { "Fault" }, fault.message.clone()));
    }
    let left = view.faults.iter().filter(|fault| !fault.repaired).count();
    pairs.push(("Result", if left == 0 { "clean".to_owned() } else { format!("{left} faults") }));
    Table::of_pairs(pairs)
}
