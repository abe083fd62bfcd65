//! What of this node is fine, what is not, and what to do.

use std::{fs::File, path::Path};

use nix::sys::{
    statfs::{TMPFS_MAGIC, statfs},
    statvfs::statvfs,
};
use serde::Serialize;
use tarbox_handover::Client;
use tarbox_proto::agent::v1::{ListRequest, ListResponse};

use super::{AskCommand, operator};
use crate::{
    failure::AgentError,
    launcher::{self, Way},
    settings::Settings,
};

/// Below this the state directory is called short of room.
const LITTLE_ROOM: u64 = 1 << 30;

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    /// `ok`, `warn` or `FAULT`.
    state: &'static str,
    found: String,
    /// What to do about it.
    advice: &'static str,
}

fn fine(what: &'static str, found: impl Into<String>) -> Finding {
    Finding { what, state: "ok", found: found.into(), advice: "" }
}

fn warning(what: &'static str, found: impl Into<String>, advice: &'static str) -> Finding {
    Finding { what, state: "warn", found: found.into(), advice }
}

fn fault(what: &'static str, found: impl Into<String>, advice: &'static str) -> Finding {
    Finding { what, state: "FAULT", found: found.into(), advice }
}

/// Whether there is no fault.
pub(super) async fn doctor(ask: AskCommand) -> Result<bool, AgentError> {
    let state_dir = ask.state_dir.to_string_lossy().into_owned();
    let settings = Settings::load(vec![("stateDir", Some(state_dir))])?;
    let mut findings = vec![kernel(), device(), mounter(&settings), keeper(&settings), launcher_host()];
    findings.push(state_directory(&settings.state_dir));
    findings.push(run_directory(&settings.run_dir));
    findings.extend(agent(&ask).await);
    ask.output.print(&findings, |findings| {
        let mut rows = vec![["", "WHAT", "FOUND", "WHAT TO DO"].map(str::to_owned).to_vec()];
        rows.extend(findings.iter().map(|finding| {
            vec![
                finding.state.to_owned(),
                finding.what.to_owned(),
                finding.found.clone(),
                finding.advice.to_owned(),
            ]
        }));
        rows
    })?;
    Ok(findings.iter().all(|finding| finding.state != "FAULT"))
}

fn kernel() -> Finding {
    let release = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    let release = release.unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= (5, 10) {
        fine("kernel", release)
    } else {
        fault("kernel", release, "5.10 or newer is needed")
    }
}

fn device() -> Finding {
    match File::options().read(true).write(true).open("/dev/fuse") {
        Ok(_) => fine("/dev/fuse", "can be opened"),
        Err(error) => fault("/dev/fuse", error.to_string(), "modprobe fuse; run the agent privileged"),
    }
}

fn mounter(settings: &Settings) -> Finding {
    match File::open(&settings.mounter) {
        Ok(_) => fine("mounter", settings.mounter.display().to_string()),
        Err(error) => fault(
            "mounter",
            format!("{}: {error}", settings.mounter.display()),
            "install tarbox-mount beside tarbox-agent, or name it with --mounter",
        ),
    }
}

fn keeper(settings: &Settings) -> Finding {
    match Client::connect(&settings.keeper_socket) {
        Ok(client) => {
            fine("keeper", format!("pid {}, version {}", client.keeper_pid(), client.keeper_version()))
        }
        Err(error) => warning(
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
        Ok(Way::Scope) => fine(WHAT, "a scope of systemd, over the system bus"),
        Ok(Way::Groups(hierarchies)) => fine(
            WHAT,
            format!("no systemd here: a control group of its own in {} hierarchies", hierarchies.len()),
        ),
        Err(error) => warning(WHAT, error.report(), "only of interest with --launcher host"),
    }
}

fn state_directory(path: &Path) -> Finding {
    let Ok(found) = statvfs(path) else {
        return warning("state directory", format!("{} is not there", path.display()), "the agent makes it");
    };
    let free = found.blocks_available() * found.fragment_size();
    let text = format!("{}, {} free", path.display(), operator::size(free));
    if free < LITTLE_ROOM {
        warning("state directory", text, "make room")
    } else {
        fine("state directory", text)
    }
}

fn run_directory(path: &Path) -> Finding {
    match statfs(path) {
        Err(_) => warning("run directory", format!("{} is not there", path.display()), "the agent makes it"),
        Ok(found) if found.filesystem_type() == TMPFS_MAGIC => {
            fine("run directory", format!("{}, in memory", path.display()))
        }
        Ok(_) => warning(
            "run directory",
            format!("{} is on a disk", path.display()),
            "journals belong on a tmpfs: a busy disk can stall writes for seconds (--run-dir)",
        ),
    }
}

async fn agent(ask: &AskCommand) -> Vec<Finding> {
    let listed = async {
        let mut agent = operator::connect(ask, operator::LOOKS_WITHIN).await?;
        let listed = agent.list(ListRequest::default()).await;
        listed
            .map(tonic::Response::into_inner)
            .map_err(|status| AgentError::Unusable(status.message().to_owned()))
    };
    let found: ListResponse = match listed.await {
        Ok(found) => found,
        Err(error) => return vec![fault("agent", error.report(), "start `tarbox-agent serve`")],
    };
    let mut findings =
        vec![fine("agent", format!("pid {}, version {}", found.agent_pid, found.agent_version))];
    findings.push(if found.launcher_proof.starts_with("it does not work") {
        fault("launcher", found.launcher_proof, "see the agent's and the keeper's logs")
    } else {
        fine("launcher", format!("{}: {}", found.launcher, found.launcher_proof))
    });
    let troubled: Vec<String> = found
        .tenants
        .iter()
        .filter(|tenant| !tenant.condition.is_empty())
        .map(|tenant| format!("{}: {}", tenant.tenant_id, tenant.condition))
        .collect();
    findings.push(if troubled.is_empty() {
        fine("tenants", format!("{} staged", found.tenants.len()))
    } else {
        warning("tenants", troubled.join("; "), "see their logs in the state directory")
    });
    findings
}
