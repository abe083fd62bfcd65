//! Contents: extents, and the bytes behind them.
//!
//! A block's bytes lie in parts that fit into a page beside their key, so that none of them goes through TOAST
//! (measured: about twice as fast to write, and a block is read as one range of an index).

use std::{collections::HashMap, ops::Range, sync::OnceLock};

use bytes::{Bytes, BytesMut};
use sqlx::{Row, postgres::PgRow};
use tarbox_types::{BlockHash, BlockId, BlockIndex, DataId};

use super::{
    TenantRows,
    chain::{self, LINKS, is_plain_head, probe, version},
    rows::{Sql, unreadable},
    statement::{Statement, column, count, int},
};
use crate::{
    codec,
    error::{Result, StoreError},
    model::*,
    proof::{Plan, Proofs},
};

/// Bytes of a part: the most that fits into a page with its key.
pub(super) const PART: usize = 8060;
/// All parts of a block.
const ALL_PARTS: (i32, i32) = (0, i32::MAX);
/// The statement that reads blocks of a head without ancestors: most do, and its text is long.
static PLAIN_READ: OnceLock<String> = OnceLock::new();
/// Bytes of one upload statement, about: the server holds them in memory a few times over.
const UPLOAD: usize = 4 << 20;

/// Kinds of extent rows.
pub(super) const HOLE: i16 = 0;
pub(super) const BLOCK: i16 = 1;
pub(super) const INLINE: i16 = 2;
/// The row at block −1: from which block on ancestors' rows are invisible.
pub(super) const CUT: i16 = 3;

const EXTENT: &str = "t.blk, t.kind, t.block, t.alloc, t.patches, t.patch_bytes";
const BODY: &str = "t.branch, t.born, t.blk, t.kind, t.block, t.patches, t.data";

impl TenantRows {
    pub(super) async fn read_extents(
        &self,
        view: &View,
        data: DataRef,
        range: Range<BlockIndex>,
    ) -> Result<Vec<Extent>> {
        let found = if is_plain_head(view) {
            self.pool
                .read("load extents", || {
                    Statement::new(format!(
                        "SELECT {EXTENT} FROM tarbox.ext t WHERE t.family = $1 AND t.branch = $2 AND t.did = $3
                         AND t.blk >= $4 AND t.blk < $5 ORDER BY t.blk"
                    ))
                    .with(self.family)
                    .with(view.chain[0].branch)
                    .with(int(data.did))
                    .with(int(range.start))
                    .with(int(range.end))
                })
                .await?
        } else {
            self.pool
                .read("load extents", || {
                    let mut statement = chain::statement(self.family, view)
                        .with(int(data.did))
                        .with(self.cut_block(data))
                        .with(int(range.start))
                        .with(int(range.end));
                    statement.push(&extents_sql());
                    statement
                })
                .await?
        };
        found.iter().map(|row| extent(row).map_err(unreadable)).collect()
    }

    /// The first block that ancestors' rows are invisible from, by the inode's word.
    fn cut_block(&self, data: DataRef) -> i64 {
        int(data.cut.div_ceil(u64::from(self.block_size)))
    }

    pub(super) async fn read_blocks(
        &self,
        view: &View,
        data: DataRef,
        blks: &[BlockIndex],
    ) -> Result<Vec<(BlockIndex, Bytes)>> {
        let found = self.fetch(view, data, blks, ALL_PARTS).await?;
        self.assemble(data, &found)
    }

    /// A range of a block: only the parts that hold it where they can be proven, else the whole block.
    pub(super) async fn read_part_of_block(
        &self,
        view: &View,
        data: DataRef,
        blk: BlockIndex,
        range: &Range<u32>,
    ) -> Result<PartRead> {
        if let Some(plan) = self.proofs.plan(data.did, blk, range)
            && let Some(part) = self.read_planned(view, data, blk, &plan).await?
        {
            return Ok(part);
        }
        let found = self.read_blocks(view, data, &[blk]).await?;
        Ok(PartRead::whole(found.into_iter().next().map_or_else(Bytes::new, |(_, bytes)| bytes)))
    }

    /// `None` where something else is stored there by now, or what is there does not stand the proof.
    async fn read_planned(
        &self,
        view: &View,
        data: DataRef,
        blk: BlockIndex,
        plan: &Plan,
    ) -> Result<Option<PartRead>> {
        let stored = plan.stored();
        let part = |at: u32| (at as usize / PART) as i32;
        let first = part(stored.start);
        let parts = (first, if stored.is_empty() { first - 1 } else { part(stored.end - 1) });
        let found = self.fetch(view, data, &[blk], parts).await?;
        let mut pieces = Pieces::default();
        found.iter().try_for_each(|row| pieces.take(row)).map_err(unreadable)?;
        Ok(pieces.part(plan, stored.start as usize - first as usize * PART))
    }

    /// The rows that blocks are put together from, with these parts of each, first and last.
    async fn fetch(
        &self,
        view: &View,
        data: DataRef,
        blks: &[BlockIndex],
        (first, last): (i32, i32),
    ) -> Result<Vec<PgRow>> {
        let wanted = column(blks, |blk| int(*blk));
        let plain = is_plain_head(view);
        self.pool
            .read("read blocks", || {
                if plain {
                    let mut statement =
                        Statement::default().with(self.family).with(view.chain[0].branch).with(int(data.did));
                    statement.bind(wanted.as_slice());
                    statement.bind(first);
                    statement.bind(last);
                    statement.push(PLAIN_READ.get_or_init(|| {
                        read_sql(
                            &format!(
                                "SELECT {BODY} FROM tarbox.ext t
                                 WHERE t.family = $1 AND t.branch = $2 AND t.did = $3 AND t.blk = ANY($4)"
                            ),
                            "$3",
                            "t.part BETWEEN $5 AND $6",
                        )
                    }));
                    statement
                } else {
                    let mut statement =
                        chain::statement(self.family, view).with(int(data.did)).with(self.cut_block(data));
                    statement.bind(wanted.as_slice());
                    statement.bind(first);
                    statement.bind(last);
                    statement.push(&read_sql(&chain_body_sql(), "$5", "t.part BETWEEN $8 AND $9"));
                    statement
                }
            })
            .await
    }

    fn assemble(&self, data: DataRef, found: &[PgRow]) -> Result<Vec<(BlockIndex, Bytes)>> {
        let mut blocks: HashMap<i64, Pieces<'_>> = HashMap::new();
        for row in found {
            let blk = row.try_get(1).map_err(unreadable)?;
            blocks.entry(blk).or_default().take(row).map_err(unreadable)?;
        }
        let mut whole = Vec::with_capacity(blocks.len());
        for (blk, pieces) in blocks {
            whole.push((count(blk), pieces.join(&self.proofs, data.did, count(blk))?));
        }
        whole.sort_unstable_by_key(|(blk, _)| *blk);
        Ok(whole)
    }

    pub(super) async fn reserve(&self, blocks: u64) -> Result<Range<BlockId>> {
        let found = self
            .pool
            .write("reserve block numbers", || {
                Statement::new("SELECT tarbox.reserve_blocks($1, $2, $3)")
                    .with(self.family)
                    .with(self.id.0)
                    .with(int(blocks))
            })
            .await?;
        let first = match found.first() {
            Some(row) => row.try_get::<Option<i64>, _>(0).map_err(unreadable)?,
            None => None,
        };
        let first = first.map(count).ok_or_else(|| StoreError::NoTenant(self.id.to_string()))?;
        Ok(first..first + blocks)
    }

    pub(super) async fn find_hashes(&self, hashes: &[BlockHash]) -> Result<Vec<Option<BlockId>>> {
        if hashes.is_empty() {
            return Ok(Vec::new());
        }
        let found = self
            .pool
            .read("look for equal blocks", || {
                let mut statement = Statement::new(
                    "SELECT (SELECT b.block FROM tarbox.block b WHERE b.family = $1 AND b.hash = h.hash AND b.len >= 0 LIMIT 1)
                     FROM unnest($2::bytea[]) WITH ORDINALITY AS h(hash, ord) ORDER BY h.ord",
                )
                .with(self.family);
                statement.bind(column(hashes, |hash| hash.0.to_vec()));
                statement
            })
            .await?;
        found.iter().map(|row| Ok(row.try_get::<Option<i64>, _>(0).map_err(unreadable)?.map(count))).collect()
    }

    pub(super) async fn upload_blocks(&self, blocks: &[EncodedBlock]) -> Result<()> {
        let mut rest = blocks;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fit = rest.iter().take_while(|block| {
                bytes += block.bytes.len();
                bytes <= UPLOAD
            });
            let (now, later) = rest.split_at(fit.count().max(1));
            self.pool.write("upload blocks", || self.upload_statement(now)).await?;
            rest = later;
        }
        Ok(())
    }

    /// One statement, thus one transaction and one round trip, that does not wait for the disk:
    /// the commit that makes the blocks visible flushes past them. Parts of an earlier, longer upload go.
    fn upload_statement(&self, blocks: &[EncodedBlock]) -> Statement {
        let parts = || {
            blocks.iter().flat_map(|block| {
                block
                    .bytes
                    .chunks(PART)
                    .enumerate()
                    .map(|(part, data)| (int(block.header.block), part as i32, data))
            })
        };
        let mut statement = Statement::new(
            "WITH lazily AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true) AS set)
             SELECT tarbox.upload_blocks($1, $2, $3, $4, $5, $6) FROM lazily WHERE lazily.set = 'off'",
        )
        .with(self.family);
        statement.bind(parts().map(|part| part.0).collect::<Vec<_>>());
        statement.bind(parts().map(|part| part.1).collect::<Vec<_>>());
        statement.bind(parts().map(|part| part.2).collect::<Vec<_>>());
        statement.bind(column(blocks, |block| int(block.header.block)));
        statement.bind(column(blocks, |block| block.bytes.len().div_ceil(PART) as i32));
        statement
    }
}

/// For each link of `$2..$4` the first block that a nearer link, or the inode (`$6`), cut off for it.
/// As an array, so that the links come out of `unnest` in their order.
fn cuts() -> String {
    let version = version("ext", "t.block", "t.did = $5 AND t.blk = -1", "a");
    format!(
        "(SELECT array_agg(c.cut ORDER BY c.ord) FROM
           (SELECT a.ord, LEAST(
              min(m.block) OVER (ORDER BY a.ord ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING),
              CASE WHEN a.ord > 1 THEN $6 ELSE 9223372036854775807 END) AS cut
            FROM {LINKS} LEFT JOIN LATERAL ({version} LIMIT 1) m ON $5 < a.lim) c)"
    )
}

fn links_with_cuts() -> String {
    format!(
        "unnest($2::bigint[], $3::bigint[], $4::bigint[], {}) WITH ORDINALITY AS a(branch, layer, lim, cut, ord)",
        cuts()
    )
}

/// Extents of a range (`$7`, `$8`): the nearest row of each block.
fn extents_sql() -> String {
    let version = format!(
        "SELECT {EXTENT} FROM tarbox.ext t WHERE t.family = $1 AND t.branch = a.branch AND t.did = $5
           AND t.blk >= $7 AND t.blk < LEAST($8, a.cut) AND t.born <= a.layer
         UNION ALL
         SELECT {EXTENT} FROM tarbox.ext_h t WHERE a.layer < 9223372036854775807 AND t.family = $1
           AND t.branch = a.branch AND t.did = $5 AND t.blk >= $7 AND t.blk < LEAST($8, a.cut)
           AND t.born <= a.layer AND t.died > a.layer"
    );
    let links = links_with_cuts();
    format!(
        "SELECT DISTINCT ON (t.blk) {EXTENT} FROM {links} CROSS JOIN LATERAL ({version}) t
         WHERE $5 < a.lim ORDER BY t.blk, a.ord"
    )
}

/// The rows of the wanted blocks (`$7`), each from the nearest link that has one.
fn chain_body_sql() -> String {
    let version = version("ext", BODY, "t.blk = w.blk AND t.did = $5", "a");
    let links = links_with_cuts();
    format!(
        "SELECT t.* FROM unnest($7::bigint[]) AS w(blk) CROSS JOIN LATERAL (
           SELECT {BODY} FROM {links} CROSS JOIN LATERAL ({version} LIMIT 1) t
           WHERE $5 < a.lim AND w.blk < a.cut ORDER BY a.ord LIMIT 1) t"
    )
}

/// Everything that is needed to put blocks together, from one snapshot: rows of extents with the headers of their
/// blocks (tag 0), parts (1), patches (2). Not sorted: the server would sort the bytes with them.
fn read_sql(found: &str, did: &str, parts: &str) -> String {
    let header = probe("block", "t.hash, t.len, t.codec", "t.block = f.block");
    let part = probe("block_part", "t.part, t.data", &format!("t.block = f.block AND {parts}"));
    let patch = probe(
        "patch",
        "t.seq, t.off, t.data",
        &format!("t.branch = f.branch AND t.did = {did} AND t.blk = f.blk AND t.born = f.born"),
    );
    format!(
        "WITH f AS MATERIALIZED ({found})
         SELECT 0, f.blk, f.data, f.block, 0::bigint, b.hash, b.len, b.codec, f.kind
           FROM f LEFT JOIN LATERAL {header} b ON f.kind = 1 WHERE f.kind <> 0 OR f.patches > 0
         UNION ALL
         SELECT 1, f.blk, p.data, NULL, p.part::bigint, NULL, NULL, NULL, NULL
           FROM f CROSS JOIN LATERAL {part} p WHERE f.kind = 1
         UNION ALL
         SELECT 2, f.blk, p.data, p.off, p.seq, NULL, NULL, NULL, NULL
           FROM f CROSS JOIN LATERAL {patch} p WHERE f.patches > 0"
    )
}

fn extent(row: &PgRow) -> Sql<Extent> {
    Ok(Extent {
        blk: count(row.try_get(0)?),
        kind: match row.try_get::<i16, _>(1)? {
            BLOCK => ExtentKind::Block(count(row.try_get(2)?)),
            INLINE => ExtentKind::Inline,
            _ => ExtentKind::Hole,
        },
        alloc: AllocMap(row.try_get::<&[u8], _>(3)?.into()),
        patches: row.try_get::<i32, _>(4)? as u32,
        patch_bytes: row.try_get::<i32, _>(5)? as u32,
    })
}

/// What is known of one block while its rows come in.
#[derive(Default)]
struct Pieces<'r> {
    inline: Option<&'r [u8]>,
    block: Option<BlockId>,
    header: Option<BlockHeader>,
    parts: Vec<(i64, &'r [u8])>,
    patches: Vec<(i64, i64, &'r [u8])>,
}

impl<'r> Pieces<'r> {
    fn take(&mut self, row: &'r PgRow) -> Sql<()> {
        let data: Option<&[u8]> = row.try_get(2)?;
        match row.try_get::<i32, _>(0)? {
            0 if row.try_get::<i16, _>(8)? == BLOCK => {
                let block = count(row.try_get(3)?);
                self.block = Some(block);
                if let Some(hash) = row.try_get::<Option<&[u8]>, _>(5)? {
                    self.header = Some(BlockHeader {
                        block,
                        hash: BlockHash(hash.try_into().unwrap_or_default()),
                        len: row.try_get::<i64, _>(6)? as u32,
                        codec: if row.try_get::<i16, _>(7)? == 0 { Codec::Raw } else { Codec::Zstd },
                    });
                }
            }
            0 => self.inline = data,
            1 => self.parts.push((row.try_get(4)?, data.unwrap_or_default())),
            _ => self.patches.push((row.try_get(4)?, row.try_get(3)?, data.unwrap_or_default())),
        }
        Ok(())
    }

    fn join(mut self, proofs: &Proofs, did: DataId, blk: BlockIndex) -> Result<Bytes> {
        let base = match (self.block, &self.header) {
            (None, _) => Bytes::copy_from_slice(self.inline.unwrap_or_default()),
            (Some(_), Some(header)) => {
                let (raw, leaves) = codec::decode_proven(header, joined(&mut self.parts))?;
                if let Some(leaves) = leaves {
                    proofs.learn(did, blk, header, leaves);
                }
                raw
            }
            (Some(block), None) => {
                return Err(StoreError::Damaged {
                    what: format!("block {block}"),
                    reason: "an extent refers to it, and it does not exist".into(),
                });
            }
        };
        if self.patches.is_empty() { Ok(base) } else { Ok(codec::apply_patches(base, self.patches())) }
    }

    /// What a plan asks for, which begins at `offset` in the parts; `None` where they are not what it proves.
    fn part(mut self, plan: &Plan, offset: usize) -> Option<PartRead> {
        self.header.as_ref().filter(|header| plan.is_for(header))?;
        let parts = joined(&mut self.parts);
        let end = offset + plan.stored().len();
        let stored = (end <= parts.len()).then(|| parts.slice(offset..end))?;
        plan.proves(&stored).then(|| plan.part(stored, self.patches()))
    }

    /// In their order.
    fn patches(&mut self) -> impl Iterator<Item = (u32, &'r [u8])> {
        self.patches.sort_unstable_by_key(|(seq, off, _)| (*seq, *off));
        self.patches.iter().map(|(_, off, data)| (*off as u32, *data))
    }
}

fn joined(parts: &mut [(i64, &[u8])]) -> Bytes {
    parts.sort_unstable_by_key(|(part, _)| *part);
    let mut bytes = BytesMut::with_capacity(parts.iter().map(|(_, data)| data.len()).sum());
    for (_, data) in parts {
        bytes.extend_from_slice(data);
    }
    bytes.freeze()
}
