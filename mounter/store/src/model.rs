//! What the store keeps, as values: tenants and leases, rows of a view, the batch of one commit.

use std::ops::Range;

use bytes::Bytes;
use tarbox_types::{
    BlockHash, BlockId, BlockIndex, BranchId, Cookie, DataId, Epoch, FamilyId, Ino, Layer, Seq, SessionId,
    TenantId,
};
use uuid::Uuid;

// === Tenants ===

/// Limits of a tenant; 0 = unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Allocated bytes of the head.
    pub bytes: u64,
    /// Inodes of the head.
    pub inodes: u64,
    /// Size of the largest file in bytes (at most 2^53).
    pub file_bytes: u64,
}

/// Bytes per block of a tenant for which nothing else is said.
pub const DEFAULT_BLOCK_SIZE: u32 = 128 << 10;

impl Limits {
    /// Inodes of a tenant whose capacity is so many bytes, where nothing else is said: one for 16 KiB, and at least 1,024.
    #[must_use]
    pub fn inodes_of(bytes: u64) -> u64 {
        (bytes >> 14).max(1024)
    }
}

/// How blocks are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// As they are.
    None,
    /// zstd, where it makes them smaller.
    Zstd,
}

/// What a tenant is made from.
#[derive(Clone, Debug)]
pub struct NewTenant {
    /// Its id; making the same id again is not an error and changes nothing.
    pub id: TenantId,
    /// Its name, unique among the live ones: 1 to 63 of `a-z 0-9 - . _`.
    pub name: String,
    /// Its limits.
    pub limits: Limits,
    /// Bytes per block: a power of two, 4 KiB to 4 MiB. Cannot change later.
    pub block_size: u32,
    /// Cannot change for what is stored already; a later change holds for new blocks.
    pub compression: Compression,
    /// Owner and permission bits of the root directory.
    pub root_uid: u32,
    /// Group of the root directory.
    pub root_gid: u32,
    /// Permission bits of the root directory.
    pub root_mode: u32,
}

/// Whether a tenant can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TenantState {
    /// It can.
    Live,
    /// Deleted; its data goes in the background.
    Deleted,
}

/// What becomes of a tenant's deletion while a live session holds its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InUse {
    /// It is refused.
    Refuse,
    /// It is marked; the holder goes on until it gives the lease back, and nobody gets it again.
    GoOn,
}

/// A tenant's row.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// Volume id.
    pub id: TenantId,
    /// Name.
    pub name: String,
    /// Family.
    pub family: FamilyId,
    /// State.
    pub state: TenantState,
    /// Limits.
    pub limits: Limits,
    /// Bytes per block.
    pub block_size: u32,
    /// Compression of new blocks.
    pub compression: Compression,
    /// Allocated bytes of the head, orphans included, as of the last commit.
    pub used_bytes: u64,
    /// Inodes of the head, the root included, orphans included, as of the last commit.
    pub used_inodes: u64,
    /// The head's branch.
    pub head_branch: BranchId,
    /// The layer that the next commit writes.
    pub layer: Layer,
    /// Journal position of the last commit.
    pub seq: Seq,
    /// Epoch of the last lease.
    pub epoch: Epoch,
    /// Who holds the lease now, if its session lives.
    pub holder: Option<Holder>,
    /// The lease was never given back, and its session is dead: a journal may hold what was acknowledged and not committed.
    pub is_abandoned: bool,
}

// === Leases ===

/// Who holds a lease, for messages: `pid 4711 on host build-3 (since …)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Session.
    pub session: SessionId,
    /// Host name.
    pub node: String,
    /// Process.
    pub pid: u32,
}

/// What a session says of itself.
#[derive(Clone, Debug)]
pub struct NewSession {
    /// Chosen by the caller, random.
    pub id: SessionId,
    /// Host name.
    pub node: String,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Process.
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`.
    pub start_time: u64,
}

/// The right to commit: carried by every commit, and checked by the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// Tenant.
    pub tenant: TenantId,
    /// Session that holds the lease.
    pub session: SessionId,
    /// Epoch of the lease.
    pub epoch: Epoch,
    /// Random per lease: a restored copy of the database with the same epoch is told apart.
    pub token: Uuid,
}

/// A lease just taken.
#[derive(Clone, Debug)]
pub struct Lease {
    /// What every commit has to carry.
    pub fence: Fence,
    /// Fence of the lease before this one.
    pub previous: Fence,
    /// Epoch of the last commit (0 = none yet). A journal written under it, or under a later lease that came to no commit,
    /// goes on where the database stands: holders may have died between taking the lease and opening their journal.
    pub committed_epoch: Epoch,
    /// The tenant as it stands (its `seq` is where the journal goes on).
    pub tenant: Tenant,
    /// First inode number (and data id, and cookie) not handed out: 2^20 beyond what any earlier holder committed.
    pub next_ino: Ino,
    /// Head, with its ancestors.
    pub head: View,
}

/// The answer to a heartbeat.
#[derive(Clone, Debug)]
pub struct Beat {
    /// How long the lease counts from the moment the heartbeat was *sent*.
    pub valid_for: std::time::Duration,
    /// How soon to ask again, at the latest: who waits for an answer (a snapshot) waits that long.
    pub again_in: std::time::Duration,
    /// The session's tenants: epoch now in the database (another than ours = lost), limits, whether it was deleted,
    /// and whether somebody else wants it.
    pub tenants: Vec<BeatTenant>,
}

/// One tenant of a heartbeat.
#[derive(Clone, Debug)]
pub struct BeatTenant {
    /// Tenant.
    pub tenant: TenantId,
    /// Epoch in the database.
    pub epoch: Epoch,
    /// Limits in the database.
    pub limits: Limits,
    /// State.
    pub state: TenantState,
    /// Another session waits for this lease.
    pub wanted: bool,
    /// Snapshots that are to be made: the holder seals a layer for each, once.
    pub seals: Vec<Seal>,
}

// === Views ===

/// A point of history through which rows are seen: a branch with its ancestors, nearest first,
/// each up to a layer ([`Layer::MAX`] for a head).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// At least one; at most 8 are kept by path compression.
    pub chain: Vec<Link>,
}

/// One branch of a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Branch.
    pub branch: BranchId,
    /// Rows born in this layer or before are seen.
    pub layer: Layer,
    /// Inode numbers, data ids and cookies from here on were handed out after this branch forked: ancestors lack them.
    pub ino_floor: Ino,
}

/// Keys of rows that may differ between two views: all that do, and perhaps others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Inodes, without repetition. Whatever is changed of one, changes its row.
    pub inodes: Vec<Ino>,
    /// Directories and names, without repetition.
    pub entries: Vec<(Ino, Bytes)>,
}

/// Rows of a branch that one of two views may see and the other not: those born or died after `after`, up to `upto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) branch: BranchId,
    pub(crate) after: Layer,
    pub(crate) upto: Layer,
}

impl View {
    /// Where the rows are that this view and another one see differently. Pure.
    pub(crate) fn windows(&self, other: &Self) -> Vec<Window> {
        let layer_in =
            |view: &Self, branch| view.chain.iter().find(|link| link.branch == branch).map(|link| link.layer);
        let ours = self.chain.iter().map(|link| (link, layer_in(other, link.branch)));
        let theirs =
            other.chain.iter().filter(|link| layer_in(self, link.branch).is_none()).map(|link| (link, None));
        let window = |(link, other): (&Link, Option<Layer>)| {
            let other = other.unwrap_or(-1);
            (link.layer != other).then(|| Window {
                branch: link.branch,
                after: link.layer.min(other),
                upto: link.layer.max(other),
            })
        };
        ours.chain(theirs).filter_map(window).collect()
    }
}

// === Rows ===

/// Nanoseconds since the epoch would end in 2262; seconds and nanoseconds do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Time {
    /// Seconds since 1970, negative before.
    pub sec: i64,
    /// 0 to 999,999,999.
    pub nsec: u32,
}

/// Allocation granularity in bytes: what is charged, what `st_blocks` and holes are counted in.
pub const UNIT: u64 = 4096;

/// An inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InodeRow {
    /// Number.
    pub ino: Ino,
    /// Type and permission bits, as `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device of a device node, as `st_rdev` of the FUSE protocol (32 bits).
    pub rdev: u32,
    /// Links; 0 = orphan: unlinked but perhaps open.
    pub nlink: u32,
    /// Size in bytes; of a directory 4096.
    pub size: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of content.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Parent of a directory; 0 else.
    pub dir_parent: Ino,
    /// Names the content; 0 for what has none.
    pub did: DataId,
    /// Ancestors' blocks at or beyond this byte are invisible; `u64::MAX >> 1` where never truncated.
    pub cut: u64,
    /// Allocated bytes, a multiple of [`UNIT`].
    pub charge: u64,
    /// Ranges in units, allocated by `fallocate`, written since or not: sorted, disjoint, not adjacent.
    pub prealloc: Vec<std::ops::Range<u64>>,
    /// Target of a symbolic link; empty else.
    pub target: Bytes,
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryRow {
    /// Directory.
    pub parent: Ino,
    /// 1 to 255 bytes, any but `/` and NUL.
    pub name: Bytes,
    /// What it names.
    pub ino: Ino,
    /// Type bits of the mode (`S_IFMT`), for readdir.
    pub kind: u32,
    /// Position: unique in the directory, kept while the name exists.
    pub cookie: Cookie,
}

/// Which units of a block are allocated (bit 0 of byte 0 = the block's first unit). Trailing zero bytes are left out.
#[derive(Clone, Debug, PartialEq, Eq, Default, Hash)]
pub struct AllocMap(pub smallvec::SmallVec<[u8; 8]>);

impl AllocMap {
    /// Whether a unit of the block is allocated.
    #[must_use]
    pub fn contains(&self, unit: u32) -> bool {
        self.0.get(unit as usize / 8).is_some_and(|byte| byte >> (unit % 8) & 1 == 1)
    }

    /// Sets or clears units.
    pub fn set(&mut self, units: std::ops::Range<u32>, allocated: bool) {
        if allocated && self.0.len() < units.end.div_ceil(8) as usize {
            self.0.resize(units.end.div_ceil(8) as usize, 0);
        }
        for unit in units.start..units.end.min(self.0.len() as u32 * 8) {
            let bit = 1 << (unit % 8);
            if allocated {
                self.0[unit as usize / 8] |= bit;
            } else {
                self.0[unit as usize / 8] &= !bit;
            }
        }
        while self.0.last() == Some(&0) {
            self.0.pop();
        }
    }

    /// How many units are allocated.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.iter().map(|byte| u64::from(byte.count_ones())).sum()
    }

    /// How many units of a range are allocated.
    #[must_use]
    pub fn count_in(&self, units: std::ops::Range<u32>) -> u64 {
        units.filter(|&unit| self.contains(unit)).count() as u64
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What an extent row says of its block. (Zero bytes at the end of a block are not stored; what is beyond `len` reads as zero.)
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExtentBody {
    /// A hole, explicit because an ancestor has something there.
    Hole,
    /// A stored block.
    Block(BlockId),
    /// Up to [`INLINE_MAX`] bytes in the row.
    Inline(Bytes),
}

/// The largest content that stands in the extent row.
pub const INLINE_MAX: usize = 4096;

/// One block of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtentRow {
    /// Content.
    pub did: DataId,
    /// Index in the file.
    pub blk: BlockIndex,
    /// Allocated units.
    pub alloc: AllocMap,
    /// Where the bytes are.
    pub body: ExtentBody,
}

/// A change of a part of a block, folded into it later. Applied in the order of `seq`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatchRow {
    /// Content.
    pub did: DataId,
    /// Block.
    pub blk: BlockIndex,
    /// Order among the patches of one block: the journal position it comes from.
    pub seq: Seq,
    /// Offset in the block.
    pub off: u32,
    /// New bytes there.
    pub data: Bytes,
}

/// An extent as loaded: without its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Index in the file.
    pub blk: BlockIndex,
    /// Allocated units, patches included (the commit of a patch carries the new map, see [`Batch::patched`]).
    pub alloc: AllocMap,
    /// How the bytes are kept.
    pub kind: ExtentKind,
    /// How many patches lie on it, and how many bytes they have together.
    pub patches: u32,
    /// Bytes of the patches.
    pub patch_bytes: u32,
}

impl Extent {
    /// Whether nothing lies there, patches included.
    #[must_use]
    pub fn is_hole(&self) -> bool {
        self.kind == ExtentKind::Hole && self.patches == 0
    }
}

/// Kind of an [`Extent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Explicit hole, or one that only patches lie on.
    Hole,
    /// A stored block.
    Block(BlockId),
    /// In the row.
    Inline,
}

/// Content of a file as a row reader needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataRef {
    /// Data id.
    pub did: DataId,
    /// [`InodeRow::cut`].
    pub cut: u64,
}

// === Blocks ===

/// How a block's bytes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// As they are.
    Raw,
    /// zstd.
    Zstd,
}

/// A block's header: inserted by the ordered metadata commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockHeader {
    /// Serial number from [`crate::TenantStore::reserve_blocks`].
    pub block: BlockId,
    /// Of the uncompressed bytes.
    pub hash: BlockHash,
    /// Uncompressed length.
    pub len: u32,
    /// How it is stored.
    pub codec: Codec,
}

/// A block ready to be uploaded.
#[derive(Clone, Debug)]
pub struct EncodedBlock {
    /// Header.
    pub header: BlockHeader,
    /// Stored bytes.
    pub bytes: Bytes,
}

/// A part of a block that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartRead {
    /// The bytes it stands for, by their offset in the block; the whole block: up to `u32::MAX`.
    pub range: Range<u32>,
    /// They; those lacking at the end are zero.
    pub bytes: Bytes,
}

impl PartRead {
    /// A whole block.
    #[must_use]
    pub fn whole(bytes: Bytes) -> Self {
        Self { range: 0..u32::MAX, bytes }
    }

    /// Whether it is a whole block.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.range == (0..u32::MAX)
    }
}

// === Commit ===

/// What one commit changes: coalesced, each key at most once per table.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Journal position that the database must stand at.
    pub from_seq: Seq,
    /// Journal position afterwards.
    pub to_seq: Seq,
    /// Next number to hand out for inodes, data ids and cookies.
    pub next_ino: Ino,
    /// Allocated bytes of the head afterwards.
    pub used_bytes: u64,
    /// Inodes of the head afterwards.
    pub used_inodes: u64,
    /// Headers of uploaded blocks.
    pub headers: Vec<BlockHeader>,
    /// Blocks found by hash that extents of this batch refer to; the commit fails with [`crate::StoreError::BlocksGone`] where one is missing.
    pub reused: Vec<BlockId>,
    /// Inodes new or changed.
    pub inodes: Vec<InodeRow>,
    /// Inodes gone (their extended attributes go too).
    pub removed_inodes: Vec<Ino>,
    /// Contents gone: their extents are unreachable and reaped later.
    pub removed_data: Vec<DataId>,
    /// Names new or changed.
    pub entries: Vec<EntryRow>,
    /// Names gone, with the cookie each had.
    pub removed_entries: Vec<(Ino, Bytes, Cookie)>,
    /// Extended attributes of an inode, all in one value; `None` = none left.
    pub xattrs: Vec<(Ino, Option<Bytes>)>,
    /// Extents cut off: all of a content from a block on. Done before `extents`.
    pub truncated: Vec<(DataId, BlockIndex)>,
    /// Extents new or replaced (their patches go).
    pub extents: Vec<ExtentRow>,
    /// Extents gone (holes punched): whiteouts where an ancestor may have them.
    pub removed_extents: Vec<(DataId, BlockIndex)>,
    /// Patches on extents that this batch does not replace, remove or cut off; where there is none, on a hole.
    pub patches: Vec<PatchRow>,
    /// New allocation maps of extents that only got patches.
    pub patched: Vec<(DataId, BlockIndex, AllocMap)>,
    /// Seal the layer after this batch.
    pub seal: Option<Seal>,
    /// Audit events of the tenant, whatever branch it writes: they go with the tenant alone.
    pub audit: Vec<AuditChunk>,
}

impl Batch {
    /// Whether the tenant is afterwards what it was before: only events of its audit are new.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        let Self {
            from_seq: _,
            to_seq: _,
            next_ino: _,
            used_bytes: _,
            used_inodes: _,
            headers,
            reused,
            inodes,
            removed_inodes,
            removed_data,
            entries,
            removed_entries,
            xattrs,
            truncated,
            extents,
            removed_extents,
            patches,
            patched,
            seal,
            audit: _,
        } = self;
        headers.is_empty()
            && reused.is_empty()
            && inodes.is_empty()
            && removed_inodes.is_empty()
            && removed_data.is_empty()
            && entries.is_empty()
            && removed_entries.is_empty()
            && xattrs.is_empty()
            && truncated.is_empty()
            && extents.is_empty()
            && removed_extents.is_empty()
            && patches.is_empty()
            && patched.is_empty()
            && seal.is_none()
    }
}

/// Audit events of a tenant that became known together, packed by who knows what they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditChunk {
    /// Position of the commit that brought them.
    pub seq: Seq,
    /// Place among those of one commit.
    pub part: u32,
    /// When the first of them happened, in microseconds since 1970.
    pub since: u64,
    /// When the last of them happened.
    pub until: u64,
    /// How many.
    pub events: u32,
    /// They.
    pub data: Bytes,
}

/// Where a chunk stands in the order in which they are read: by `until`, then `seq`, then `part`.
pub type AuditPosition = (u64, Seq, u32);

impl AuditChunk {
    /// Its place.
    #[must_use]
    pub fn position(&self) -> AuditPosition {
        (self.until, self.seq, self.part)
    }
}

/// Which audit events are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AuditRange {
    /// Only what stands behind this one (before it, where the newest come first).
    pub after: Option<AuditPosition>,
    /// Only those that hold something at or after this time, in microseconds since 1970.
    pub since: u64,
    /// The newest first.
    pub newest_first: bool,
}

/// A checkpoint to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seal {
    /// Name of the checkpoint, unique in the tenant.
    pub name: String,
    /// Makes it idempotent: the same request seals once.
    pub request: String,
}

/// What a commit found and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Layer that was written.
    pub layer: Layer,
    /// Layer that was sealed, where [`Batch::seal`] asked for it.
    pub sealed: Option<Layer>,
    /// Limits as they stand.
    pub limits: Limits,
}

/// What a row of the history counts for beside its content, in bytes of [`crate::TenantStore::history_bytes`].
pub(crate) const ROW_BYTES: i64 = 256;

/// Rows of removed contents, which wait for the collector, that are added to a history: of more than these, not all at first.
pub(crate) const DEAD_ROWS: i64 = 50_000;

/// A sealed layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerRow {
    /// Whose history it was sealed in.
    pub tenant: TenantId,
    /// Branch.
    pub branch: BranchId,
    /// Layer.
    pub layer: Layer,
    /// Name.
    pub name: String,
    /// Seconds since 1970, by the database's clock.
    pub sealed_at: i64,
    /// Allocated bytes at that point.
    pub used_bytes: u64,
    /// Inodes at that point.
    pub used_inodes: u64,
}
