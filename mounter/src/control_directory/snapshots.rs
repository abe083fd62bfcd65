//! The names in `snapshots/`: checkpoints as directories, tags as links to them.

use std::hash::{DefaultHasher, Hash, Hasher};

use fuse3::{
    FileType, Result, Timestamp,
    raw::{Filesystem, Request, reply::ReplyEntry},
};
use tarbox_fs::Sealed;
use tarbox_store::{LayerRow, StoreError, Tag};
use tarbox_types::{BranchId, Layer, ROOT_INO};

use super::{
    ControlDirectory, errno,
    layout::{Directory, File},
    node::{CONTROL, node, root_of},
    nodes::{Entry, FRESH_FOR, failed},
    patiently,
};
use crate::failure::Failure;

/// Where names of checkpoints begin in the stream, behind `.` and `..`.
const FIRST: u64 = 8;
/// Bits of a layer in a position: those of a branch are above.
const LAYER_BITS: u32 = 31;
/// Positions of tags are behind those of all checkpoints.
const TAGS: u64 = 1 << 62;

/// The position of a checkpoint: its own, whatever comes and goes around it. Pure.
fn position(branch: BranchId, layer: Layer) -> u64 {
    FIRST + ((branch.cast_unsigned() << LAYER_BITS | layer.cast_unsigned()) & (TAGS - 1))
}

/// The position of a tag: from its name (FNV-1a). Pure.
fn position_of_tag(name: &str) -> u64 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    TAGS | hash & (TAGS - 1)
}

/// Whether a directory may be called so: names of CSI snapshots are chosen by whoever makes them.
fn is_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && name.len() <= 255 && !name.contains(['/', '\0'])
}

/// A time that is another one whenever the names are others: by it the kernel knows whether those that it keeps are still right. Pure.
fn stamp(layers: &[LayerRow], tags: &[Tag]) -> Timestamp {
    let mut hasher = DefaultHasher::new();
    let newest = layers.iter().map(|layer| layer.sealed_at).max().unwrap_or(0);
    layers.iter().for_each(|layer| (layer.branch, layer.layer, &layer.name).hash(&mut hasher));
    tags.iter().for_each(|tag| (tag.branch, tag.layer, &tag.name).hash(&mut hasher));
    Timestamp { sec: newest, nsec: (hasher.finish() % 1_000_000_000) as u32 }
}

impl ControlDirectory {
    /// When the names in `snapshots/` changed; while the database cannot be asked, as it last was.
    pub(super) async fn names_changed_at(&self) -> Timestamp {
        let asked = async {
            let layers = self.store.own_layers().await?;
            Ok::<_, StoreError>(stamp(&layers, &self.database.tags(self.tenant).await?))
        };
        let asked = asked.await;
        let mut known = self.names.lock();
        if let Ok(stamp) = asked {
            *known = stamp;
        }
        *known
    }

    /// The names have changed by something that was ordered here: whoever looks next sees it.
    pub(super) async fn names_have_changed(&self, gone: Option<String>) {
        let Some(kernel) = self.kernel.get().cloned() else { return };
        // Not on a thread that answers requests: a notification may wait for who holds the directory's lock.
        let told = tokio::task::spawn_blocking(move || {
            let directory = node(CONTROL, Directory::Snapshots.ino());
            if let Some(name) = gone {
                kernel.invalidate_entry(directory, name.as_bytes());
            }
            kernel.invalidate_inode(directory, 0, 0);
        });
        let _ = told.await;
    }

    pub(super) async fn lookup_snapshot(&self, name: &[u8]) -> Result<ReplyEntry> {
        let name = std::str::from_utf8(name).ok().filter(|name| is_name(name));
        let name = name.ok_or_else(errno::not_found)?;
        let found = patiently(|| self.store.layer_named(name)).await;
        if let Some(layer) = found.map_err(|error| failed(File::List, &error.into()))? {
            return self.snapshot(&layer).await;
        }
        match self.tagged(name).await.map_err(|failure| failed(File::List, &failure))? {
            Some(target) => self.new_document(File::Tag, target.as_bytes()).await,
            None => Err(errno::not_found()),
        }
    }

    async fn snapshot(&self, layer: &LayerRow) -> Result<ReplyEntry> {
        let number = self.views.number_of(Sealed { branch: layer.branch, layer: layer.layer })?;
        let file_system = self.views.get(number).await?;
        let mut attr = file_system.getattr(Request::default(), ROOT_INO, None, 0).await?.attr;
        attr.ino = root_of(number);
        // The name may come to mean another checkpoint; what is in the directory does not change.
        Ok(ReplyEntry { ttl: FRESH_FOR, attr, generation: 0 })
    }

    /// The checkpoint that a tag names.
    async fn tagged(&self, tag: &str) -> std::result::Result<Option<String>, Failure> {
        let tags = patiently(|| self.database.tags(self.tenant)).await?;
        let Some(tag) = tags.into_iter().find(|known| known.name == tag) else { return Ok(None) };
        let layers = patiently(|| self.store.own_layers()).await?;
        let named = layers.into_iter().find(|layer| (layer.branch, layer.layer) == (tag.branch, tag.layer));
        Ok(named.map(|layer| layer.name).filter(|name| is_name(name)))
    }

    /// All names, in the order of their positions.
    pub(super) async fn snapshots(&self) -> Result<Vec<Entry>> {
        let all = self.list().await.map_err(|failure| failed(File::List, &failure))?;
        let entry = |name: &str, kind, cookie| Entry {
            name: name.to_owned(),
            // It gets one when it is looked up.
            node: node(CONTROL, Directory::Snapshots.ino() << 32 | cookie & u64::from(u32::MAX)),
            kind,
            cookie,
        };
        let mut entries = Vec::new();
        for checkpoint in all.iter().filter(|checkpoint| is_name(&checkpoint.layer.name)) {
            let LayerRow { branch, layer, ref name, .. } = checkpoint.layer;
            entries.push(entry(name, FileType::Directory, position(branch, layer)));
            let tags = checkpoint.tags.iter().filter(|tag| is_name(tag));
            entries.extend(tags.map(|tag| entry(tag, FileType::Symlink, position_of_tag(tag))));
        }
        entries.sort_unstable_by_key(|entry| entry.cookie);
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_in_the_order_of_history_and_tags_come_behind() {
        let places = [(1, 0), (1, 1), (1, i64::from(i32::MAX)), (2, 0), (i64::from(i32::MAX), 5)];
        let positions = places.map(|(branch, layer)| position(branch, layer));
        assert!(positions.is_sorted_by(|one, other| one < other) && positions[0] >= FIRST);
        for tag in ["good", "", "release-1"] {
            assert!(position_of_tag(tag) > positions[4] && i64::try_from(position_of_tag(tag)).is_ok());
        }
        assert_ne!(position_of_tag("a"), position_of_tag("b"));
    }

    #[test]
    fn the_stamp_tells_other_names_and_the_same_ones() {
        let layer = |layer, name: &str| LayerRow {
            tenant: tarbox_types::TenantId(uuid::Uuid::nil()),
            branch: 1,
            layer,
            name: name.to_owned(),
            sealed_at: 7,
            used_bytes: 0,
            used_inodes: 0,
        };
        let tag = |layer| Tag { name: "tag".into(), branch: 1, layer };
        let one = stamp(&[layer(1, "a"), layer(2, "b")], &[tag(1)]);
        assert_eq!(one, stamp(&[layer(1, "a"), layer(2, "b")], &[tag(1)]));
        for other in [
            stamp(&[layer(1, "a")], &[tag(1)]),
            stamp(&[layer(1, "a"), layer(2, "c")], &[tag(1)]),
            stamp(&[layer(1, "a"), layer(2, "b")], &[tag(2)]),
            stamp(&[layer(1, "a"), layer(2, "b")], &[]),
        ] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn what_cannot_be_a_name_is_none() {
        for bad in ["", ".", "..", "a/b", "a\0b", &"x".repeat(256)] {
            assert!(!is_name(bad), "{bad:?}");
        }
        assert!(is_name("snapshot-3f2b") && is_name("über morgen"));
    }
}
