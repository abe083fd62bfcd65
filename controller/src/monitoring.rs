//! What the controller says of volumes and snapshots: the leader of each database looks now and then, and is the only one to say it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use parking_lot::Mutex;
use tarbox_runtime::{
    Metric, Monitored,
    prometheus::{Registry, proto::MetricFamily},
};
use tarbox_store::{Database, SnapshotRecord, Tenant, VolumeRecord, all};

use crate::{
    databases::Databases,
    failure::Result,
    volume::{Description, namespace},
};

const VOLUMES: Metric = Metric {
    name: "tarbox_volume_count",
    help: "Volumes, by their claims' namespace.",
    labels: &["namespace"],
};
const CAPACITY: Metric = Metric {
    name: "tarbox_volume_capacity_bytes",
    help: "Capacity of a volume; absent where it has no limit.",
    labels: &["volume_id"],
};
const USED: Metric = Metric {
    name: "tarbox_volume_used_bytes",
    help: "Bytes that a volume has allocated, as of its last commit.",
    labels: &["volume_id"],
};
const SNAPSHOTS: Metric = Metric { name: "tarbox_snapshot_count", help: "Snapshots.", labels: &[] };
const SNAPSHOT_SIZE: Metric = Metric {
    name: "tarbox_snapshot_size_bytes",
    help: "Bytes that a snapshot shows; blocks that it shares are counted in each.",
    labels: &["snapshot_id"],
};

/// What one database holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Inventory {
    volumes: Vec<VolumeSize>,
    /// Ids, and bytes.
    snapshots: Vec<(String, u64)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct VolumeSize {
    id: String,
    namespace: String,
    /// 0 = no limit.
    capacity_bytes: u64,
    used_bytes: u64,
}

/// See the module.
pub(crate) struct Monitoring {
    registry: Registry,
    databases: Arc<Databases>,
    /// Of the databases that this replica leads, by their URLs without passwords: one that was opened with two is one.
    led: Mutex<BTreeMap<String, Inventory>>,
}

impl Monitoring {
    pub(crate) fn new(databases: Arc<Databases>) -> Self {
        Self { registry: Registry::new(), databases, led: Mutex::default() }
    }

    /// This replica leads, and found this.
    pub(crate) fn found(&self, database: &dyn Database, inventory: Inventory) {
        self.led.lock().insert(database.display_url(), inventory);
    }

    /// Another one leads, or nobody knows: what was found before counts no more.
    pub(crate) fn forget(&self, database: &dyn Database) {
        self.led.lock().remove(&database.display_url());
    }
}

/// Looks at all that a database holds.
pub(crate) async fn look(database: &dyn Database) -> Result<Inventory> {
    let records =
        all(|record: &VolumeRecord| record.id, |after, limit| database.volumes(after, limit)).await?;
    let namespaces: HashMap<_, _> = records
        .iter()
        .filter_map(|record| {
            let description = Description::read(&record.description);
            Some((record.id, namespace(&description.parameters)?.to_owned()))
        })
        .collect();
    let tenants =
        all(|tenant: &Tenant| tenant.id, |after, limit| database.live_tenants(after, limit)).await?;
    let size = |tenant: &Tenant| VolumeSize {
        id: tenant.id.to_string(),
        namespace: namespaces.get(&tenant.id).cloned().unwrap_or_default(),
        capacity_bytes: tenant.limits.bytes,
        used_bytes: tenant.used_bytes,
    };
    let page = |after, limit| database.snapshots(None, after, limit);
    let snapshots = all(|record: &SnapshotRecord| record.id, page).await?;
    let bytes = |record: SnapshotRecord| Some((record.id.to_string(), record.layer?.used_bytes));
    Ok(Inventory {
        volumes: tenants.iter().map(size).collect(),
        snapshots: snapshots.into_iter().filter_map(bytes).collect(),
    })
}

/// Families of all that is led. Pure.
fn families_of<'a>(led: impl Iterator<Item = &'a Inventory> + Clone) -> Vec<MetricFamily> {
    let volumes = || led.clone().flat_map(|inventory| &inventory.volumes);
    let snapshots = || led.clone().flat_map(|inventory| &inventory.snapshots);
    let mut by_namespace = BTreeMap::<&str, u64>::new();
    for volume in volumes() {
        *by_namespace.entry(&volume.namespace).or_default() += 1;
    }
    let limited = volumes().filter(|volume| volume.capacity_bytes > 0);
    // Whoever leads nothing says nothing: a sum over the replicas is right.
    let count = led.clone().next().map(|_| ([], snapshots().count() as f64));
    vec![
        VOLUMES.gauge(by_namespace.into_iter().map(|(namespace, count)| ([namespace], count as f64))),
        CAPACITY.gauge(limited.map(|volume| ([volume.id.as_str()], volume.capacity_bytes as f64))),
        USED.gauge(volumes().map(|volume| ([volume.id.as_str()], volume.used_bytes as f64))),
        SNAPSHOTS.gauge(count),
        SNAPSHOT_SIZE.gauge(snapshots().map(|(id, bytes)| ([id.as_str()], *bytes as f64))),
    ]
}

impl Monitored for Monitoring {
    const PROGRAM: &'static str = "tarbox-controller";

    /// Whoever answers, lives: nothing else could be mended by a restart.
    fn alive(&self) -> std::result::Result<(), String> {
        Ok(())
    }

    fn ready(&self) -> std::result::Result<(), String> {
        self.database_answers().unwrap_or(Ok(()))
    }

    fn database_answers(&self) -> Option<std::result::Result<(), String>> {
        self.databases.home_answers()
    }

    fn registry(&self) -> &Registry {
        &self.registry
    }

    async fn measured(&self) -> Vec<MetricFamily> {
        families_of(self.led.lock().values())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(id: &str, namespace: &str, capacity_bytes: u64) -> VolumeSize {
        VolumeSize { id: id.into(), namespace: namespace.into(), capacity_bytes, used_bytes: 1 }
    }

    #[test]
    fn volumes_are_counted_by_namespace_and_who_leads_nothing_says_nothing() {
        let one = Inventory {
            volumes: vec![volume("a", "team", 10), volume("b", "team", 0), volume("c", "", 10)],
            snapshots: vec![("s".into(), 5)],
        };
        let other = Inventory { volumes: vec![volume("d", "team", 10)], snapshots: vec![] };
        let families = families_of([&one, &other].into_iter());
        let rows = |name: &str| {
            let family = families.iter().find(|family| family.name() == name).expect(name);
            let label = |row: &tarbox_runtime::prometheus::proto::Metric| {
                row.get_label().first().map(|label| label.value().to_owned()).unwrap_or_default()
            };
            family
                .get_metric()
                .iter()
                .map(|row| (label(row), row.get_gauge().get_value()))
                .collect::<Vec<_>>()
        };
        assert_eq!(rows("tarbox_volume_count"), [(String::new(), 1.0), ("team".to_owned(), 3.0)]);
        assert_eq!(rows("tarbox_volume_capacity_bytes").len(), 3, "one has no limit");
        assert_eq!(rows("tarbox_volume_used_bytes").len(), 4);
        assert_eq!(rows("tarbox_snapshot_count"), [(String::new(), 1.0)]);
        assert_eq!(rows("tarbox_snapshot_size_bytes"), [("s".to_owned(), 5.0)]);
        let nothing = families_of(std::iter::empty::<&Inventory>());
        assert!(nothing.iter().all(|family| family.get_metric().is_empty()));
    }
}
