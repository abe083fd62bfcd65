//! The parts of a commit for extents, patches and contents that are gone.

use std::collections::{BTreeMap, HashMap, HashSet};

use tarbox_types::{BlockIndex, DataId};

use super::{
    Parts,
    names::{excluded, of},
};
use crate::{
    model::*,
    postgres::{
        blocks::{BLOCK, CUT, HOLE, INLINE},
        chain::{self, probe},
        statement::{column, int},
    },
};

const COLUMNS: &str = "did, blk, kind, block, data, alloc, patches, patch_bytes";
/// The patches `t` of the version `o`.
const PATCHES_OF: &str = "t.branch = o.branch AND t.did = o.did AND t.blk = o.blk AND t.born = o.born";
const BODY: &str = "kind, block, data, alloc";

/// What a batch does to extents, as sets of keys that do not meet.
struct Plan {
    /// Truncation, as ranges of a content between the extents that the batch writes beyond it.
    ranges: Vec<(DataId, BlockIndex, BlockIndex)>,
    /// The least block cut off, per content: ancestors' rows from there on are hidden.
    cuts: BTreeMap<DataId, BlockIndex>,
    /// Holes, other than those that a truncation made.
    removed: Vec<(DataId, BlockIndex)>,
}

impl Plan {
    fn new(batch: &Batch) -> Self {
        let mut cuts: BTreeMap<DataId, BlockIndex> = BTreeMap::new();
        for (did, blk) in &batch.truncated {
            let cut = cuts.entry(*did).or_insert(*blk);
            *cut = (*cut).min(*blk);
        }
        let mut written: HashMap<DataId, Vec<BlockIndex>> = HashMap::new();
        for row in batch.extents.iter().filter(|row| cuts.get(&row.did).is_some_and(|cut| row.blk >= *cut)) {
            written.entry(row.did).or_default().push(row.blk);
        }
        let mut ranges = Vec::new();
        for (did, cut) in &cuts {
            let mut from = *cut;
            let mut blks = written.remove(did).unwrap_or_default();
            blks.sort_unstable();
            for blk in blks {
                if from < blk {
                    ranges.push((*did, from, blk));
                }
                from = blk + 1;
            }
            ranges.push((*did, from, u64::MAX >> 1));
        }
        let new: HashSet<_> = batch.extents.iter().map(|row| (row.did, row.blk)).collect();
        let mut removed: Vec<_> = batch.removed_extents.clone();
        removed
            .retain(|(did, blk)| !new.contains(&(*did, *blk)) && cuts.get(did).is_none_or(|cut| blk < cut));
        Self { ranges, cuts, removed }
    }
}

/// New extents, holes and truncation.
pub(super) fn replace(parts: &mut Parts, batch: &Batch) {
    if batch.extents.is_empty() && batch.removed_extents.is_empty() && batch.truncated.is_empty() {
        return;
    }
    let plan = Plan::new(batch);
    let cut_keys = plan.cuts.keys().map(|did| (int(*did), -1));
    let keys = batch.extents.iter().map(|row| (int(row.did), int(row.blk)));
    let keys = keys.chain(plan.removed.iter().map(|(did, blk)| (int(*did), int(*blk)))).chain(cut_keys);
    let (dids, blks): (Vec<_>, Vec<_>) = keys.unzip();
    let (dids, blks) = (parts.bind(dids), parts.bind(blks));
    let ranges = (!plan.ranges.is_empty()).then(|| bind_ranges(parts, &plan.ranges));
    replaced_versions(parts, &dids, &blks, ranges.as_deref());
    if ranges.is_some() {
        parts.delete("ext_cut", "ext", "SELECT o.at FROM ext_old o WHERE o.cut");
        hide_ancestors(parts, &plan.cuts);
    }
    if !plan.removed.is_empty() {
        holes(parts, &plan.removed);
    }
    if !batch.extents.is_empty() {
        upsert(parts, &batch.extents);
    }
}

fn bind_ranges(parts: &mut Parts, ranges: &[(DataId, BlockIndex, BlockIndex)]) -> String {
    let dids = parts.bind(column(ranges, |range| int(range.0)));
    let low = parts.bind(column(ranges, |range| int(range.1)));
    let high = parts.bind(column(ranges, |range| int(range.2)));
    format!("unnest({dids}::bigint[], {low}::bigint[], {high}::bigint[]) AS k(did, low, high)")
}

/// What the rows were: kept for views, or dropped with their patches.
fn replaced_versions(parts: &mut Parts, dids: &str, blks: &str, ranges: Option<&str>) {
    let columns = "t.ctid AS at, t.did, t.blk, t.born, t.kind, t.block, t.patches, t.branch";
    let by_key = probe("ext", columns, "t.branch = f.branch AND t.did = k.did AND t.blk = k.blk");
    let in_ranges = ranges.map_or_else(String::new, |ranges| {
        let key = "t.branch = f.branch AND t.did = k.did AND t.blk >= k.low AND t.blk < k.high";
        format!(
            " UNION ALL SELECT t.*, f.layer, t.born <= f.last_view AS kept, true AS cut
             FROM f CROSS JOIN {ranges} CROSS JOIN LATERAL {} t",
            probe("ext", columns, key)
        )
    });
    parts.part(
        "ext_old",
        &format!(
            "SELECT t.*, f.layer, t.born <= f.last_view AS kept, false AS cut
             FROM f CROSS JOIN unnest({dids}::bigint[], {blks}::bigint[]) AS k(did, blk)
             CROSS JOIN LATERAL {by_key} t{in_ranges}"
        ),
    );
    parts.part("ext_kept", &keep_sql("ext_old"));
    parts.part(
        "ext_dropped",
        "INSERT INTO tarbox.dropped (family, block)
         SELECT $1, o.block FROM ext_old o WHERE NOT o.kept AND o.kind = 1",
    );
    let patches = probe("patch", "t.ctid AS at", PATCHES_OF);
    let which = format!(
        "SELECT p.at FROM ext_old o CROSS JOIN LATERAL {patches} p WHERE NOT o.kept AND o.patches > 0"
    );
    parts.delete("patch_dropped", "patch", &which);
}

fn keep_sql(old: &str) -> String {
    let values = of("t", COLUMNS);
    format!(
        "INSERT INTO tarbox.ext_h (family, branch, {COLUMNS}, born, died)
         SELECT t.family, t.branch, {values}, t.born, o.layer FROM {old} o JOIN tarbox.ext t ON t.ctid = o.at
         WHERE o.kept"
    )
}

fn hide_ancestors(parts: &mut Parts, cuts: &BTreeMap<DataId, BlockIndex>) {
    let dids = parts.bind(cuts.keys().map(|did| int(*did)).collect::<Vec<_>>());
    let blks = parts.bind(cuts.values().map(|blk| int(*blk)).collect::<Vec<_>>());
    parts.part(
        "ext_hidden",
        &format!(
            "INSERT INTO tarbox.ext (family, branch, born, did, blk, kind, block, alloc)
             SELECT $1, f.branch, f.layer, k.did, -1, {CUT}, k.cut, ''
             FROM f, unnest({dids}::bigint[], {blks}::bigint[]) AS k(did, cut) WHERE k.did < f.ino_floor
             ON CONFLICT (family, branch, did, blk) DO UPDATE SET born = EXCLUDED.born,
               block = LEAST(ext.block, EXCLUDED.block)"
        ),
    );
}

/// Deleted where no ancestor can have the content, else a whiteout.
fn holes(parts: &mut Parts, removed: &[(DataId, BlockIndex)]) {
    let dids = parts.bind(column(removed, |key| int(key.0)));
    let blks = parts.bind(column(removed, |key| int(key.1)));
    let keys = format!("unnest({dids}::bigint[], {blks}::bigint[]) AS k(did, blk)");
    let key = "t.branch = f.branch AND t.did = k.did AND t.blk = k.blk AND k.did >= f.ino_floor";
    let old = probe("ext", "t.ctid AS at", key);
    parts.delete(
        "ext_gone",
        "ext",
        &format!("SELECT o.at FROM f CROSS JOIN {keys} CROSS JOIN LATERAL {old} o"),
    );
    parts.part(
        "ext_whiteout",
        &format!(
            "INSERT INTO tarbox.ext (family, branch, born, did, blk, kind, alloc)
             SELECT $1, f.branch, f.layer, k.did, k.blk, {HOLE}, '' FROM f, {keys} WHERE k.did < f.ino_floor
             ON CONFLICT (family, branch, did, blk) DO UPDATE SET born = EXCLUDED.born, patches = 0,
               patch_bytes = 0, {set}",
            set = excluded(BODY)
        ),
    );
}

fn upsert(parts: &mut Parts, rows: &[ExtentRow]) {
    let dids = parts.bind(column(rows, |row| int(row.did)));
    let blks = parts.bind(column(rows, |row| int(row.blk)));
    let kinds = parts.bind(column(rows, |row| match row.body {
        ExtentBody::Hole => HOLE,
        ExtentBody::Block(_) => BLOCK,
        ExtentBody::Inline(_) => INLINE,
    }));
    let blocks = parts.bind(column(rows, |row| match row.body {
        ExtentBody::Block(block) => Some(int(block)),
        _ => None,
    }));
    let inline = rows.iter().map(|row| match &row.body {
        ExtentBody::Inline(data) => Some(&data[..]),
        _ => None,
    });
    let inline = parts.bind(inline.collect::<Vec<_>>());
    let alloc = parts.bind(rows.iter().map(|row| &row.alloc.0[..]).collect::<Vec<_>>());
    parts.part(
        "ext_new",
        &format!(
            "INSERT INTO tarbox.ext (family, branch, born, did, blk, {BODY})
             SELECT $1, f.branch, f.layer, k.* FROM f, unnest({dids}::bigint[], {blks}::bigint[],
               {kinds}::smallint[], {blocks}::bigint[], {inline}::bytea[], {alloc}::bytea[]) k
             ON CONFLICT (family, branch, did, blk) DO UPDATE SET born = EXCLUDED.born, patches = 0,
               patch_bytes = 0, {set}",
            set = excluded(BODY)
        ),
    );
}

/// Patches go to a version of the layer that is written. An older one that a view keeps is copied, with its patches;
/// so is an ancestor's; where nobody has the block, the patches lie on a hole.
pub(super) fn patches(parts: &mut Parts, batch: &Batch) {
    if batch.patches.is_empty() && batch.patched.is_empty() {
        return;
    }
    patched_rows(parts, batch);
    // `a`: versions of this branch, by whether a view keeps them. `b`: what it takes from its ancestors.
    parts.part(
        "pat_old",
        &format!(
            "SELECT k.*, t.at, t.born, t.born IS NOT NULL AS own, COALESCE(t.born <= f.last_view, false) AS kept, f.branch,
               f.layer, f.ino_floor
             FROM f CROSS JOIN pat_key k LEFT JOIN LATERAL {} t ON true",
            probe("ext", "t.ctid AS at, t.born", "t.branch = f.branch AND t.did = k.did AND t.blk = k.blk")
        ),
    );
    parts.part("pat_kept", &keep_sql("pat_old"));
    parts.part(
        "pat_own",
        "UPDATE tarbox.ext t SET born = CASE WHEN o.kept THEN o.layer ELSE t.born END,
           alloc = COALESCE(o.alloc, t.alloc), patches = t.patches + o.patches, patch_bytes = t.patch_bytes + o.bytes
         FROM pat_old o WHERE o.own AND t.ctid = o.at",
    );
    inherited_rows(parts);
    parts.part(
        "pat_copied",
        &format!(
            "INSERT INTO tarbox.patch (family, branch, did, blk, born, seq, off, data)
             SELECT $1, o.branch, o.did, o.blk, o.layer, p.seq, p.off, p.data FROM pat_source o CROSS JOIN LATERAL {} p",
            probe(
                "patch",
                "t.seq, t.off, t.data",
                "t.branch = o.from_branch AND t.did = o.did AND t.blk = o.blk AND t.born = o.from_born"
            )
        ),
    );
    let mut patches: BTreeMap<_, &[u8]> = BTreeMap::new();
    for row in &batch.patches {
        patches.insert((row.did, row.blk, row.seq, row.off), &row.data);
    }
    let dids = parts.bind(patches.keys().map(|key| int(key.0)).collect::<Vec<_>>());
    let blks = parts.bind(patches.keys().map(|key| int(key.1)).collect::<Vec<_>>());
    let seqs = parts.bind(patches.keys().map(|key| int(key.2)).collect::<Vec<_>>());
    let offs = parts.bind(patches.keys().map(|key| i64::from(key.3)).collect::<Vec<_>>());
    let data = parts.bind(patches.into_values().collect::<Vec<_>>());
    // A row per patch joins the row of its block by position, not by key: no join of n patches with n blocks.
    let of_block = parts.bind(block_of_each(batch));
    parts.part(
        "pat_new",
        &format!(
            "INSERT INTO tarbox.patch (family, branch, did, blk, born, seq, off, data)
             SELECT $1, f.branch, k.did, k.blk, v.born[k.of_block], k.seq, k.off, k.data
             FROM f, (SELECT array_agg(CASE WHEN o.own AND NOT o.kept THEN o.born ELSE o.layer END ORDER BY o.n) AS born
                 FROM pat_old o) v,
               unnest({dids}::bigint[], {blks}::bigint[], {seqs}::bigint[], {offs}::bigint[], {data}::bytea[],
                 {of_block}::int[]) AS k(did, blk, seq, off, data, of_block)"
        ),
    );
}

/// The patched blocks in the order of their keys, with how much lies on each.
fn blocks_of(batch: &Batch) -> BTreeMap<(DataId, BlockIndex), (Option<&AllocMap>, i32, i32)> {
    let mut seen = HashSet::new();
    let mut blocks: BTreeMap<_, (Option<&AllocMap>, i32, i32)> = BTreeMap::new();
    for (did, blk, alloc) in &batch.patched {
        blocks.entry((*did, *blk)).or_default().0 = Some(alloc);
    }
    for row in &batch.patches {
        let block = blocks.entry((row.did, row.blk)).or_default();
        if seen.insert((row.did, row.blk, row.seq, row.off)) {
            block.1 += 1;
            block.2 += row.data.len() as i32;
        }
    }
    blocks
}

/// For each patch in the order of its key: the position, from 1, of its block among [`blocks_of`].
fn block_of_each(batch: &Batch) -> Vec<i32> {
    let position: HashMap<_, _> = blocks_of(batch).into_keys().zip(1..).collect();
    let keys: std::collections::BTreeSet<_> =
        batch.patches.iter().map(|row| (row.did, row.blk, row.seq, row.off)).collect();
    keys.into_iter().map(|(did, blk, ..)| position[&(did, blk)]).collect()
}

fn patched_rows(parts: &mut Parts, batch: &Batch) {
    let blocks = blocks_of(batch);
    let dids = parts.bind(blocks.keys().map(|key| int(key.0)).collect::<Vec<_>>());
    let blks = parts.bind(blocks.keys().map(|key| int(key.1)).collect::<Vec<_>>());
    let alloc =
        parts.bind(blocks.values().map(|block| block.0.map(|alloc| &alloc.0[..])).collect::<Vec<_>>());
    let patches = parts.bind(blocks.values().map(|block| block.1).collect::<Vec<_>>());
    let bytes = parts.bind(blocks.values().map(|block| block.2).collect::<Vec<_>>());
    parts.part(
        "pat_key",
        &format!(
            "SELECT k.* FROM unnest({dids}::bigint[], {blks}::bigint[], {alloc}::bytea[], {patches}::int[],
               {bytes}::int[]) WITH ORDINALITY AS k(did, blk, alloc, patches, bytes, n)"
        ),
    );
}

/// Rows for patched blocks that this branch has none of, from the nearest ancestor; `pat_source` says where patches
/// are to be copied from, for these and for versions that views keep.
fn inherited_rows(parts: &mut Parts) {
    parts.part(
        "line",
        "SELECT 1 AS ord, f.parent AS branch, f.parent_layer AS layer, f.ino_floor AS lim FROM f
           WHERE f.parent IS NOT NULL
         UNION ALL
         SELECT a.ord + 1, b.parent, b.parent_layer, LEAST(a.lim, b.ino_floor) FROM line a
           JOIN tarbox.branch b ON b.family = $1 AND b.branch = a.branch AND b.parent IS NOT NULL",
    );
    let columns = "t.branch, t.born, t.kind, t.block, t.data, t.alloc, t.patches, t.patch_bytes";
    let version = chain::version("ext", columns, "t.did = o.did AND t.blk = o.blk", "a");
    let cut = chain::version("ext", "t.block", "t.did = o.did AND t.blk = -1", "c");
    parts.part(
        "pat_found",
        &format!(
            "SELECT o.did, o.blk, o.alloc AS new_alloc, o.patches AS more, o.bytes, o.branch, o.layer,
               t.branch AS from_branch, t.born AS from_born, COALESCE(t.kind, {HOLE}) AS kind, t.block, t.data,
               COALESCE(t.alloc, '') AS alloc, COALESCE(t.patches, 0) AS patches,
               COALESCE(t.patch_bytes, 0) AS patch_bytes
             FROM pat_old o LEFT JOIN LATERAL (
               SELECT t.* FROM line a CROSS JOIN LATERAL ({version} LIMIT 1) t WHERE o.did < a.lim
                 AND NOT EXISTS (SELECT FROM
                   (SELECT 0 AS ord, o.branch, {MAX}::bigint AS layer UNION ALL SELECT l.ord, l.branch, l.layer FROM line l) c
                   CROSS JOIN LATERAL ({cut} LIMIT 1) m WHERE c.ord < a.ord AND m.block <= o.blk)
               ORDER BY a.ord LIMIT 1) t ON true
             WHERE NOT o.own",
            MAX = i64::MAX
        ),
    );
    parts.part(
        "pat_inherited",
        &format!(
            "INSERT INTO tarbox.ext (family, branch, born, did, blk, {BODY}, patches, patch_bytes)
             SELECT $1, o.branch, o.layer, o.did, o.blk, o.kind, o.block, o.data, COALESCE(o.new_alloc, o.alloc),
               o.patches + o.more, o.patch_bytes + o.bytes FROM pat_found o"
        ),
    );
    parts.part(
        "pat_source",
        "SELECT o.did, o.blk, o.branch, o.layer, o.branch AS from_branch, o.born AS from_born FROM pat_old o
           WHERE o.own AND o.kept
         UNION ALL
         SELECT o.did, o.blk, o.branch, o.layer, o.from_branch, o.from_born FROM pat_found o WHERE o.patches > 0",
    );
}

/// Contents gone: noted for the collector, which may take its time.
pub(super) fn dead(parts: &mut Parts, removed: &[DataId]) {
    if removed.is_empty() {
        return;
    }
    let dids = parts.bind(column(removed, |did| int(*did)));
    parts.part(
        "data_dead",
        &format!(
            "INSERT INTO tarbox.dead_data (family, branch, did, died)
             SELECT $1, f.branch, k.did, f.layer FROM f, unnest({dids}::bigint[]) AS k(did) ON CONFLICT DO NOTHING"
        ),
    );
}
