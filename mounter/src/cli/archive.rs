//! `tarbox export` and `tarbox import`.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, IsTerminal, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;
use serde::Serialize;
use tarbox_store::{Database, InUse, Tenant, TenantStore, View};
use tarbox_types::{ErrorKind, Seq, TenantId};

use super::{
    context::Context,
    output::{self, Table, bytes, show},
    settle,
    tenant::NewTenantOptions,
};
use crate::{
    admission,
    archive::{
        export::{Export, Exported},
        import::{Import, Imported},
    },
    failure::{FAILED, Failure, OK},
    offline, settings,
    tenant_dir::TenantDir,
};

const BUFFER: usize = 1 << 20;

#[derive(Debug, Args)]
#[command(
    after_long_help = "The archive is in the PAX format, which GNU tar and bsdtar read: all types of files, owners, modes, times with nanoseconds, extended attributes (ACLs among them), hard links and holes. Of a tenant mounted on this machine everything is committed first.\n\nExit code 1 where the tenant changed meanwhile: the archive is complete, but its members may be of different moments.\n\nExamples:\n  tarbox export notes notes.tar\n  tarbox export notes | zstd > notes.tar.zst"
)]
pub(super) struct ExportCommand {
    /// Name or id
    tenant: String,

    /// Archive to write; `-` is standard output
    #[arg(default_value = "-")]
    file: PathBuf,
}

#[derive(Debug, Args)]
#[command(
    after_long_help = "Reads what GNU tar, bsdtar and `tarbox export` write (not compressed). If something goes wrong the new tenant is deleted again.\n\nExamples:\n  tarbox import notes notes.tar --quota-bytes 10Gi\n  zstd -dc notes.tar.zst | tarbox import notes"
)]
pub(super) struct ImportCommand {
    /// Name of the new tenant
    tenant: String,

    /// Archive to read; `-` is standard input
    #[arg(default_value = "-")]
    file: PathBuf,

    #[command(flatten)]
    pub(super) options: NewTenantOptions,
}

#[derive(Debug, Serialize)]
struct ExportView {
    tenant_id: TenantId,
    tenant: String,
    sequence: Seq,
    #[serde(flatten)]
    exported: Exported,
    consistent: bool,
}

impl ExportCommand {
    pub(super) async fn run(self, context: &Context) -> Result<u8, Failure> {
        let to_stdout = self.file == Path::new("-");
        if to_stdout && io::stdout().is_terminal() {
            let message = "an archive is not for a terminal: name a file, or redirect standard output";
            return Err(Failure::Usage(message.to_owned()));
        }
        let (database, tenant) = context.tenant(&self.tenant).await?;
        // Kept until the end: nobody on this machine mounts the tenant meanwhile.
        let lock = settle::whole(context, &database, &tenant).await?;
        let store = database.open_tenant(tenant.id).await?;
        let (before, view) = store.head().await?;
        let exported = self.write(&store, view, &before).await;
        if let Some(directory) = lock {
            directory.clear();
        }
        let (after, _) = store.head().await?;
        let view = ExportView {
            tenant_id: tenant.id,
            tenant: tenant.name,
            sequence: before.seq,
            exported: exported?,
            consistent: after.seq == before.seq && after.head_branch == before.head_branch,
        };
        self.tell(context, &view, to_stdout)?;
        Ok(if view.consistent { OK } else { FAILED })
    }

    async fn write(
        &self,
        store: &Arc<dyn TenantStore>,
        view: View,
        tenant: &Tenant,
    ) -> Result<Exported, Failure> {
        let output: Box<dyn Write> = if self.file == Path::new("-") {
            Box::new(io::stdout().lock())
        } else {
            Box::new(File::create(&self.file).map_err(Failure::io("write", &self.file))?)
        };
        let bar = output::bar("{spinner} {msg} {elapsed}", Some(tenant.used_inodes));
        let progress = |done: &Exported| {
            bar.set_position(done.entries);
            bar.set_message(format!("{} members, {}", done.entries, bytes(done.data_bytes)));
        };
        let output = BufWriter::with_capacity(BUFFER, output);
        let done = Export::new(Arc::clone(store), view, tenant.block_size, output, &progress).run().await;
        bar.finish_and_clear();
        done
    }

    fn tell(&self, context: &Context, view: &ExportView, to_stdout: bool) -> Result<(), Failure> {
        if !view.consistent {
            let _ = writeln!(
                io::stderr(),
                "tarbox: tenant `{}` changed while it was exported: members of the archive may be of different moments",
                view.tenant
            );
        }
        if to_stdout {
            return Ok(());
        }
        show(context.format, view, |view| {
            Table::of_pairs(vec![
                ("Exported", view.tenant.clone()),
                ("Members", view.exported.entries.to_string()),
                ("Data", bytes(view.exported.data_bytes)),
                ("Archive", bytes(view.exported.archive_bytes)),
            ])
        })
    }
}

#[derive(Debug, Serialize)]
struct ImportView {
    tenant_id: TenantId,
    tenant: String,
    #[serde(flatten)]
    imported: Imported,
}

impl ImportCommand {
    pub(super) async fn run(self, context: &Context) -> Result<u8, Failure> {
        settings::tenant_name(&self.tenant)
            .map_err(|allowed| Failure::Usage(format!("the name `{}`: allowed is {allowed}", self.tenant)))?;
        let input = self.open()?;
        let database = context.database().await?;
        let tenant = database.create_tenant(&admission::new_tenant(&context.settings, &self.tenant)).await?;
        let imported = match unpack(context, &database, &tenant, input).await {
            Ok(imported) => imported,
            Err(failure) => {
                remove(&database, &tenant).await;
                return Err(failure);
            }
        };
        let view = ImportView { tenant_id: tenant.id, tenant: tenant.name, imported };
        show(context.format, &view, table_of_import)?;
        Ok(OK)
    }

    fn open(&self) -> Result<Box<dyn Read>, Failure> {
        if self.file == Path::new("-") {
            if io::stdin().is_terminal() {
                let message = "an archive is not typed: name a file, or redirect standard input";
                return Err(Failure::Usage(message.to_owned()));
            }
            return Ok(Box::new(io::stdin().lock()));
        }
        let file = File::open(&self.file).map_err(Failure::io("read", &self.file))?;
        Ok(Box::new(file))
    }
}

async fn unpack(
    context: &Context,
    database: &Arc<dyn Database>,
    tenant: &Tenant,
    input: Box<dyn Read>,
) -> Result<Imported, Failure> {
    settings::ensure_state_dir(&context.settings.state_dir)?;
    let directory = TenantDir::lock_writer(&context.settings.state_dir, tenant.id)?.ok_or_else(|| {
        Failure::refused(ErrorKind::Busy, format!("tenant `{}` is in use already", tenant.name))
    })?;
    let offline = offline::open(database, context, tenant, &directory).await?;
    let bar = output::bar("{spinner} {msg} {elapsed}", None);
    let progress =
        |done: &Imported| bar.set_message(format!("{} members, {}", done.entries, bytes(done.data_bytes)));
    let input = BufReader::with_capacity(BUFFER, input);
    let imported = Import::new(&*offline.file_system, input, &progress).run().await;
    bar.set_message("committing");
    let closed = offline.close().await;
    bar.finish_and_clear();
    directory.clear();
    let imported = imported?;
    closed?;
    Ok(imported)
}

/// A tenant with half an archive is of no use, and would be in the way of the next attempt.
async fn remove(database: &Arc<dyn Database>, tenant: &Tenant) {
    let removed = async {
        database.delete_tenant(tenant.id, InUse::Refuse).await?;
        while !database.reap_tenant(tenant.id).await? {}
        Ok::<_, Failure>(())
    };
    if let Err(failure) = removed.await {
        tracing::warn!(tenant = tenant.name, reason = %failure.report(), "the unfinished tenant stays: delete it");
    }
}

fn table_of_import(view: &ImportView) -> Table {
    let mut pairs = vec![
        ("Imported", view.tenant.clone()),
        ("Id", view.tenant_id.to_string()),
        ("Members", view.imported.entries.to_string()),
        ("Data", bytes(view.imported.data_bytes)),
        ("Archive", bytes(view.imported.archive_bytes)),
    ];
    for path in &view.imported.skipped {
        pairs.push(("Left out (unknown type)", path.clone()));
    }
    Table::of_pairs(pairs)
}
