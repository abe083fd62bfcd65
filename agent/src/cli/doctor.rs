//! What of this node is fine, what is not, and what to do.

use std::{fs::File, path::Path};

use nix::sys::{
    statfs::{TMPFS_MAGIC, statfs},
    statvfs::statvfs,
};
use tarbox_handover::Client;
use tarbox_proto::agent::v1::{ListRequest, ListResponse};
use tarbox_runtime::Finding;

use super::{AskCommand, operator, output::show};
use crate::{
    failure::AgentError,
    launcher::{self, Way},
    settings::Settings,
};

/// Below this the state directory is called short of room.
const LITTLE_ROOM: u64 = 1 << 30;

/// Whether there is no fault.
pub(super) async fn doctor(ask: AskCommand) -> Result<bool, AgentError> {
    let listed = listed(&ask).await;
    let settings = settings(&ask, listed.as_ref().ok())?;
    let mut findings =
        vec![Finding::kernel(), device(), mounter(&settings), keeper(&settings), launcher_host()];
    findings.push(state_directory(&settings.state_dir));
    findings.push(run_directory(&settings.run_dir));
    findings.extend(agent(listed));
    show(ask.output, &findings, |findings| Finding::table(findings))?;
    Ok(Finding::are_fine(&findings))
}

/// The configuration, with the paths that the running agent was started with: its flags are not ours.
fn settings(ask: &AskCommand, agent: Option<&ListResponse>) -> Result<Settings, AgentError> {
    let said = |path: fn(&ListResponse) -> &String| agent.map(path).filter(|path| !path.is_empty()).cloned();
    Settings::load(vec![
        ("stateDir", Some(ask.state_dir.to_string_lossy().into_owned())),
        ("runDir", said(|agent| &agent.run_dir)),
        ("keeperSocket", said(|agent| &agent.keeper_socket)),
    ])
}

fn device() -> Finding {
    match File::options().read(true).write(true).open("/dev/fuse") {
        Ok(_) => Finding::fine("/dev/fuse", "can be opened"),
        Err(error) => {
            Finding::fault("/dev/fuse", error.to_string(), "modprobe fuse; run the agent privileged")
        }
    }
}

fn mounter(settings: &Settings) -> Finding {
    match File::open(&settings.mounter) {
        Ok(_) => Finding::fine("mounter", settings.mounter.display().to_string()),
        Err(error) => Finding::fault(
            "mounter",
            format!("{}: {error}", settings.mounter.display()),
            "install tarbox-mount beside tarbox-agent, or name it with --mounter",
        ),
    }
}

fn keeper(settings: &Settings) -> Finding {
    match Client::connect(&settings.keeper_socket) {
        Ok(client) => Finding::fine(
            "keeper",
            format!("pid {}, version {}", client.keeper_pid(), client.keeper_version()),
        ),
        Err(error) => Finding::warning(
            "keeper",
            format!("{}: {error}", settings.keeper_socket.display()),
            "it is started by the agent (launchers child and host) or by the runtime's pod",
        ),
    }
}

/// Whether the launcher `host` could work here.
fn launcher_host() -> Finding {
    const WHAT: &str = "launcher host";
    match launcher::way() {
        Ok(Way::Scope) => Finding::fine(WHAT, "a scope of systemd, over the system bus"),
        Ok(Way::Groups(hierarchies)) => Finding::fine(
            WHAT,
            format!("no systemd here: a control group of its own in {} hierarchies", hierarchies.len()),
        ),
        Err(error) => Finding::warning(WHAT, error.report(), "only of interest with --launcher host"),
    }
}

fn state_directory(path: &Path) -> Finding {
    let Ok(found) = statvfs(path) else {
        return Finding::warning(
            "state directory",
            format!("{} is not there", path.display()),
            "the agent makes it",
        );
    };
    let free = found.blocks_available() * found.fragment_size();
    let text = format!("{}, {} free", path.display(), operator::size(free));
    if free < LITTLE_ROOM {
        Finding::warning("state directory", text, "make room")
    } else {
        Finding::fine("state directory", text)
    }
}

fn run_directory(path: &Path) -> Finding {
    match statfs(path) {
        Err(_) => Finding::warning(
            "run directory",
            format!("{} is not there", path.display()),
            "the agent makes it",
        ),
        Ok(found) if found.filesystem_type() == TMPFS_MAGIC => {
            Finding::fine("run directory", format!("{}, in memory", path.display()))
        }
        Ok(_) => Finding::warning(
            "run directory",
            format!("{} is on a disk", path.display()),
            "journals belong on a tmpfs: a busy disk can stall writes for seconds (--run-dir)",
        ),
    }
}

/// What keeps tenants apart, as far as the agent knows it.
fn isolation(found: &ListResponse) -> Option<Finding> {
    const WHAT: &str = "isolation";
    match (found.isolation.as_str(), found.isolation_lacks.as_str()) {
        ("", "") => None,
        (keeps, "") => Some(Finding::fine(WHAT, keeps)),
        (_, lacks) => Some(Finding::warning(
            WHAT,
            format!("a mounter can reach every tenant of the database: {lacks}"),
            "see README.md, \"Isolation\"",
        )),
    }
}

/// What the running agent says of itself.
async fn listed(ask: &AskCommand) -> Result<ListResponse, AgentError> {
    let mut agent = operator::connect(ask, operator::LOOKS_WITHIN).await?;
    let listed = agent.list(ListRequest::default()).await;
    listed
        .map(tonic::Response::into_inner)
        .map_err(|status| AgentError::Unusable(status.message().to_owned()))
}

fn agent(listed: Result<ListResponse, AgentError>) -> Vec<Finding> {
    let found = match listed {
        Ok(found) => found,
        Err(error) => return vec![Finding::fault("agent", error.report(), "start `tarbox-agent serve`")],
    };
    let mut findings =
        vec![Finding::fine("agent", format!("pid {}, version {}", found.agent_pid, found.agent_version))];
    findings.push(if found.launcher_proof.starts_with("it does not work") {
        Finding::fault("launcher", found.launcher_proof.clone(), "see the agent's and the keeper's logs")
    } else {
        Finding::fine("launcher", format!("{}: {}", found.launcher, found.launcher_proof))
    });
    findings.extend(isolation(&found));
    let troubled: Vec<String> = found
        .tenants
        .iter()
        .filter(|tenant| !tenant.condition.is_empty())
        .map(|tenant| format!("{}: {}", tenant.tenant_id, tenant.condition))
        .collect();
    findings.push(if troubled.is_empty() {
        Finding::fine("tenants", format!("{} staged", found.tenants.len()))
    } else {
        Finding::warning("tenants", troubled.join("; "), "see their logs in the state directory")
    });
    findings
}
