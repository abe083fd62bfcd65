//! What is read in the control directory: one JSON document for each file.

use std::collections::HashMap;

use serde_json::{Value, json};
use tarbox_proto::control::v1::{Latencies, OperationStatistics};
use tarbox_store::LayerRow;
use tarbox_types::{
    BranchId,
    latency::{self, Counted},
};

use super::{ControlDirectory, layout::File, patiently};
use crate::{
    cli::checkpoint::CheckpointView,
    event_view::{EventView, Origin},
    failure::Failure,
};

impl ControlDirectory {
    /// The document of a file, as it is now.
    ///
    /// # Errors
    /// Those of the database, where that has to be asked.
    pub(super) async fn report(&self, file: File) -> Result<Vec<u8>, Failure> {
        let value = match file {
            File::Current => self.current().await?,
            File::List => json!(self.checkpoints().await?),
            File::Tree => self.tree().await?,
            File::New => self.outcome(file, "name, or {\"name\": …, \"tags\": […]}"),
            File::Switch | File::Drop => {
                self.outcome(file, "name, tag or id of a checkpoint, or {\"name\": …}")
            }
            File::Usage => self.usage(),
            File::Performance => self.performance(),
            File::Cache => self.cache(),
            File::Flush => self.journal(),
            File::Gc => self.garbage(),
            File::Recent => self.recent().await?,
            File::Tag => Value::Null,
        };
        let mut text = serde_json::to_vec_pretty(&value).unwrap_or_default();
        text.push(b'\n');
        Ok(text)
    }

    async fn checkpoints(&self) -> Result<Vec<CheckpointView>, Failure> {
        let all = self.list().await?;
        Ok(all.into_iter().map(CheckpointView::new).collect())
    }

    /// What the present has grown from.
    async fn current(&self) -> Result<Value, Failure> {
        let newest = self.checkpoints().await?.into_iter().find(CheckpointView::is_in_line);
        Ok(json!({
            "tenant": self.subject.note.tenant_name,
            "tenant_id": self.tenant,
            "branch": self.head.view().chain[0].branch,
            "checkpoint": newest,
        }))
    }

    /// Each checkpoint, and the present, with the one that it has grown from.
    async fn tree(&self) -> Result<Value, Failure> {
        let all = self.list().await?;
        let mut begins = HashMap::new();
        for checkpoint in &all {
            if let std::collections::hash_map::Entry::Vacant(vacant) = begins.entry(checkpoint.layer.branch) {
                vacant.insert(patiently(|| self.store.began_at(checkpoint.layer.branch)).await?);
            }
        }
        let layers: Vec<LayerRow> = all.into_iter().map(|checkpoint| checkpoint.layer).collect();
        let mut nodes: Vec<Value> = layers
            .iter()
            .map(|layer| {
                let parent = parent_of(&layers, &begins, (layer.branch, layer.layer - 1));
                json!({ "name": layer.name, "parent": parent, "sealed_at": layer.sealed_at })
            })
            .collect();
        let head = self.head.view();
        let branch = head.chain[0].branch;
        if let std::collections::hash_map::Entry::Vacant(vacant) = begins.entry(branch) {
            vacant.insert(patiently(|| self.store.began_at(branch)).await?);
        }
        let parent = parent_of(&layers, &begins, (head.chain[0].branch, head.chain[0].layer));
        nodes.push(json!({ "name": tarbox_checkpoints::HEAD, "parent": parent, "sealed_at": null }));
        Ok(json!(nodes))
    }

    fn outcome(&self, file: File, write: &str) -> Value {
        json!({ "write": write, "last": self.outcomes.lock().get(&file) })
    }

    fn usage(&self) -> Value {
        let now = self.head.status();
        let limit = |limit: u64| (limit > 0).then_some(limit);
        json!({
            "used_bytes": now.used_bytes,
            "quota_bytes": limit(now.limits.bytes),
            "used_inodes": now.used_inodes,
            "quota_inodes": limit(now.limits.inodes),
            "max_file_bytes": limit(now.limits.file_bytes),
            "unlinked_files": now.unlinked,
            "quota_refusals": now.refusals,
        })
    }

    fn performance(&self) -> Value {
        let statistics = self.subject.statistics();
        let commits = statistics.file_system.and_then(|file_system| file_system.commits);
        let of_operation = |operation: &OperationStatistics| {
            let counted = Counted::of(operation.count, operation.total_ns, &operation.latencies);
            let mut value = latencies(&counted);
            value["name"] = json!(operation.name);
            value["errors"] = json!(operation.errors);
            value
        };
        let commits = commits
            .map(|Latencies { count, total_ns, classes }| latencies(&Counted::of(count, total_ns, &classes)));
        json!({
            "operations": statistics.operations.iter().map(of_operation).collect::<Vec<_>>(),
            "commits": commits,
        })
    }

    fn cache(&self) -> Value {
        let now = self.head.status();
        let (numbered, open) = self.views.count();
        json!({
            "blocks": {
                "hits": now.cache.hits,
                "misses": now.cache.misses,
                "count": now.cache.blocks,
                "bytes": now.cache.bytes,
                "capacity_bytes": self.cache_bytes,
            },
            "journal": self.journal(),
            "snapshots": { "looked_at": numbered, "in_memory": open },
        })
    }

    fn journal(&self) -> Value {
        let now = self.head.status();
        json!({
            "acknowledged": now.seq,
            "committed": now.committed,
            "journal_bytes": now.journal_bytes,
            "age_ms": now.journal_age.as_millis() as u64,
            "waiting_for": now.lost.or(now.waiting_for),
        })
    }

    /// The last audit events, oldest first, those that are not committed yet included.
    async fn recent(&self) -> Result<Value, Failure> {
        let events = self.head.recent_events().await.map_err(|error| Failure::Part {
            kind: error.kind(),
            doing: "read the last audit events".to_owned(),
            source: error.into(),
        })?;
        let note = &self.subject.note;
        let node = tarbox_runtime::host_name();
        let origin = Origin { tenant: note.tenant_name.clone(), tenant_id: self.tenant, node };
        Ok(json!(events.iter().map(|event| EventView::new(&origin, event)).collect::<Vec<_>>()))
    }

    fn garbage(&self) -> Value {
        json!({
            "unlinked_files": self.head.status().unlinked,
            "last": self.outcomes.lock().get(&File::Gc),
        })
    }
}

/// Where the branches begin, as far as that is known: branch and layer of the parent.
type Begins = HashMap<BranchId, Option<(BranchId, i64)>>;

/// The name of the youngest checkpoint that a point of history has grown from. Pure.
fn parent_of<'l>(layers: &'l [LayerRow], begins: &Begins, mut point: (BranchId, i64)) -> Option<&'l str> {
    loop {
        let here = layers.iter().filter(|layer| layer.branch == point.0 && layer.layer <= point.1);
        if let Some(youngest) = here.max_by_key(|layer| layer.layer) {
            return Some(&youngest.name);
        }
        point = (*begins.get(&point.0)?)?;
    }
}

/// Microseconds; percentiles are the bounds of their classes, powers of two.
fn latencies(counted: &Counted) -> Value {
    let mean = counted.total.as_micros() as u64 / counted.count.max(1);
    json!({
        "count": counted.count,
        "mean_us": mean,
        "p50_us": percentile(counted, 50),
        "p99_us": percentile(counted, 99),
    })
}

/// What so many of a hundred took less than, in microseconds. Pure.
fn percentile(counted: &Counted, percent: u64) -> u64 {
    let total: u64 = counted.classes.iter().sum();
    let mut seen = 0;
    let class = counted.classes.iter().position(|count| {
        seen += count;
        seen > 0 && seen * 100 >= total * percent
    });
    class.map_or(0, |class| latency::bound(class).as_micros() as u64)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tarbox_types::TenantId;

    use super::*;

    fn layer(branch: BranchId, layer: i64, name: &str) -> LayerRow {
        LayerRow {
            tenant: TenantId::random(),
            branch,
            layer,
            name: name.to_owned(),
            sealed_at: 0,
            used_bytes: 0,
            used_inodes: 0,
        }
    }

    #[test]
    fn the_parent_is_the_youngest_before_on_the_branch_or_where_it_began() {
        let layers = [layer(2, 9, "c"), layer(1, 4, "b"), layer(1, 2, "a")];
        let begins = HashMap::from([(1, None), (2, Some((1, 2))), (3, Some((2, 8)))]);
        let parent = |point| parent_of(&layers, &begins, point);
        assert_eq!(parent((1, 1)), None);
        assert_eq!(parent((1, 3)), Some("a"));
        assert_eq!(parent((1, i64::MAX)), Some("b"));
        assert_eq!(parent((2, 8)), Some("a"));
        // Through a branch that has no checkpoint before that point.
        assert_eq!(parent((3, 5)), Some("a"));
        assert_eq!(parent((7, 1)), None);
    }

    #[test]
    fn percentiles_are_bounds_of_classes() {
        let latencies = latency::Latencies::default();
        assert_eq!(percentile(&latencies.counted(), 50), 0);
        for _ in 0..99 {
            latencies.record(Duration::from_micros(3));
        }
        latencies.record(Duration::from_millis(1));
        let counted = latencies.counted();
        assert_eq!(
            (percentile(&counted, 50), percentile(&counted, 99), percentile(&counted, 100)),
            (4, 4, 1024)
        );
    }
}
