//! A link of a chain goes: what the parent shows of its own at the fork becomes the child's, in small transactions.
//!
//! A row of the parent that the child has no version of becomes a present row of the child; one that the child replaced in layer `m`
//! becomes history up to there, where a view of the child before `m` is kept. No view shows anything else for it, at no moment,
//! so it may be cut off anywhere and begun anew. At last the child begins where its parent begins.
//!
//! A commit that waits for the tenant's row sees the rows as they were before it waited: it would overwrite one that came meanwhile
//! without keeping it. Each batch therefore counts in that row, and a commit that finds another number than it began with
//! does nothing, and is done again.

use sqlx::{Row, postgres::PgRow};

use super::{
    collect,
    failure::Failure,
    history,
    pool::{Pool, Transaction, transact},
    rows::{Sql, unreadable},
    statement::{Statement, count},
};
use crate::{
    error::Result,
    flatten::{self, Flattened, Flattening, Fork, KeyPart},
};

type Attempt<T> = std::result::Result<T, Failure>;

/// Rows of one transaction.
const BATCH: i64 = 1000;
/// Rows of a branch are counted up to here.
const COUNTED: i64 = 200_000;

/// A table with a history, for statements whose `$1` is the family, `$2` the child, `$3` the parent, `$4` the layer.
struct Table {
    name: &'static str,
    key: &'static [&'static str],
    /// The other columns but `born`, as they are called and as they are taken over.
    values: &'static str,
    taken: &'static str,
    /// What is no whiteout: without further ancestors there is nothing to hide.
    alive: &'static str,
    /// What of the parent's rows `t` counts at all.
    and: &'static str,
    /// A further layer from which on the child shows something else for row `p`.
    change: &'static str,
}

const INODE: &str = "dead, mode, uid, gid, rdev, nlink, size, atime, atime_ns, mtime, mtime_ns, ctime, ctime_ns, dir_parent, did, cut, \
     charge, prealloc, target";
/// `cut` counts from the fork of the branch that it was made in: what the parent cut stands in its rows at block -1.
const INODE_TAKEN: &str = "p.dead, p.mode, p.uid, p.gid, p.rdev, p.nlink, p.size, p.atime, p.atime_ns, p.mtime, p.mtime_ns, p.ctime, \
     p.ctime_ns, p.dir_parent, p.did, 9223372036854775807, p.charge, p.prealloc, p.target";

const TABLES: [Table; 4] = [
    Table {
        name: "inode",
        key: &["ino"],
        values: INODE,
        taken: INODE_TAKEN,
        alive: "NOT t.dead",
        and: "true",
        change: "NULL::bigint",
    },
    Table {
        name: "dentry",
        key: &["parent", "name"],
        values: "ino, kind, cookie",
        taken: "p.ino, p.kind, p.cookie",
        alive: "t.ino IS NOT NULL",
        and: "true",
        change: "NULL::bigint",
    },
    Table {
        name: "xattr",
        key: &["ino"],
        values: "value",
        taken: "p.value",
        alive: "t.value IS NOT NULL",
        and: "true",
        change: "NULL::bigint",
    },
    Table {
        name: "ext",
        key: &["did", "blk"],
        values: "kind, block, data, alloc, patches, patch_bytes",
        taken: "p.kind, p.block, p.data, p.alloc, p.patches, p.patch_bytes",
        alive: "true",
        // Contents that were dead by then are not to be reached.
        and: "t.blk >= 0 AND NOT EXISTS (SELECT FROM tarbox.dead_data d WHERE d.family = $1 AND d.branch = $3 AND d.did = t.did
                AND d.died <= $4)",
        // A cut of the child, or the content's death there.
        change: "LEAST((SELECT min(c.born) FROM tarbox.ext c WHERE c.family = $1 AND c.branch = $2 AND c.did = p.did AND c.blk = -1
                   AND c.block <= p.blk),
                 (SELECT min(c.born) FROM tarbox.ext_h c WHERE c.family = $1 AND c.branch = $2 AND c.did = p.did AND c.blk = -1
                   AND c.block <= p.blk),
                 (SELECT d.died FROM tarbox.dead_data d WHERE d.family = $1 AND d.branch = $2 AND d.did = p.did))",
    },
];

/// One step: chooses a link, moves a batch of it, or ends it.
pub(super) async fn step(pool: &Pool, family: i64, from: Option<Flattening>) -> Result<Flattened> {
    // A login sees too little of what others look through: the owner does it in the background.
    if pool.is_of_login() {
        return Ok(Flattened::Nothing);
    }
    let at = match from {
        Some(at) => at,
        None => match choose(pool, family).await? {
            Some(link) => Flattening::new(link),
            None => return Ok(Flattened::Nothing),
        },
    };
    let done = transact!(pool, "flatten a chain of branches", try_step(pool, family, &at))?;
    if done == Flattened::Done {
        // What is left of tenants that are gone, and that only this link needed.
        while collect::release_history(pool, family).await? {}
    }
    Ok(done)
}

async fn choose(pool: &Pool, family: i64) -> Result<Option<Fork>> {
    let found = pool
        .read("look for long chains", || {
            Statement::new(
                "SELECT branch, parent, parent_layer FROM tarbox.branch WHERE family = $1 AND parent IS NOT NULL",
            )
            .with(family)
        })
        .await?;
    let fork = |row: &PgRow| -> Sql<Fork> {
        Ok(Fork { child: row.try_get(0)?, parent: row.try_get(1)?, layer: row.try_get(2)? })
    };
    let forks: Vec<Fork> = found.iter().map(|row| fork(row).map_err(unreadable)).collect::<Result<_>>()?;
    let mut counted = Vec::new();
    for fork in flatten::longest_allowed(&forks) {
        counted.push((fork, own_rows(pool, family, fork.parent).await?));
    }
    Ok(flatten::choose(&counted))
}

async fn own_rows(pool: &Pool, family: i64, branch: i64) -> Result<u64> {
    let of = |table: &str| {
        format!(
            "(SELECT count(*) FROM (SELECT FROM tarbox.{table} WHERE family = $1 AND branch = $2 LIMIT {COUNTED}) few)"
        )
    };
    let found = pool
        .read("count the rows of a branch", || {
            Statement::new(format!("SELECT {} + {} + {}", of("inode"), of("dentry"), of("ext")))
                .with(family)
                .with(branch)
        })
        .await?;
    found.first().map_or(Ok(0), |row| row.try_get(0).map(count).map_err(unreadable))
}

async fn try_step(pool: &Pool, family: i64, at: &Flattening) -> Attempt<Flattened> {
    let mut transaction = pool.begin().await?;
    let Some(beyond) = lock(&mut transaction, family, at).await? else {
        // It ended, or was begun by another one that ended it.
        transaction.roll_back().await;
        return Ok(Flattened::Done);
    };
    let at = &at.on(beyond);
    let beyond = beyond.is_some();
    let link = |sql: String| Statement::new(sql).with(family).with(at.child).with(at.parent).with(at.layer);
    let done = match TABLES.get(at.table) {
        Some(table) => {
            let row = transaction.row(batch(link(String::new()), table, beyond, at)).await?;
            Flattened::More(at.next(row.map(|row| last(&row, table)).transpose()?.flatten()))
        }
        None if at.table == TABLES.len() => {
            if beyond {
                transaction.rows(link(cuts())).await?;
                transaction.rows(link(dead())).await?;
            }
            Flattened::More(at.next(None))
        }
        None => {
            transaction.rows(link(END.to_owned())).await?;
            if !beyond {
                let gone = "DELETE FROM tarbox.dead_data WHERE family = $1 AND branch = $2 AND reaped";
                transaction.rows(Statement::new(gone).with(family).with(at.child)).await?;
            }
            Flattened::Done
        }
    };
    transaction.commit().await?;
    Ok(done)
}

/// Where a branch begins, unless it is the family's first.
type Beyond = Option<(i64, i64)>;

/// Locks, in the order of all transactions, the child's tenant, where it has one, the child, and where the parent begins, which it answers;
/// nothing where the child does not begin there (any more).
async fn lock(transaction: &mut Transaction, family: i64, at: &Flattening) -> Attempt<Option<Beyond>> {
    let head = "UPDATE tarbox.tenant SET flattened = flattened + 1 WHERE family = $1 AND head_branch = $2 RETURNING 1";
    transaction.rows(Statement::new(head).with(family).with(at.child)).await?;
    let linked = Statement::new(
        "SELECT p.parent, p.parent_layer FROM tarbox.branch c JOIN tarbox.branch p ON p.family = c.family AND p.branch = c.parent
         WHERE c.family = $1 AND c.branch = $2 AND c.parent = $3 AND c.parent_layer = $4 FOR NO KEY UPDATE OF c FOR SHARE OF p",
    );
    let linked = linked.with(family).with(at.child).with(at.parent).with(at.layer);
    let beyond = |row: PgRow| -> Sql<Beyond> {
        Ok(row.try_get::<Option<i64>, _>(0)?.zip(row.try_get::<Option<i64>, _>(1)?))
    };
    Ok(transaction.row(linked).await?.map(beyond).transpose()?)
}

fn equal(key: &[&str], one: &str, other: &str) -> String {
    let each = key.iter().map(|column| format!("{one}.{column} = {other}.{column}"));
    each.collect::<Vec<_>>().join(" AND ")
}

/// A batch of a table; answers with how many rows it looked at, and the last key.
fn batch(mut statement: Statement, table: &Table, beyond: bool, at: &Flattening) -> Statement {
    let Table { name, key, values, taken, alive, and, change } = table;
    let of = |alias: &str| key.iter().map(|column| format!("{alias}{column}")).collect::<Vec<_>>().join(", ");
    let mut after = String::new();
    if !at.after.is_empty() {
        let marks: Vec<_> = at
            .after
            .iter()
            .map(|part| match part {
                KeyPart::Number(number) => statement.bind(*number),
                KeyPart::Name(name) => statement.bind(name.clone()),
            })
            .map(|number| format!("${number}"))
            .collect();
        after = format!("AND ({}) > ({})", of("t."), marks.join(", "));
    }
    let alive = if beyond { "true" } else { *alive };
    let seen = |table: &str, died: &str| {
        format!(
            "(SELECT t.born AS old, {}, {values} FROM tarbox.{table} t WHERE t.family = $1 AND t.branch = $3 AND t.born <= $4
                {died} {after} AND {alive} AND {and} ORDER BY {} LIMIT {BATCH})",
            of("t."),
            of("t."),
        )
    };
    let own = |table: &str| {
        format!(
            "(SELECT min(c.born) FROM tarbox.{table} c WHERE c.family = $1 AND c.branch = $2 AND {})",
            equal(key, "c", "p")
        )
    };
    let patches = match *name {
        "ext" => {
            ", patches AS (INSERT INTO tarbox.patch (family, branch, did, blk, born, seq, off, data)
             SELECT $1, $2, o.did, o.blk, 1, x.seq, x.off, x.data FROM own o CROSS JOIN LATERAL (SELECT t.seq, t.off, t.data
                 FROM tarbox.patch t WHERE t.family = $1 AND t.branch = $3 AND t.did = o.did AND t.blk = o.blk AND t.born = o.old OFFSET 0) x
             WHERE o.patches > 0 AND (o.own IS NULL OR o.seen) ON CONFLICT DO NOTHING)"
        }
        _ => "",
    };
    statement.push(&format!(
        "WITH page AS MATERIALIZED (SELECT * FROM ({} UNION ALL {}) s ORDER BY {columns} LIMIT {BATCH}),
         first AS MATERIALIZED (SELECT p.*, LEAST({}, {}, {change}) AS own FROM page p),
         own AS MATERIALIZED (SELECT f.*, EXISTS (SELECT FROM tarbox.layer y WHERE y.family = $1 AND y.branch = $2
             AND y.layer < f.own) AS seen FROM first f),
         now AS (INSERT INTO tarbox.{name} (family, branch, born, {columns}, {values})
           SELECT $1, $2, 1, {key_of_p}, {taken} FROM own p WHERE p.own IS NULL ON CONFLICT DO NOTHING),
         past AS (INSERT INTO tarbox.{name}_h AS t (family, branch, born, {columns}, {values}, died)
           SELECT $1, $2, 1, {key_of_p}, {taken}, p.own FROM own p WHERE p.seen ON CONFLICT DO NOTHING
           RETURNING t.died, {bytes} AS bytes){patches},
         counted AS ({COUNTED_IN})
         SELECT (SELECT count(*) FROM page) AS looked, {columns} FROM page ORDER BY {descending} LIMIT 1",
        seen(name, ""),
        seen(&format!("{name}_h"), "AND t.died > $4"),
        own(name),
        own(&format!("{name}_h")),
        columns = of(""),
        key_of_p = of("p."),
        bytes = history::of_row(&format!("{name}_h")),
        descending = key.iter().map(|column| format!("{column} DESC")).collect::<Vec<_>>().join(", "),
    ));
    statement
}

/// The last key of a page; nothing where it was the last page.
fn last(row: &PgRow, table: &Table) -> Sql<Option<Vec<KeyPart>>> {
    if row.try_get::<i64, _>("looked")? < BATCH {
        return Ok(None);
    }
    let part = |column: &&str| match *column {
        "name" => row.try_get(*column).map(KeyPart::Name),
        column => row.try_get(column).map(KeyPart::Number),
    };
    table.key.iter().map(part).collect::<Sql<Vec<_>>>().map(Some)
}

/// Takes versions `past` into the child's history as far as that is counted; its present rows are to be counted anew.
const COUNTED_IN: &str =
    "UPDATE tarbox.branch b SET history_bytes = b.history_bytes + s.bytes, left_bytes = NULL
     FROM (SELECT COALESCE(sum(g.bytes), 0)::bigint AS bytes FROM past g JOIN tarbox.branch o
       ON o.family = $1 AND o.branch = $2 AND g.died <= o.history_upto) s
     WHERE b.family = $1 AND b.branch = $2";

/// What the parent cut off its ancestors, the child cuts off from now on.
fn cuts() -> String {
    format!(
        "WITH cut AS MATERIALIZED (
       SELECT t.did, t.block FROM tarbox.ext t WHERE t.family = $1 AND t.branch = $3 AND t.kind = 3 AND t.born <= $4
       UNION ALL SELECT t.did, t.block FROM tarbox.ext_h t WHERE t.family = $1 AND t.branch = $3 AND t.kind = 3 AND t.born <= $4
         AND t.died > $4),
     own AS MATERIALIZED (SELECT cut.*, LEAST(
         (SELECT min(c.born) FROM tarbox.ext c WHERE c.family = $1 AND c.branch = $2 AND c.did = cut.did AND c.blk = -1),
         (SELECT min(c.born) FROM tarbox.ext_h c WHERE c.family = $1 AND c.branch = $2 AND c.did = cut.did AND c.blk = -1))
         AS own FROM cut),
     later AS (UPDATE tarbox.ext c SET block = LEAST(c.block, cut.block) FROM cut
       WHERE c.family = $1 AND c.branch = $2 AND c.did = cut.did AND c.blk = -1),
     earlier AS (UPDATE tarbox.ext_h c SET block = LEAST(c.block, cut.block) FROM cut
       WHERE c.family = $1 AND c.branch = $2 AND c.did = cut.did AND c.blk = -1),
     now AS (INSERT INTO tarbox.ext (family, branch, born, did, blk, kind, block, alloc)
       SELECT $1, $2, 1, o.did, -1, 3, o.block, '' FROM own o WHERE o.own IS NULL ON CONFLICT DO NOTHING),
     past AS (INSERT INTO tarbox.ext_h AS t (family, branch, born, did, blk, kind, block, alloc, patches, patch_bytes, died)
       SELECT $1, $2, 1, o.did, -1, 3, o.block, '', 0, 0, o.own FROM own o WHERE EXISTS (SELECT FROM tarbox.layer y
         WHERE y.family = $1 AND y.branch = $2 AND y.layer < o.own) ON CONFLICT DO NOTHING
       RETURNING t.died, {} AS bytes)
     {COUNTED_IN}",
        history::of_row("ext_h")
    )
}

/// Contents of ancestors that are dead in the parent are dead in the child.
fn dead() -> String {
    "INSERT INTO tarbox.dead_data (family, branch, did, died, reaped)
     SELECT $1, $2, d.did, 1, true FROM tarbox.dead_data d WHERE d.family = $1 AND d.branch = $3 AND d.died <= $4
     ON CONFLICT DO NOTHING"
        .to_owned()
}

/// From now on the child begins where its parent begins.
const END: &str = "UPDATE tarbox.branch c SET origin = COALESCE(c.origin, c.parent),
       origin_layer = COALESCE(c.origin_layer, c.parent_layer), parent = p.parent, parent_layer = p.parent_layer,
       depth = GREATEST(c.depth - 1, 1), ino_floor = LEAST(c.ino_floor, p.ino_floor)
     FROM tarbox.branch p WHERE c.family = $1 AND c.branch = $2 AND p.family = $1 AND p.branch = $3 AND c.parent_layer = $4";
