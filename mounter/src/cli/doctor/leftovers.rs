//! What dead mounters left: journals, rejected journals, dead mounts.

use std::{fs, path::Path};

use tarbox_runtime::Finding;

use crate::{
    mount_point::{self, Health},
    mounts, tenant_dir,
};

pub(super) fn journals(state_dir: &Path) -> Vec<Finding> {
    const WHAT: &str = "journals";
    let mut findings = Vec::new();
    for directory in tenant_dir::all(state_dir) {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        let note = tenant_dir::read_note(&directory);
        let tenant = note.map_or_else(
            || directory.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            |note| note.tenant_name,
        );
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = entry.path();
            if name.starts_with("journal.rejected-") {
                findings.push(Finding::warning(
                    WHAT,
                    format!("tenant {tenant}: {} holds changes that could not be committed", path.display()),
                    "somebody else has written since; copy what you miss by hand from a clone or a backup, then remove it",
                ));
            } else if name == "journal" && !tenant_dir::is_locked(&directory) && !is_empty(&path) {
                findings.push(Finding::warning(
                    WHAT,
                    format!("tenant {tenant}: a mounter died and left {}", path.display()),
                    "mount the tenant again: what is in it is committed then",
                ));
            }
        }
    }
    if findings.is_empty() {
        findings.push(Finding::fine(WHAT, "none was left behind"));
    }
    findings
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none())
}

pub(super) fn mounts() -> Vec<Finding> {
    const WHAT: &str = "mounts";
    let all = match mounts::all() {
        Ok(all) => all,
        Err(error) => return vec![Finding::fault(WHAT, error.to_string(), "/proc must be mounted")],
    };
    let ours: Vec<_> = all.into_iter().filter(mounts::Mount::is_tarbox).collect();
    let mut findings: Vec<Finding> = ours
        .iter()
        .filter_map(|mount| {
            let point = mount.point.display();
            match mount_point::health(&mount.point) {
                Health::Serving => None,
                Health::Dead => Some(Finding::fault(
                    WHAT,
                    format!("{point}: its mounter is gone"),
                    format!("`tarbox umount {point}`, then mount it again"),
                )),
                Health::Hangs => Some(Finding::fault(
                    WHAT,
                    format!("{point} does not answer"),
                    format!("see its mounter's log; `tarbox umount --lazy {point}` detaches it"),
                )),
            }
        })
        .collect();
    if findings.is_empty() {
        findings.push(Finding::fine(WHAT, format!("{} of Tarbox, all answer", ours.len())));
    }
    findings
}
