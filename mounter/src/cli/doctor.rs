//! `tarbox doctor`.

mod database;
mod finding;
mod kernel;
mod leftovers;
mod state;

use clap::Args;

use super::{context::Context, output::Table};
use crate::failure::{FAILED, Failure, OK};
use finding::{Finding, State};

#[derive(Debug, Args)]
#[command(
    after_long_help = "Exit code 1 where something is not fine. A warning is not: it works, but less well than it could.\n\nExamples:\n  tarbox doctor\n  tarbox doctor --database-url postgresql://me@db/tarbox -o json"
)]
pub(super) struct DoctorCommand {}

impl DoctorCommand {
    pub(super) async fn run(self, context: &Context) -> Result<u8, Failure> {
        let mut findings =
            vec![kernel::version(), kernel::device(), kernel::fusermount(), kernel::fuse_conf()];
        findings.push(kernel::locked_memory());
        findings.push(database::reach(&context.settings.database_url).await);
        findings.push(state::directory(&context.settings.state_dir, context.settings.journal_bytes));
        findings.extend(leftovers::journals(&context.settings.state_dir));
        findings.extend(leftovers::mounts());
        context.format.print(&findings, table)?;
        let is_fine = findings.iter().all(|finding| finding.state != State::Fault);
        Ok(if is_fine { OK } else { FAILED })
    }
}

fn table(findings: &Vec<Finding>) -> Table {
    let mut table = Table::new(&["", "WHAT", "FOUND"]);
    for finding in findings {
        table.row(vec![finding.state.word().to_owned(), finding.what.to_owned(), finding.found.clone()]);
        if let Some(advice) = &finding.advice {
            table.row(vec![String::new(), String::new(), format!("→ {advice}")]);
        }
    }
    table
}
