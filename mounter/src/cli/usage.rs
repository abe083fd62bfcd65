//! `tarbox usage`.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use serde::Serialize;
use tarbox_proto::control::v1::StatusResponse;
use tarbox_store::{Tenant, TenantState};
use tarbox_types::TenantId;

use super::{
    context::Context,
    output::{Table, bytes, bytes_limit, count_limit, limit, share, show},
};
use crate::{
    admission,
    control::client::Mounter,
    failure::{Failure, OK},
};

/// A mounter that does not answer within this time is shown with the database's numbers.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
#[command(
    after_long_help = "Numbers of a tenant mounted on this machine are those of its mounter, changes not yet committed included (LIVE); others are as of the last commit.\n\nExamples:\n  tarbox usage\n  tarbox usage notes -o json"
)]
pub(super) struct UsageCommand {
    /// Names or ids [default: all tenants]
    tenants: Vec<String>,
}

#[derive(Debug, Serialize)]
struct UsageView {
    id: TenantId,
    name: String,
    used_bytes: u64,
    quota_bytes: Option<u64>,
    used_inodes: u64,
    quota_inodes: Option<u64>,
    /// Numbers of its mounter; absent where none answers on this machine.
    live: Option<LiveView>,
}

#[derive(Debug, Serialize)]
struct LiveView {
    pid: u32,
    mount_point: PathBuf,
    uncommitted_changes: u64,
    journal_bytes: u64,
    cache_bytes: u64,
    waiting_for: Option<String>,
}

impl UsageCommand {
    pub(super) async fn run(self, context: &Context) -> Result<u8, Failure> {
        let database = context.database().await?;
        let mut tenants = Vec::new();
        for name_or_id in &self.tenants {
            tenants.push(admission::named(&database, name_or_id).await?);
        }
        if self.tenants.is_empty() {
            tenants = database.tenants().await?;
            tenants.retain(|tenant| tenant.state == TenantState::Live);
        }
        let mut views = Vec::new();
        for tenant in &tenants {
            let live = ask(context, tenant).await;
            views.push(view(tenant, live));
        }
        show(context.format, &views, table)?;
        Ok(OK)
    }
}

async fn ask(context: &Context, tenant: &Tenant) -> Option<(Mounter, StatusResponse)> {
    let mounter = Mounter::writer_of(&context.settings.state_dir, tenant.id)?;
    let answer = async { mounter.connect(ANSWER_WITHIN).await?.status().await }.await;
    match answer {
        Ok(status) => Some((mounter, status)),
        Err(failure) => {
            tracing::warn!(tenant = tenant.name, reason = %failure.report(), "numbers are as of the last commit");
            None
        }
    }
}

fn view(tenant: &Tenant, live: Option<(Mounter, StatusResponse)>) -> UsageView {
    let mut view = UsageView {
        id: tenant.id,
        name: tenant.name.clone(),
        used_bytes: tenant.used_bytes,
        quota_bytes: limit(tenant.limits.bytes),
        used_inodes: tenant.used_inodes,
        quota_inodes: limit(tenant.limits.inodes),
        live: None,
    };
    if let Some((mounter, status)) = live {
        view.used_bytes = status.used_bytes;
        view.quota_bytes = limit(status.quota_bytes);
        view.used_inodes = status.used_inodes;
        view.quota_inodes = limit(status.quota_inodes);
        view.live = Some(LiveView {
            pid: status.pid,
            mount_point: mounter.note.mount_point,
            uncommitted_changes: status.journal_sequence.saturating_sub(status.committed_sequence),
            journal_bytes: status.journal_bytes,
            cache_bytes: status.cache_bytes,
            waiting_for: Some(status.waiting_for).filter(|what| !what.is_empty()),
        });
    }
    view
}

fn table(views: &Vec<UsageView>) -> Table {
    let mut table = Table::new(&[
        "NAME",
        "USED",
        "QUOTA",
        "USE%",
        "INODES",
        "QUOTA",
        "LIVE",
        "UNCOMMITTED",
        "JOURNAL",
        "CACHE",
        "WAITING FOR",
    ]);
    for view in views {
        let mut row = vec![
            view.name.clone(),
            bytes(view.used_bytes),
            bytes_limit(view.quota_bytes),
            share(view.used_bytes, view.quota_bytes),
            view.used_inodes.to_string(),
            count_limit(view.quota_inodes),
        ];
        match &view.live {
            Some(live) => row.extend([
                live.mount_point.display().to_string(),
                live.uncommitted_changes.to_string(),
                bytes(live.journal_bytes),
                bytes(live.cache_bytes),
                live.waiting_for.clone().unwrap_or_else(|| "-".to_owned()),
            ]),
            None => row.extend(["-"; 5].map(str::to_owned)),
        }
        table.row(row);
    }
    table
}
