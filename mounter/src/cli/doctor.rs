//! `tarbox doctor`.

mod database;
mod kernel;
mod leftovers;
mod state;

use clap::Args;

use tarbox_runtime::Finding;

use super::{context::Context, output::show};
use crate::failure::{FAILED, Failure, OK};

#[derive(Debug, Args)]
#[command(
    after_long_help = "Exit code 1 where something is not fine. A warning is not: it works, but less well than it could.\n\nExamples:\n  tarbox doctor\n  tarbox doctor --database-url postgresql://me@db/tarbox -o json"
)]
pub(super) struct DoctorCommand {}

impl DoctorCommand {
    pub(super) async fn run(self, context: &Context) -> Result<u8, Failure> {
        let mut findings =
            vec![Finding::kernel(), kernel::device(), kernel::fusermount(), kernel::fuse_conf()];
        findings.push(kernel::locked_memory());
        findings.push(database::reach(&context.settings.database_url).await);
        findings.push(state::directory(&context.settings.state_dir, context.settings.journal_bytes));
        findings.extend(leftovers::journals(&context.settings.state_dir));
        findings.extend(leftovers::mounts());
        show(context.format, &findings, |findings| Finding::table(findings))?;
        Ok(if Finding::are_fine(&findings) { OK } else { FAILED })
    }
}
