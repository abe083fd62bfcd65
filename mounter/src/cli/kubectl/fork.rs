//! `kubectl tarbox fork`: a claim whose volume is a clone.

use clap::Args;
use serde_json::{Value, json};
use tarbox_types::ErrorKind;

use super::{
    api::Kubectl,
    objects::{Claim, DRIVER, StorageClass},
};
use crate::{
    cli::output::{Format, Table, show},
    failure::{Failure, OK},
};

#[derive(Debug, Args)]
#[command(
    after_long_help = "Makes a PersistentVolumeClaim whose dataSource is the claim CLAIM, or a VolumeSnapshot, in the same namespace. The volume is a clone: made in constant time, it shares what both have in common. It begins as the other one is when it is made; where its class waits for the first pod (WaitForFirstConsumer), that is then.\n\nExamples:\n  kubectl tarbox fork work attempt\n  kubectl tarbox fork work attempt --size 20Gi\n  kubectl tarbox fork work attempt --from-snapshot before-tool"
)]
pub(super) struct ForkCommand {
    /// The claim that the new one is like
    claim: String,

    /// Name of the new claim
    new: String,

    /// Begin as a VolumeSnapshot of this name instead of as the claim is now
    #[arg(long, value_name = "NAME")]
    from_snapshot: Option<String>,

    /// Capacity, not less than the other's [default: the other's]
    #[arg(long, value_name = "QUANTITY")]
    size: Option<String>,

    /// StorageClass, one of Tarbox's [default: the other's]
    #[arg(long, value_name = "NAME")]
    storage_class: Option<String>,
}

impl ForkCommand {
    pub(super) fn run(self, kubectl: &Kubectl, format: Format) -> Result<u8, Failure> {
        let source: Claim = kubectl.get_here(&["persistentvolumeclaim", &self.claim])?;
        let class =
            self.storage_class.as_ref().or(source.spec.storage_class_name.as_ref()).ok_or_else(|| {
                let message =
                    format!("the claim {} names no StorageClass: name one with --storage-class", self.claim);
                Failure::refused(ErrorKind::FailedPrecondition, message)
            })?;
        let class: StorageClass = kubectl.get(&["storageclass", class])?;
        if class.provisioner != DRIVER {
            let message = format!(
                "the StorageClass {} belongs to {}, not to {DRIVER}: only volumes of Tarbox can be forked",
                class.metadata.name, class.provisioner
            );
            return Err(Failure::refused(ErrorKind::FailedPrecondition, message));
        }
        let waits = class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer");
        let made = kubectl.create(&self.manifest(&source, &class.metadata.name)?)?;
        show(format, &made, |made| self.table(made, waits))?;
        Ok(OK)
    }

    /// The new claim. Pure.
    fn manifest(&self, source: &Claim, class: &str) -> Result<Value, Failure> {
        let size = self.size.as_ref().or(source.status.capacity.get("storage"));
        let size = size.or(source.spec.resources.requests.get("storage")).ok_or_else(|| {
            let message = format!("the claim {} has no capacity yet: name one with --size", self.claim);
            Failure::refused(ErrorKind::FailedPrecondition, message)
        })?;
        let origin = match &self.from_snapshot {
            Some(name) => {
                json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": name})
            }
            None => json!({"kind": "PersistentVolumeClaim", "name": self.claim}),
        };
        Ok(json!({
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": self.new, "namespace": source.metadata.namespace},
            "spec": {
                "accessModes": source.spec.access_modes,
                "storageClassName": class,
                "dataSource": origin,
                "resources": {"requests": {"storage": size}},
            },
        }))
    }

    fn table(&self, made: &Value, waits: bool) -> Table {
        let of = |path: &str| made.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let origin = self.from_snapshot.as_ref().map_or_else(
            || format!("as the claim {} is", self.claim),
            |name| format!("as the VolumeSnapshot {name}"),
        );
        let when = if waits { "when the first pod uses it" } else { "now" };
        Table::of_pairs(vec![
            ("Claim", format!("{}/{}", of("/metadata/namespace"), of("/metadata/name"))),
            ("Begins", origin),
            ("Made", when.to_owned()),
        ])
    }
}
