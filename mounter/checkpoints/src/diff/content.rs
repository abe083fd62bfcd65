//! Whether two files hold the same, and their texts.

use std::collections::BTreeMap;

use bytes::Bytes;
use tarbox_store::{DataRef, Extent, ExtentKind, InodeRow, TenantStore, View};
use tarbox_types::BlockIndex;

use super::text::Texts;
use crate::error::Result;

/// Blocks whose rows are compared at a time.
const WINDOW: u64 = 1024;
/// Bytes of one side that are read at a time.
const READ_BYTES: u64 = 4 << 20;
/// Longer files are not compared line by line.
const TEXT_MAX: u64 = 4 << 20;

pub(super) fn is_file(row: &InodeRow) -> bool {
    row.mode & libc::S_IFMT == libc::S_IFREG
}

/// Whether all but the content and the times are the same; extended attributes are not in the row.
pub(super) fn is_same_attributes(was: &InodeRow, is: &InodeRow) -> bool {
    (was.mode, was.uid, was.gid, was.rdev, &was.target) == (is.mode, is.uid, is.gid, is.rdev, &is.target)
}

fn data(row: &InodeRow) -> DataRef {
    DataRef { did: row.did, cut: row.cut }
}

/// Contents of two views.
pub(super) struct Content<'v> {
    pub(super) store: &'v dyn TenantStore,
    pub(super) block_size: u64,
    pub(super) before: &'v View,
    pub(super) after: &'v View,
}

impl Content<'_> {
    /// Whether two files hold something different. What has the same blocks is not read.
    pub(super) async fn is_different(&self, was: &InodeRow, is: &InodeRow) -> Result<bool> {
        if !is_file(was) || !is_file(is) {
            return Ok(false);
        }
        if was.size != is.size {
            return Ok(true);
        }
        // Every change of the content changes these, too.
        if (was.did, was.mtime, was.ctime) == (is.did, is.mtime, is.ctime) {
            return Ok(false);
        }
        let end = is.size.div_ceil(self.block_size);
        let mut from = 0;
        while from < end {
            let to = end.min(from + WINDOW);
            let old = self.store.extents(self.before, data(was), from..to).await?;
            let new = self.store.extents(self.after, data(is), from..to).await?;
            let doubtful = doubtful(&old, &new);
            for blks in doubtful.chunks((READ_BYTES / self.block_size).max(1) as usize) {
                let old = self.store.read(self.before, data(was), blks).await?;
                let new = self.store.read(self.after, data(is), blks).await?;
                if !is_same(old, new) {
                    return Ok(true);
                }
            }
            from = to;
        }
        Ok(false)
    }

    /// Both sides as text; a side that is not there is empty. `None` where one is no text, or too long.
    pub(super) async fn texts(&self, was: Option<&InodeRow>, is: Option<&InodeRow>) -> Result<Option<Texts>> {
        let Some(old) = self.text(self.before, was).await? else { return Ok(None) };
        let Some(new) = self.text(self.after, is).await? else { return Ok(None) };
        Ok(Some(Texts { old, new }))
    }

    async fn text(&self, view: &View, row: Option<&InodeRow>) -> Result<Option<String>> {
        let Some(row) = row else { return Ok(Some(String::new())) };
        if !is_file(row) || row.size > TEXT_MAX {
            return Ok(None);
        }
        let blks: Vec<BlockIndex> = (0..row.size.div_ceil(self.block_size)).collect();
        let mut bytes = vec![0; row.size as usize];
        for (blk, read) in self.store.read(view, data(row), &blks).await? {
            let at = (blk * self.block_size) as usize;
            let length = read.len().min(bytes.len() - at);
            bytes[at..at + length].copy_from_slice(&read[..length]);
        }
        let is_text = !bytes.contains(&0);
        Ok(if is_text { String::from_utf8(bytes).ok() } else { None })
    }
}

/// Blocks of which the rows do not say that both sides hold the same. Pure.
fn doubtful(old: &[Extent], new: &[Extent]) -> Vec<BlockIndex> {
    let mut sides: BTreeMap<BlockIndex, (Option<&Extent>, Option<&Extent>)> = BTreeMap::new();
    for extent in old {
        sides.entry(extent.blk).or_default().0 = Some(extent);
    }
    for extent in new {
        sides.entry(extent.blk).or_default().1 = Some(extent);
    }
    let is_sure = |(old, new): &(Option<&Extent>, Option<&Extent>)| match (old, new) {
        (Some(old), Some(new)) => {
            let is_plain =
                |extent: &Extent| extent.patches == 0 && matches!(extent.kind, ExtentKind::Block(_));
            is_plain(old) && is_plain(new) && (old.kind, &old.alloc) == (new.kind, &new.alloc)
        }
        (Some(one), None) | (None, Some(one)) => one.is_hole(),
        (None, None) => true,
    };
    sides.into_iter().filter(|(_, pair)| !is_sure(pair)).map(|(blk, _)| blk).collect()
}

/// Whether blocks read the same; what is not there, or beyond the end of one, is zero. Pure.
fn is_same(old: Vec<(BlockIndex, Bytes)>, new: Vec<(BlockIndex, Bytes)>) -> bool {
    let trimmed = |blocks: Vec<(BlockIndex, Bytes)>| -> BTreeMap<BlockIndex, Bytes> {
        let end = |bytes: &Bytes| bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        let cut = blocks.into_iter().map(|(blk, bytes)| (blk, bytes.slice(..end(&bytes))));
        cut.filter(|(_, bytes)| !bytes.is_empty()).collect()
    };
    trimmed(old) == trimmed(new)
}

#[cfg(test)]
mod tests {
    use tarbox_store::AllocMap;

    use super::*;

    fn extent(blk: u64, kind: ExtentKind, patches: u32) -> Extent {
        let mut alloc = AllocMap::default();
        alloc.set(0..1, true);
        Extent { blk, alloc, kind, patches, patch_bytes: patches }
    }

    #[test]
    fn only_what_the_rows_leave_open_is_read() {
        let (same, hole) = (extent(0, ExtentKind::Block(7), 0), extent(1, ExtentKind::Hole, 0));
        assert!(doubtful(std::slice::from_ref(&same), &[same.clone(), hole]).is_empty());
        for other in [
            extent(0, ExtentKind::Block(8), 0),
            extent(0, ExtentKind::Block(7), 1),
            extent(0, ExtentKind::Inline, 0),
        ] {
            assert_eq!(doubtful(std::slice::from_ref(&same), &[other]), [0]);
        }
        assert_eq!(doubtful(&[], std::slice::from_ref(&same)), [0]);
    }

    #[test]
    fn zeros_at_the_end_make_no_difference() {
        let blocks = |bytes: &'static [u8]| vec![(3, Bytes::from_static(bytes))];
        assert!(is_same(blocks(b"a\0\0"), blocks(b"a")));
        assert!(is_same(blocks(b"\0"), vec![]));
        assert!(!is_same(blocks(b"a"), blocks(b"b")));
    }
}
