//! read(2): what the tree says, blocks from the cache or the store, and what is fetched ahead.

use std::{ops::Range, sync::Arc};

use bytes::{Bytes, BytesMut};
use rustc_hash::FxHashMap;
use tarbox_store::{DataRef, PartRead, StoreError};
use tarbox_types::{BlockIndex, DataId, Ino};

use crate::{
    error::FsError,
    plan::Reading,
    read_ahead::Advice,
    shell::{Core, Shared},
    tree::{Piece, Stop},
};

/// Blocks are fetched ahead up to this many bytes, and up to an eighth of the cache.
const READ_AHEAD_BYTES: u64 = 4 << 20;
/// Bytes of one query that fetches ahead; several run at once.
const FETCH_BYTES: u64 = 1 << 20;
/// So many queries fetch the blocks of one read, each at least so many blocks.
const READS: usize = 3;
const READ_PART: usize = 4;

/// Blocks of one content, or parts of them, as of a version of its committed part.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    did: DataId,
    version: u64,
    blocks: FxHashMap<BlockIndex, PartRead>,
}

impl Loaded {
    /// Takes more in. What is of another version, or of another content, replaces what was there.
    fn add(&mut self, more: Self) {
        if (more.did, more.version) == (self.did, self.version) {
            self.blocks.extend(more.blocks);
        } else {
            *self = more;
        }
    }

    /// A range of a block, if it is here and what `reading` means.
    fn get(&self, reading: &Reading, blk: BlockIndex, range: &Range<u32>) -> Option<&PartRead> {
        let block = self.blocks.get(&blk)?;
        let fits = (self.did, self.version) == (reading.did, reading.version)
            && block.range.start <= range.start
            && block.range.end >= range.end;
        fits.then_some(block)
    }
}

/// What a read lacks.
enum Lack {
    Block { blk: BlockIndex, range: Range<u32> },
    Blocks(Vec<BlockIndex>),
}

impl Shared {
    /// Bytes of a file: fewer where it ends.
    pub(crate) async fn read_bytes(
        self: &Arc<Self>,
        ino: Ino,
        offset: u64,
        len: u64,
    ) -> Result<Bytes, FsError> {
        // Blocks just loaded are held here: a small cache may have dropped them before they are used.
        let mut loaded = Loaded::default();
        let mut advice = None;
        loop {
            let (did, lack) = {
                let mut core = self.core.lock();
                match core.tree.read(ino, offset, len) {
                    Ok(reading) => {
                        let advice = advice.get_or_insert_with(|| self.look_ahead(&mut core, &reading));
                        match self.blocks_of(&reading, &loaded) {
                            Ok(blocks) => {
                                drop(core);
                                return Ok(assemble(&reading, &blocks));
                            }
                            Err(Lack::Block { blk, .. }) if *advice != Advice::Random => {
                                (reading.did, Ok(Lack::Blocks(vec![blk])))
                            }
                            Err(lack) => (reading.did, Ok(lack)),
                        }
                    }
                    Err(Stop::Failed(error)) => return Err(error),
                    Err(Stop::Need(need)) => (0, Err(need)),
                }
            };
            match lack {
                // Added to what there is: a cache smaller than one read may have dropped by now what it had before.
                Ok(lack) => {
                    if let Some(more) = self.fill(did, &lack).await? {
                        loaded.add(more);
                    }
                }
                Err(need) => self.supply(need).await?,
            }
        }
    }

    /// Bytes of the committed blocks that a read consists of, in order; or what of them is not at hand.
    fn blocks_of(&self, reading: &Reading, loaded: &Loaded) -> Result<Vec<PartRead>, Lack> {
        let (mut found, mut missing, mut part) = (Vec::new(), Vec::new(), None);
        for piece in &reading.pieces {
            let Piece::Block { blk, offset, len } = piece else { continue };
            let range = *offset..*offset + *len;
            match loaded
                .get(reading, *blk, &range)
                .cloned()
                .or_else(|| self.cache.get(reading.did, *blk).map(PartRead::whole))
            {
                Some(block) => found.push(block),
                None => {
                    missing.push(*blk);
                    part = Some(range);
                }
            }
        }
        match (&missing[..], part) {
            ([], _) => Ok(found),
            (&[blk], Some(range)) => Err(Lack::Block { blk, range }),
            _ => {
                missing.dedup();
                Err(Lack::Blocks(missing))
            }
        }
    }

    /// Loads what a read lacks, or waits for who does (`None`: it is in the cache then, if that has room).
    async fn fill(&self, did: DataId, lack: &Lack) -> Result<Option<Loaded>, FsError> {
        let blks = match lack {
            Lack::Block { blk, .. } => std::slice::from_ref(blk),
            Lack::Blocks(blks) => blks,
        };
        if self.on_their_way.wait_for_any(did, blks).await {
            return Ok(None);
        }
        self.patiently(async || match lack {
            Lack::Block { blk, range } => self.load_part(did, *blk, range).await,
            Lack::Blocks(blks) => self.load_blocks(did, blks).await,
        })
        .await
        .map(Some)
    }

    /// A range of one block, into the cache as well if it came as a whole.
    async fn load_part(
        &self,
        did: DataId,
        blk: BlockIndex,
        range: &Range<u32>,
    ) -> Result<Loaded, StoreError> {
        let Some((data, version)) = self.data_ref(did) else { return Ok(Loaded::default()) };
        let part = self.trusted(self.store.read_part(&self.view(), data, blk, range.clone()).await).await?;
        if part.is_whole() {
            self.keep(did, version, [(blk, part.bytes.clone())]);
        }
        Ok(Loaded { did, version, blocks: FxHashMap::from_iter([(blk, part)]) })
    }

    /// Bytes of blocks, into the cache as well.
    pub(crate) async fn load_blocks(&self, did: DataId, blks: &[BlockIndex]) -> Result<Loaded, StoreError> {
        let Some((data, version)) = self.data_ref(did) else { return Ok(Loaded::default()) };
        // On several connections at once, where the store has them: one alone does not keep a server busy.
        let parts = blks.chunks(blks.len().div_ceil(READS).max(READ_PART));
        let view = self.view();
        let read = parts.map(|part| self.store.read(&view, data, part));
        let read = self.trusted(futures_util::future::try_join_all(read).await).await?;
        let read: Vec<_> = read.into_iter().flatten().collect();
        // An extent said that there is a block; where no row has one, it is the hole that the database holds.
        let hole = |&blk: &BlockIndex| (blk, PartRead::whole(Bytes::new()));
        let mut blocks: FxHashMap<_, _> = blks.iter().map(hole).collect();
        blocks.extend(read.iter().map(|(blk, bytes)| (*blk, PartRead::whole(bytes.clone()))));
        self.keep(did, version, read);
        Ok(Loaded { did, version, blocks })
    }

    /// Puts blocks into the cache, unless what is committed has changed since they were asked for.
    fn keep(&self, did: DataId, version: u64, blocks: impl IntoIterator<Item = (BlockIndex, Bytes)>) {
        let core = self.core.lock();
        if core.tree.contents.get(&did).is_some_and(|content| content.version == version) {
            blocks.into_iter().for_each(|(blk, bytes)| self.cache.insert(did, blk, bytes));
        }
    }

    pub(crate) fn data_ref(&self, did: DataId) -> Option<(DataRef, u64)> {
        let core = self.core.lock();
        core.tree.contents.get(&did).map(|content| (as_committed(did), content.version))
    }

    // === Ahead ===

    /// Learns from a read, and begins to fetch what will be asked for next.
    fn look_ahead(self: &Arc<Self>, core: &mut Core, reading: &Reading) -> Advice {
        let size = core.tree.block_size;
        let mut blks = reading.pieces.iter().filter_map(|piece| match piece {
            Piece::Block { blk, .. } => Some(*blk),
            Piece::Data(_) | Piece::Zero(_) => None,
        });
        let (Some(first), Some(last)) = (blks.clone().next(), blks.next_back()) else {
            return Advice::Random;
        };
        let Some(content) = core.tree.contents.get_mut(&reading.did) else { return Advice::Random };
        let most = READ_AHEAD_BYTES.min(self.config.cache_bytes / 8) / size;
        let advice = content.pattern.advance(&(first..last + 1), most.max(1));
        if let Advice::Sequence(range) = &advice
            && !range.is_empty()
        {
            let is_wanted = |&blk: &BlockIndex| {
                content.extent(reading.did, blk).is_ok_and(|extent| extent.is_some())
                    && !self.cache.contains(reading.did, blk)
            };
            self.fetch(reading.did, range.clone().filter(is_wanted).collect(), size);
        }
        advice
    }

    /// Fetches blocks in the background. What fails is asked for again by who needs it.
    fn fetch(self: &Arc<Self>, did: DataId, blks: Vec<BlockIndex>, block_size: u64) {
        let blks = self.on_their_way.enter(did, blks);
        for part in blks.chunks((FETCH_BYTES / block_size).max(1) as usize) {
            let (shared, part) = (Arc::clone(self), part.to_vec());
            tokio::spawn(async move {
                let _fetch = shared.on_their_way.fetching(did, &part);
                if let Err(error) = shared.load_blocks(did, &part).await {
                    tracing::debug!(error = crate::health::chain(&error), "nothing was read ahead");
                }
            });
        }
    }
}

/// Puts the pieces of a read together. One that lies in one block is not copied.
fn assemble(reading: &Reading, blocks: &[PartRead]) -> Bytes {
    if let ([Piece::Block { offset, len, .. }], [block]) = (&reading.pieces[..], blocks) {
        let from = (*offset - block.range.start) as usize;
        let to = from + *len as usize;
        if to <= block.bytes.len() {
            return block.bytes.slice(from..to);
        }
    }
    let mut out = BytesMut::with_capacity(reading.len as usize);
    let mut blocks = blocks.iter();
    for piece in &reading.pieces {
        match piece {
            Piece::Data(payload) => out.extend_from_slice(payload.as_slice()),
            Piece::Zero(len) => out.resize(out.len() + *len as usize, 0),
            Piece::Block { offset, len, .. } => {
                let there = blocks.next().map_or(&[][..], |block| stored(block, *offset, *len));
                out.extend_from_slice(there);
                // What a block does not store is zero.
                out.resize(out.len() + (*len as usize - there.len()), 0);
            }
        }
    }
    out.freeze()
}

/// The stored bytes of a range that a part holds.
fn stored(block: &PartRead, offset: u32, len: u32) -> &[u8] {
    let (from, end) = ((offset - block.range.start) as usize, block.bytes.len());
    &block.bytes[from.min(end)..(from + len as usize).min(end)]
}

/// A content as the database has it. What was truncated by a commit, the database knows by itself; what is truncated and not committed, hides
/// behind zeros in memory, and is still there for whoever commits what came before.
pub(crate) fn as_committed(did: DataId) -> DataRef {
    DataRef { did, cut: u64::MAX >> 1 }
}
