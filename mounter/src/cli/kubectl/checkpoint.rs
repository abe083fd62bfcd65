//! `kubectl tarbox checkpoint`.

use clap::Args;
use serde_json::Value;
use tarbox_types::ErrorKind;

use super::{
    api::{Component, Kubectl},
    objects::{Claim, Csi, DRIVER, PersistentVolume},
};
use crate::{
    cli::output::{Format, Table, show},
    failure::{Failure, OK},
};

/// A directory that is in every container: it holds nothing of ours, so that no mounter of that machine is looked for.
const NO_STATE: &str = "/nonexistent";

#[derive(Debug, Args)]
#[command(
    after_long_help = "As `tarbox checkpoint create`, which the controller's pod runs: it holds all that applications had been told was done when the command began. It is listed as a snapshot of the volume by CSI, and goes with the volume; a VolumeSnapshot outlives it.\n\nExamples:\n  kubectl tarbox checkpoint work\n  kubectl tarbox -n team checkpoint work before-tool"
)]
pub(super) struct CheckpointCommand {
    /// The claim
    claim: String,

    /// Name of the checkpoint: 1 to 128 of a-z, A-Z, 0-9, `-`, `.`, `_`, `:` and `+` [default: the present moment]
    name: Option<String>,
}

impl CheckpointCommand {
    pub(super) fn run(self, kubectl: &Kubectl, format: Format) -> Result<u8, Failure> {
        if let Some(name) = &self.name {
            tarbox_checkpoints::check_name("name", name)?;
        }
        let csi = volume(kubectl, &self.claim)?;
        let pods = kubectl.pods(Component::Controller)?;
        let pod = pods.iter().find(|pod| pod.is_ready()).ok_or_else(|| {
            Failure::refused(
                ErrorKind::Unavailable,
                "no pod of Tarbox's controller is ready in this cluster; `kubectl tarbox doctor` tells more",
            )
        })?;
        let mut words = vec!["tarbox", "--state-dir", NO_STATE];
        // A volume that its class put into another database.
        if let Some(url) = csi.volume_attributes.get("databaseURL") {
            words.extend(["--database-url", url]);
        }
        words.extend(["checkpoint", "create", "-o", "json", &csi.volume_handle]);
        words.extend(self.name.as_deref());
        let made: Value = kubectl.exec(pod, Component::Controller, &words)?;
        show(format, &made, |made| {
            let name = made["name"].as_str().unwrap_or_default();
            Table::of_pairs(vec![("Checkpoint", name.to_owned()), ("Claim", self.claim.clone())])
        })?;
        Ok(OK)
    }
}

/// The volume that a claim is bound to.
fn volume(kubectl: &Kubectl, claim: &str) -> Result<Csi, Failure> {
    let found: Claim = kubectl.get_here(&["persistentvolumeclaim", claim])?;
    let refused = |why: &str| {
        let message = format!("the claim {}/{claim} {why}", found.metadata.namespace);
        Failure::refused(ErrorKind::FailedPrecondition, message)
    };
    if found.spec.volume_name.is_empty() {
        return Err(refused(&format!("is bound to no volume yet: it is {}", found.status.phase)));
    }
    let volume: PersistentVolume = kubectl.get(&["persistentvolume", &found.spec.volume_name])?;
    volume.spec.csi.filter(|csi| csi.driver == DRIVER).ok_or_else(|| refused("has no volume of Tarbox"))
}
