//! The check of a tenant, the same for both engines: every invariant, read in pages through a small [`Scan`].
//!
//! An engine gives rows of one branch in the order of their keys, all from one state of the database;
//! chains are merged here. Memory: about 150 bytes per inode.

use std::collections::{BTreeMap, HashMap, HashSet};

use async_trait::async_trait;
use bytes::Bytes;
use rustc_hash::{FxHashMap, FxHashSet};
use tarbox_types::{BlockId, BlockIndex, BranchId, Cookie, DataId, Ino, ROOT_INO};

use crate::{
    api::{CheckProgress, CheckReport, Fault},
    error::{Result, StoreError},
    model::*,
};

/// Rows of a page.
const PAGE: usize = 4096;
/// Faults beyond these are counted, not told.
const TOLD: usize = 1000;
/// Mask of the file type in a mode.
const S_IFMT: u32 = 0o170_000;
const S_IFDIR: u32 = 0o040_000;

/// An extent row, as the check needs it.
#[derive(Clone, Debug)]
pub(crate) struct ScannedExtent {
    /// Allocated units.
    pub(crate) alloc: AllocMap,
    /// Hole, block, or inline.
    pub(crate) kind: ExtentKind,
    /// Length of the inline bytes; `None` where they are missing.
    pub(crate) inline_len: Option<u32>,
    /// Offsets and lengths of its patches.
    pub(crate) patches: Vec<(u32, u32)>,
}

/// What is set right.
#[derive(Clone, Debug, Default)]
pub(crate) struct Repair {
    /// Inodes without a name, and their contents.
    pub(crate) orphans: Vec<(Ino, DataId)>,
    /// Allocated bytes without them.
    pub(crate) used_bytes: u64,
    /// Inodes without them.
    pub(crate) used_inodes: u64,
}

/// Where a check begins.
pub(crate) struct Start {
    pub(crate) tenant: Tenant,
    pub(crate) view: View,
    /// Next number to hand out.
    pub(crate) next_ino: Ino,
    /// Headers of the family.
    pub(crate) blocks: u64,
}

/// Rows of single branches, by key, from one state. `after` = the last key that was seen; fewer than `limit` = the end.
#[async_trait]
pub(crate) trait Scan: Send + Sync {
    async fn start(&self) -> Result<Start>;
    /// Inodes; `None` = whiteout.
    async fn inodes(
        &self,
        link: &Link,
        after: Option<Ino>,
        limit: usize,
    ) -> Result<Vec<(Ino, Option<InodeRow>)>>;
    /// Names; `None` = whiteout.
    async fn entries(
        &self,
        link: &Link,
        after: Option<(Ino, Bytes)>,
        limit: usize,
    ) -> Result<Vec<((Ino, Bytes), Option<EntryRow>)>>;
    /// Extents, whiteouts as holes.
    async fn extents(
        &self,
        link: &Link,
        after: Option<(DataId, BlockIndex)>,
        limit: usize,
    ) -> Result<Vec<((DataId, BlockIndex), ScannedExtent)>>;
    /// From which block on ancestors' extents of a content are hidden.
    async fn cuts(&self, link: &Link) -> Result<Vec<(DataId, BlockIndex)>>;
    /// Contents of a branch that wait to be reaped.
    async fn dead(&self, link: &Link) -> Result<Vec<DataId>>;
    /// Patches of a branch whose extent row does not exist, some at least.
    async fn stray_patches(&self, link: &Link) -> Result<Vec<(DataId, BlockIndex)>>;
    /// Which of these blocks have a header.
    async fn have_headers(&self, blocks: &[BlockId]) -> Result<Vec<bool>>;
    /// Headers of the family, by id.
    async fn headers(&self, after: BlockId, limit: usize) -> Result<Vec<BlockHeader>>;
    /// Reads and verifies a block; false = its bytes are missing (and its header still stands).
    async fn verify(&self, header: &BlockHeader) -> Result<bool>;
    /// Of each branch of the tenant: what its history, with what is left of it, is known to take, and what it does take, in bytes.
    async fn histories(&self) -> Result<Vec<(BranchId, i64, i64)>>;
    /// Sets right what can be. Histories are counted anew.
    async fn repair(&self, repair: &Repair) -> Result<()>;
}

/// Checks a tenant.
pub(crate) async fn check(
    scan: &dyn Scan,
    repair: bool,
    progress: &(dyn Fn(CheckProgress) + Send + Sync),
) -> Result<CheckReport> {
    let start = scan.start().await?;
    if let (true, Some(holder)) = (repair, &start.tenant.holder) {
        return Err(StoreError::Held { tenant: start.tenant.id, holder: holder.clone() });
    }
    let mut check =
        Check { scan, start, progress, report: CheckReport::default(), inodes: FxHashMap::default() };
    check.read_inodes().await?;
    check.read_entries().await?;
    check.links();
    check.reachability();
    check.contents().await?;
    let is_miscounted = check.histories().await?;
    let fix = check.counters(repair, is_miscounted);
    check.blocks().await?;
    if let Some(fix) = fix {
        scan.repair(&fix).await?;
        check.report.faults.iter_mut().for_each(|fault| fault.repaired |= is_repairable(&fault.message));
    }
    Ok(check.report)
}

/// What is kept of an inode.
struct Seen {
    mode: u32,
    nlink: u32,
    size: u64,
    charge: u64,
    did: DataId,
    dir_parent: Ino,
    prealloc: Box<[std::ops::Range<u64>]>,
    names: u32,
    subdirectories: u32,
    /// Directory that holds its (last seen) name.
    named_in: Ino,
}

impl Seen {
    fn is_dir(&self) -> bool {
        self.mode & S_IFMT == S_IFDIR
    }
}

struct Check<'a> {
    scan: &'a dyn Scan,
    start: Start,
    progress: &'a (dyn Fn(CheckProgress) + Send + Sync),
    report: CheckReport,
    inodes: FxHashMap<Ino, Seen>,
}

/// Beginnings of the messages of faults that `repair` sets right.
const REPAIRABLE: [&str; 4] = ["used bytes", "used inodes", "orphan", "history bytes"];

fn is_repairable(message: &str) -> bool {
    REPAIRABLE.iter().any(|start| message.starts_with(start))
}

/// Rows of one page of a chain by key, each with the depth of its branch; and the key that the next page begins after.
type Merged<K, V> = (BTreeMap<K, (usize, V)>, Option<K>);
/// Content and block.
type ExtentKey = (DataId, BlockIndex);

/// Rows of a chain in the order of their keys, the nearest branch's of each; and where the next page begins.
fn merge<K: Ord + Clone, V>(pages: Vec<Vec<(K, V)>>) -> Merged<K, V> {
    let full = pages.iter().filter(|page| page.len() >= PAGE);
    let horizon = full.filter_map(|page| page.last()).map(|(key, _)| key.clone()).min();
    let mut rows = BTreeMap::new();
    for (depth, page) in pages.into_iter().enumerate() {
        for (key, value) in page {
            if horizon.as_ref().is_none_or(|horizon| key <= *horizon) {
                rows.entry(key).or_insert((depth, value));
            }
        }
    }
    (rows, horizon)
}

impl Check<'_> {
    fn fault(&mut self, message: String) {
        if self.report.faults.len() < TOLD {
            self.report.faults.push(Fault { message, repaired: false });
        } else if self.report.faults.len() == TOLD {
            self.report.faults.push(Fault { message: "there are more faults".into(), repaired: false });
        }
    }

    fn tell(&self, phase: &'static str, done: u64, total: u64) {
        (self.progress)(CheckProgress { phase, done, total: total.max(done) });
    }

    /// Whether what is known of a branch's history is not what its rows take.
    async fn histories(&mut self) -> Result<bool> {
        let mut is_miscounted = false;
        for (branch, known, found) in self.scan.histories().await? {
            if known != found {
                is_miscounted = true;
                self.fault(format!(
                    "history bytes of branch {branch} are counted as {known}, its rows take {found}"
                ));
            }
        }
        Ok(is_miscounted)
    }

    async fn read_inodes(&mut self) -> Result<()> {
        let (chain, mut after) = (self.start.view.chain.clone(), None);
        loop {
            let mut pages = Vec::with_capacity(chain.len());
            for link in &chain {
                pages.push(self.scan.inodes(link, after, PAGE).await?);
            }
            let (rows, next) = merge(pages);
            for (_, (_, row)) in rows {
                if let Some(row) = row {
                    self.note_inode(row);
                }
            }
            self.tell("inodes", self.report.inodes, self.start.tenant.used_inodes);
            match next {
                Some(key) => after = Some(key),
                None => return Ok(()),
            }
        }
    }

    fn note_inode(&mut self, row: InodeRow) {
        self.report.inodes += 1;
        if row.ino.max(row.did) >= self.start.next_ino {
            let next = self.start.next_ino;
            self.fault(format!("inode {} (content {}) is beyond the next number {next}", row.ino, row.did));
        }
        let seen = Seen {
            mode: row.mode,
            nlink: row.nlink,
            size: row.size,
            charge: row.charge,
            did: row.did,
            dir_parent: row.dir_parent,
            prealloc: row.prealloc.into(),
            names: 0,
            subdirectories: 0,
            named_in: 0,
        };
        self.inodes.insert(row.ino, seen);
    }

    async fn read_entries(&mut self) -> Result<()> {
        let (chain, mut after) = (self.start.view.chain.clone(), None);
        let mut directory: (Ino, HashSet<Cookie>) = (0, HashSet::new());
        loop {
            let mut pages = Vec::with_capacity(chain.len());
            for link in &chain {
                pages.push(self.scan.entries(link, after.clone(), PAGE).await?);
            }
            let (rows, next) = merge(pages);
            for (_, (_, row)) in rows {
                let Some(row) = row else { continue };
                if directory.0 != row.parent {
                    directory = (row.parent, HashSet::new());
                }
                if !directory.1.insert(row.cookie) {
                    self.fault(format!("directory {} has cookie {} twice", row.parent, row.cookie));
                }
                self.note_entry(row);
            }
            self.tell("names", self.report.entries, self.start.tenant.used_inodes);
            match next {
                Some(key) => after = Some(key),
                None => return Ok(()),
            }
        }
    }

    fn note_entry(&mut self, row: EntryRow) {
        self.report.entries += 1;
        let name = format!("the name {:?} in directory {}", row.name, row.parent);
        if row.cookie >= self.start.next_ino {
            let next = self.start.next_ino;
            self.fault(format!("{name}: cookie {} is beyond the next number {next}", row.cookie));
        }
        if row.name.is_empty() || row.name.len() > 255 || row.name.contains(&b'/') || row.name.contains(&0) {
            self.fault(format!("{name} is none"));
        }
        let Some(seen) = self.inodes.get_mut(&row.ino) else {
            self.fault(format!("{name}: its inode {} does not exist", row.ino));
            return;
        };
        seen.names += 1;
        seen.named_in = row.parent;
        let (mode, is_dir) = (seen.mode, seen.is_dir());
        if mode & S_IFMT != row.kind {
            let kind = row.kind;
            self.fault(format!(
                "{name}: its kind is {kind:o}, that of inode {} {:o}",
                row.ino,
                mode & S_IFMT
            ));
        }
        match self.inodes.get_mut(&row.parent) {
            Some(parent) if parent.is_dir() => parent.subdirectories += u32::from(is_dir),
            Some(_) => self.fault(format!("{name}: {} is not a directory", row.parent)),
            None => self.fault(format!("{name}: the directory does not exist")),
        }
    }

    fn links(&mut self) {
        let mut faults = Vec::new();
        for (ino, seen) in &self.inodes {
            if seen.names == 0 && *ino != ROOT_INO {
                if seen.nlink > 0 {
                    faults.push(format!("inode {ino} has {} links and no name", seen.nlink));
                }
                continue;
            }
            let expected = if seen.is_dir() { 2 + seen.subdirectories } else { seen.names };
            if seen.nlink != expected {
                faults.push(format!("inode {ino} has {} links, it should have {expected}", seen.nlink));
            }
            if !seen.is_dir() {
                continue;
            }
            if seen.names > 1 {
                faults.push(format!("directory {ino} has {} names", seen.names));
            }
            if *ino == ROOT_INO && seen.names > 0 {
                faults.push("the root has names".to_owned());
            }
            if *ino != ROOT_INO && seen.dir_parent != seen.named_in {
                let (says, is) = (seen.dir_parent, seen.named_in);
                faults.push(format!("directory {ino} says that its parent is {says}, its name is in {is}"));
            }
        }
        if self.inodes.get(&ROOT_INO).is_none_or(|root| !root.is_dir()) {
            faults.push("there is no root directory".to_owned());
        }
        faults.sort();
        faults.into_iter().for_each(|fault| self.fault(fault));
    }

    /// Directories that hold each other, away from the root. (What has no name at all was told before.)
    fn reachability(&mut self) {
        let mut good: FxHashSet<Ino> = FxHashSet::from_iter([ROOT_INO]);
        let mut faults = Vec::new();
        for (ino, seen) in &self.inodes {
            if !seen.is_dir() || seen.names == 0 {
                continue;
            }
            let (mut path, mut at) = (FxHashSet::default(), *ino);
            while !good.contains(&at) && path.insert(at) {
                match self.inodes.get(&at) {
                    Some(next) if next.names > 0 => at = next.named_in,
                    _ => break,
                }
            }
            if path.contains(&at)
                && !good.contains(&at)
                && self.inodes.get(&at).is_some_and(|seen| seen.names > 0)
            {
                faults.push(format!("directory {ino} cannot be reached from the root"));
            } else {
                good.extend(path);
            }
        }
        faults.sort();
        faults.into_iter().for_each(|fault| self.fault(fault));
    }

    async fn contents(&mut self) -> Result<()> {
        let chain = self.start.view.chain.clone();
        let (mut cuts, mut dead) = (Vec::new(), FxHashSet::default());
        for (depth, link) in chain.iter().enumerate() {
            cuts.push(self.scan.cuts(link).await?.into_iter().collect::<HashMap<_, _>>());
            if depth == 0 {
                dead.extend(self.scan.dead(link).await?);
                for (did, blk) in self.scan.stray_patches(link).await? {
                    self.fault(format!("a patch lies on block {blk} of content {did}, where no extent is"));
                }
            }
        }
        let owners: FxHashMap<DataId, Ino> = self
            .inodes
            .iter()
            .filter(|(_, seen)| seen.did != 0)
            .map(|(ino, seen)| (seen.did, *ino))
            .collect();
        let mut units: FxHashMap<Ino, u64> = FxHashMap::default();
        let mut lost: Option<DataId> = None;
        let mut after = None;
        loop {
            let mut pages = Vec::with_capacity(chain.len());
            for link in &chain {
                pages.push(self.scan.extents(link, after, PAGE).await?);
            }
            let (rows, next) = merge_visible(pages, &chain, &cuts);
            let mut blocks = Vec::new();
            for ((did, blk), (depth, row)) in rows {
                if matches!(row.kind, ExtentKind::Hole) && row.patches.is_empty() {
                    continue;
                }
                let Some(ino) = owners.get(&did) else {
                    // What an ancestor keeps for its own views is not a fault of this branch.
                    if depth == 0 && !dead.contains(&did) && lost.replace(did) != Some(did) {
                        self.fault(format!("content {did} belongs to no inode"));
                    }
                    continue;
                };
                self.report.extents += 1;
                *units.entry(*ino).or_default() += self.extent(*ino, blk, &row);
                if let ExtentKind::Block(block) = row.kind {
                    blocks.push((did, blk, block));
                }
            }
            self.need_headers(&blocks).await?;
            self.tell("contents", self.report.extents, 0);
            match next {
                Some(key) => after = Some(key),
                None => break,
            }
        }
        self.charges(&units);
        Ok(())
    }

    /// Checks an extent; returns how many units it adds to what `prealloc` has.
    fn extent(&mut self, ino: Ino, blk: BlockIndex, row: &ScannedExtent) -> u64 {
        let block_size = u64::from(self.start.tenant.block_size);
        let Some(seen) = self.inodes.get(&ino) else { return 0 };
        let (size, per_block) = (seen.size, block_size / UNIT);
        let mut own = 0;
        let mut beyond = false;
        for (index, byte) in row.alloc.0.iter().enumerate() {
            for bit in (0..8).filter(|bit| byte & (1 << bit) != 0) {
                let unit = index as u64 * 8 + bit;
                beyond |= unit >= per_block;
                let unit = blk * per_block + unit;
                own += u64::from(!seen.prealloc.iter().any(|range| range.contains(&unit)));
            }
        }
        let mut faults = Vec::new();
        let what = format!("inode {ino}: block {blk}");
        if blk >= size.div_ceil(block_size) {
            faults.push(format!("{what} lies beyond its size {size}"));
        }
        if beyond {
            faults.push(format!("{what} has units allocated beyond the block size"));
        }
        if row.kind == ExtentKind::Inline && row.inline_len.is_none_or(|len| u64::from(len) > block_size) {
            faults.push(format!("{what}: its inline bytes are missing or too long"));
        }
        for (off, len) in &row.patches {
            if u64::from(*off) + u64::from(*len) > block_size {
                faults.push(format!("{what}: the patch at {off} of {len} bytes ends beyond the block"));
            }
        }
        faults.into_iter().for_each(|fault| self.fault(fault));
        own
    }

    async fn need_headers(&mut self, blocks: &[(DataId, BlockIndex, BlockId)]) -> Result<()> {
        let ids: Vec<_> = blocks.iter().map(|(_, _, block)| *block).collect();
        let found = self.scan.have_headers(&ids).await?;
        for ((did, blk, block), has_header) in blocks.iter().zip(found) {
            if !has_header {
                self.fault(format!("block {block}, which content {did} needs at block {blk}, has no header"));
            }
        }
        Ok(())
    }

    fn charges(&mut self, units: &FxHashMap<Ino, u64>) {
        let mut faults = Vec::new();
        for (ino, seen) in &self.inodes {
            let prealloc: u64 = seen.prealloc.iter().map(|range| range.end - range.start).sum();
            let expected = UNIT * (prealloc + units.get(ino).copied().unwrap_or(0));
            if seen.charge != expected {
                faults.push(format!("the charge of inode {ino} is {}, it should be {expected}", seen.charge));
            }
        }
        faults.sort();
        faults.into_iter().for_each(|fault| self.fault(fault));
    }

    /// Compares the counters; returns what to set right, if anything and if asked.
    fn counters(&mut self, repair: bool, is_miscounted: bool) -> Option<Repair> {
        let tenant = &self.start.tenant;
        let (used_bytes, used_inodes) = (tenant.used_bytes, tenant.used_inodes);
        let is_held = tenant.holder.is_some();
        let mut orphans: Vec<(Ino, DataId, u64)> = self
            .inodes
            .iter()
            .filter(|(ino, seen)| seen.nlink == 0 && seen.names == 0 && **ino != ROOT_INO)
            .map(|(ino, seen)| (*ino, seen.did, seen.charge))
            .collect();
        orphans.sort_unstable();
        let bytes: u64 = self.inodes.values().map(|seen| seen.charge).sum();
        let before = self.report.faults.len();
        if bytes != used_bytes {
            self.fault(format!("used bytes are {used_bytes}, they should be {bytes}"));
        }
        if self.report.inodes != used_inodes {
            let inodes = self.report.inodes;
            self.fault(format!("used inodes are {used_inodes}, they should be {inodes}"));
        }
        // Of a mounted tenant they may be open.
        if !is_held {
            for (ino, _, charge) in &orphans {
                self.fault(format!("orphan: inode {ino} has neither links nor a name, and {charge} bytes"));
            }
        }
        (repair && (is_miscounted || self.report.faults.len() > before)).then(|| Repair {
            used_bytes: bytes - orphans.iter().map(|(_, _, charge)| charge).sum::<u64>(),
            used_inodes: self.report.inodes - orphans.len() as u64,
            orphans: orphans.into_iter().map(|(ino, did, _)| (ino, did)).collect(),
        })
    }

    async fn blocks(&mut self) -> Result<()> {
        let mut after = 0;
        loop {
            let page = self.scan.headers(after, 256).await?;
            for header in &page {
                self.report.blocks += 1;
                match self.scan.verify(header).await {
                    Ok(true) => {}
                    Ok(false) => self.fault(format!("block {} has a header, but no bytes", header.block)),
                    Err(error @ StoreError::Damaged { .. }) => self.fault(error.to_string()),
                    Err(error) => return Err(error),
                }
            }
            self.tell("blocks", self.report.blocks, self.start.blocks);
            match page.last() {
                Some(last) => after = last.block,
                None => return Ok(()),
            }
        }
    }
}

/// As [`merge`], without what cuts and floors hide.
fn merge_visible(
    pages: Vec<Vec<(ExtentKey, ScannedExtent)>>,
    chain: &[Link],
    cuts: &[HashMap<DataId, BlockIndex>],
) -> Merged<ExtentKey, ScannedExtent> {
    let (mut rows, next) = merge(pages);
    // The nearest row of a key is hidden or shown; one farther away is hidden by the same cut, which lies nearer than both.
    rows.retain(|(did, blk), (depth, _)| {
        (0..*depth)
            .all(|nearer| *did < chain[nearer].ino_floor && cuts[nearer].get(did).is_none_or(|cut| blk < cut))
    });
    (rows, next)
}
