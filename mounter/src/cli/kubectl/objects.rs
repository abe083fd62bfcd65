//! What is read of the API's objects, and of what an agent says. Only the fields that are looked at.

use std::collections::BTreeMap;

use serde::{Deserialize, de::DeserializeOwned};

/// The driver's name.
pub(super) const DRIVER: &str = "tarbox.csi.io";

/// Answers of `kubectl get` for several objects.
#[derive(Debug, Deserialize)]
#[serde(bound = "T: DeserializeOwned")]
pub(super) struct List<T> {
    pub(super) items: Vec<T>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Metadata {
    pub(super) name: String,
    #[serde(default)]
    pub(super) namespace: String,
    #[serde(default)]
    pub(super) uid: String,
    #[serde(default)]
    pub(super) generation: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct PersistentVolume {
    pub(super) metadata: Metadata,
    pub(super) spec: VolumeSpec,
    pub(super) status: Option<Phase>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct VolumeSpec {
    #[serde(default)]
    pub(super) capacity: BTreeMap<String, String>,
    pub(super) csi: Option<Csi>,
    pub(super) claim_ref: Option<ClaimRef>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Csi {
    pub(super) driver: String,
    /// The tenant's id.
    pub(super) volume_handle: String,
    #[serde(default)]
    pub(super) volume_attributes: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct ClaimRef {
    pub(super) namespace: String,
    pub(super) name: String,
    #[serde(default)]
    pub(super) uid: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Phase {
    #[serde(default)]
    pub(super) phase: String,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Claim {
    pub(super) metadata: Metadata,
    pub(super) spec: ClaimSpec,
    #[serde(default)]
    pub(super) status: ClaimStatus,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ClaimSpec {
    #[serde(default)]
    pub(super) access_modes: Vec<String>,
    pub(super) storage_class_name: Option<String>,
    #[serde(default)]
    pub(super) volume_name: String,
    #[serde(default)]
    pub(super) resources: Resources,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Resources {
    #[serde(default)]
    pub(super) requests: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct ClaimStatus {
    #[serde(default)]
    pub(super) phase: String,
    #[serde(default)]
    pub(super) capacity: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StorageClass {
    pub(super) metadata: Metadata,
    pub(super) provisioner: String,
    pub(super) volume_binding_mode: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Pod {
    pub(super) metadata: Metadata,
    pub(super) spec: PodSpec,
    #[serde(default)]
    pub(super) status: PodStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodSpec {
    #[serde(default)]
    pub(super) node_name: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct PodStatus {
    #[serde(default)]
    pub(super) phase: String,
    #[serde(default)]
    pub(super) conditions: Vec<Condition>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Condition {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) status: String,
}

impl Pod {
    pub(super) fn is_ready(&self) -> bool {
        self.status.conditions.iter().any(|condition| condition.kind == "Ready" && condition.status == "True")
    }
}

/// A DaemonSet or a Deployment.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Workload {
    pub(super) metadata: Metadata,
    pub(super) status: WorkloadStatus,
}

/// How many pods there are to be, and are: a DaemonSet's and a Deployment's words for it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WorkloadStatus {
    #[serde(default, alias = "replicas")]
    pub(super) desired_number_scheduled: u64,
    #[serde(default, alias = "readyReplicas")]
    pub(super) number_ready: u64,
    #[serde(default, alias = "updatedReplicas")]
    pub(super) updated_number_scheduled: u64,
    #[serde(default)]
    pub(super) observed_generation: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct CsiNode {
    pub(super) metadata: Metadata,
    pub(super) spec: CsiNodeSpec,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct CsiNodeSpec {
    /// `null` where no driver is registered.
    #[serde(default)]
    pub(super) drivers: Option<Vec<Registered>>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Registered {
    pub(super) name: String,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Node {
    pub(super) metadata: Metadata,
    #[serde(default)]
    pub(super) spec: NodeSpec,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct NodeSpec {
    #[serde(default)]
    pub(super) taints: Vec<Taint>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Taint {
    pub(super) key: String,
}

impl Node {
    pub(super) fn has_taint(&self, key: &str) -> bool {
        self.spec.taints.iter().any(|taint| taint.key == key)
    }
}

// === What agents say ===

/// `tarbox-agent ps -o json`.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct AgentView {
    #[serde(default)]
    pub(super) tenants: Vec<TenantView>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct TenantView {
    pub(super) tenant_id: String,
    pub(super) phase: String,
    #[serde(default)]
    pub(super) restarts: u64,
    #[serde(default)]
    pub(super) condition: String,
}

/// A row of `tarbox-agent doctor -o json`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct NodeFinding {
    pub(super) what: String,
    pub(super) state: String,
    pub(super) found: String,
    #[serde(default)]
    pub(super) advice: Option<String>,
}
