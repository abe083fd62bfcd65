//! `tarbox audit`.

mod filter;

use std::{
    io::{self, BufWriter, Write},
    time::Duration,
};

use clap::Args;
use tarbox_fs::audit::{Event, unpack};
use tarbox_store::{AuditChunk, AuditPosition, AuditRange, Tenant, TenantState, TenantStore};
use tarbox_types::ErrorKind;

use self::filter::{Filter, moment_in_micros};
use super::{context::Context, output::Format};
use crate::{
    admission,
    control::client::Mounter,
    event_view::{EventView, Origin},
    failure::{Failure, OK},
};

/// So many values are in memory at a time, each of a few thousand events at most.
const PAGE: usize = 8;
/// How often it is looked for more.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// How long a mounter on this machine may take to commit what it has.
const FLUSH_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
#[command(
    after_long_help = "Shows who did what in a tenant, oldest first. Of a tenant that is mounted on this machine, its mounter commits first. With -o json one JSON object a line (JSON Lines), in bounded memory.\n\nExamples:\n  tarbox audit work --since 1h\n  tarbox audit work --path /src/ --op unlink,rename --process rm\n  tarbox audit work --result ENOSPC --limit 10\n  tarbox audit work -o json > work.jsonl\n  tarbox audit work --follow"
)]
pub(super) struct AuditCommand {
    /// Name or id of a tenant [default: all, one after the other]
    tenant: Option<String>,

    /// Not before: a duration before now (30m, 7d), or a time (2026-11-22, 2026-11-22T10:00:00Z)
    #[arg(long, value_name = "TIME", value_parser = moment_in_micros)]
    since: Option<u64>,

    /// Not after: as --since
    #[arg(long, value_name = "TIME", value_parser = moment_in_micros)]
    until: Option<u64>,

    #[command(flatten)]
    filter: Filter,

    /// Only the last so many
    #[arg(short = 'n', long, value_name = "COUNT")]
    limit: Option<usize>,

    /// Go on and show what comes, until Ctrl-C
    #[arg(short, long, requires = "tenant")]
    follow: bool,
}

impl AuditCommand {
    pub(super) async fn run(self, context: &Context) -> Result<u8, Failure> {
        let database = context.database().await?;
        let tenants = match &self.tenant {
            Some(name_or_id) => vec![admission::named(&database, name_or_id).await?],
            None => database.tenants().await?,
        };
        for tenant in tenants {
            flush(context, &tenant).await;
            let store = database.open_tenant(tenant.id).await?;
            let printer = Printer { tenant: &tenant, format: context.format };
            match self.show(&*store, &printer).await {
                // Whoever read it has seen enough.
                Err(Failure::Io { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => break,
                shown => shown?,
            }
        }
        Ok(OK)
    }

    async fn show(&self, store: &dyn TenantStore, printer: &Printer<'_>) -> Result<(), Failure> {
        let mut after = match self.limit {
            Some(limit) => self.show_last(store, printer, limit).await?,
            None => None,
        };
        loop {
            let range = AuditRange { after, since: self.since.unwrap_or(0), newest_first: false };
            let page = store.audit(&range, PAGE).await?;
            for chunk in &page {
                printer.print(&self.chosen(chunk)?)?;
            }
            match page.last() {
                Some(last) => after = Some(last.position()),
                None if self.follow => tokio::time::sleep(LOOK_AGAIN).await,
                None => return Ok(()),
            }
        }
    }

    /// The last ones; where to go on.
    async fn show_last(
        &self,
        store: &dyn TenantStore,
        printer: &Printer<'_>,
        limit: usize,
    ) -> Result<Option<AuditPosition>, Failure> {
        let mut range = AuditRange { after: None, since: self.since.unwrap_or(0), newest_first: true };
        let (mut newest, mut found, mut count) = (None, Vec::new(), 0);
        while count < limit {
            let page = store.audit(&range, PAGE).await?;
            let Some(last) = page.last() else { break };
            range.after = Some(last.position());
            newest = newest.or_else(|| page.first().map(AuditChunk::position));
            for chunk in page {
                let mut chosen = self.chosen(&chunk)?;
                let surplus = chosen.1.len().saturating_sub(limit - count);
                chosen.1.drain(..surplus);
                count += chosen.1.len();
                found.push(chosen);
            }
        }
        found.iter().rev().try_for_each(|chosen| printer.print(chosen))?;
        Ok(newest)
    }

    /// A value's node, and those of its events that are asked for.
    fn chosen(&self, chunk: &AuditChunk) -> Result<(String, Vec<Event>), Failure> {
        let (node, mut events) = unpack(chunk).map_err(|error| Failure::Part {
            kind: ErrorKind::Damaged,
            doing: format!(
                "read the audit events of commit {} (a newer release may have written them)",
                chunk.seq
            ),
            source: error.into(),
        })?;
        let (since, until) = (self.since.unwrap_or(0), self.until.unwrap_or(u64::MAX));
        events.retain(|event| (since..=until).contains(&event.at) && self.filter.chooses(event));
        Ok((node, events))
    }
}

/// Has a mounter on this machine commit what it has; where it cannot, what is committed is shown.
async fn flush(context: &Context, tenant: &Tenant) {
    if tenant.state == TenantState::Deleted {
        return;
    }
    let state_dir = &context.settings.state_dir;
    if let Err(failure) = Mounter::flush(FLUSH_WITHIN, || Mounter::writer_of(state_dir, tenant.id)).await {
        tracing::warn!(tenant = tenant.name, reason = %failure.report(), "what is not committed yet is missing");
    }
}

struct Printer<'a> {
    tenant: &'a Tenant,
    format: Format,
}

impl Printer<'_> {
    fn print(&self, (node, events): &(String, Vec<Event>)) -> Result<(), Failure> {
        let origin =
            Origin { tenant: self.tenant.name.clone(), tenant_id: self.tenant.id, node: node.clone() };
        let mut out = BufWriter::new(io::stdout().lock());
        let written = events.iter().try_for_each(|event| {
            let view = EventView::new(&origin, event);
            match self.format {
                Format::Table => writeln!(out, "{}", view.line()),
                Format::Json => {
                    serde_json::to_writer(&mut out, &view)?;
                    out.write_all(b"\n")
                }
            }
        });
        written
            .and_then(|()| out.flush())
            .map_err(|source| Failure::Io { doing: "write to standard output".to_owned(), source })
    }
}
