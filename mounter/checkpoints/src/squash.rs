//! Many small steps of history made one: which checkpoints between two others can go. Pure.

use crate::list::{Checkpoint, Kind};

/// What lies between two checkpoints of one line of history, whichever of them is the older one; neither of them is included.
/// `all`: the tenant's checkpoints, newest first. Snapshots, where clones begin, and what has a tag stay.
#[must_use]
pub fn between<'a>(all: &'a [Checkpoint], one: &Checkpoint, other: &Checkpoint) -> Vec<&'a Checkpoint> {
    let at = |wanted: &Checkpoint| all.iter().position(|checkpoint| checkpoint.layer == wanted.layer);
    let (Some(one), Some(other)) = (at(one), at(other)) else { return Vec::new() };
    let inner = one.min(other) + 1..one.max(other);
    let may_go = |checkpoint: &&Checkpoint| {
        matches!(checkpoint.kind, Kind::Checkpoint | Kind::BeforeRestore)
            && checkpoint.tags.is_empty()
            && checkpoint.is_in_line
    };
    all.get(inner).unwrap_or_default().iter().filter(may_go).collect()
}

#[cfg(test)]
mod tests {
    use tarbox_store::LayerRow;
    use tarbox_types::TenantId;

    use super::*;

    fn checkpoint(layer: i64, kind: Kind, tags: &[&str], is_in_line: bool) -> Checkpoint {
        let layer = LayerRow {
            tenant: TenantId(uuid::Uuid::nil()),
            branch: 1,
            layer,
            name: format!("c{layer}"),
            sealed_at: 0,
            used_bytes: 0,
            used_inodes: 1,
        };
        let tags = tags.iter().map(ToString::to_string).collect();
        Checkpoint { layer, kind, id: None, tags, is_in_line }
    }

    #[test]
    fn plain_checkpoints_between_the_two_go_and_what_somebody_needs_stays() {
        let all = [
            checkpoint(9, Kind::Checkpoint, &[], true),
            checkpoint(8, Kind::Checkpoint, &[], true),
            checkpoint(7, Kind::Snapshot, &[], true),
            checkpoint(6, Kind::Checkpoint, &["release"], true),
            checkpoint(5, Kind::Base, &[], true),
            checkpoint(4, Kind::Checkpoint, &[], false),
            checkpoint(3, Kind::BeforeRestore, &[], true),
            checkpoint(2, Kind::Checkpoint, &[], true),
        ];
        for (one, other) in [(&all[0], &all[7]), (&all[7], &all[0])] {
            let names: Vec<_> = between(&all, one, other).iter().map(|one| one.layer.name.as_str()).collect();
            assert_eq!(names, ["c8", "c3"]);
        }
        assert!(between(&all, &all[0], &all[1]).is_empty());
        assert!(between(&all, &all[0], &all[0]).is_empty());
    }
}
