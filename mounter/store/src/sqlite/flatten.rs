//! A link of a chain goes: what the parent shows of its own at the fork becomes the child's, in small transactions.
//!
//! A row of the parent that the child has no version of becomes a present row of the child; one that the child replaced in layer `m`
//! becomes history up to there, where a view of the child before `m` is kept. No view shows anything else for it, at no moment,
//! so it may be cut off anywhere and begun anew. At last the child begins where its parent begins.

use rusqlite::{Connection, OptionalExtension, Row, ToSql, params, types::Value};
use tarbox_types::{BranchId, Layer};

use super::{
    commit::Version,
    fault::Outcome,
    history, layers,
    rows::{self, number},
};
use crate::flatten::{self, Flattened, Flattening, Fork, KeyPart};

/// Rows of one transaction: about 10 ms.
const BATCH: usize = 500;
/// Layer that rows of a parent are born in: no view of the child is earlier.
const BORN: Layer = 1;
/// Rows of a branch are counted up to here.
const COUNTED: i64 = 200_000;

struct Table {
    name: &'static str,
    key: &'static [&'static str],
    /// The other columns but `born`, as they are called and as they are taken over.
    values: &'static str,
    taken: &'static str,
    /// What is no whiteout: without further ancestors there is nothing to hide.
    alive: &'static str,
}

const INODE: &str = "dead, mode, uid, gid, rdev, nlink, size, atime, atime_ns, mtime, mtime_ns, ctime, ctime_ns, dir_parent, did, cut,
     charge, prealloc, target";
/// `cut` counts from the fork of the branch that it was made in: what the parent cut stands in table `cut`.
const INODE_TAKEN: &str = "dead, mode, uid, gid, rdev, nlink, size, atime, atime_ns, mtime, mtime_ns, ctime, ctime_ns, dir_parent, did,
     9223372036854775807, charge, prealloc, target";

const TABLES: [Table; 3] = [
    Table { name: "inode", key: &["ino"], values: INODE, taken: INODE_TAKEN, alive: "dead = 0" },
    Table {
        name: "dentry",
        key: &["parent", "name"],
        values: "ino, kind, cookie",
        taken: "ino, kind, cookie",
        alive: "ino IS NOT NULL",
    },
    Table { name: "xattr", key: &["ino"], values: "data", taken: "data", alive: "data IS NOT NULL" },
];

/// One step: chooses a link, moves a batch of it, or ends it.
pub(super) fn step(connection: &Connection, from: Option<&Flattening>) -> Outcome<Flattened> {
    let known = match from {
        Some(at) if is_linked(connection, at)? => at.clone(),
        // It ended, or was begun by another one that ended it.
        Some(_) | None => match choose(connection)? {
            Some(link) => Flattening::new(link),
            None => return Ok(Flattened::Nothing),
        },
    };
    let link = Link::of(connection, &known)?;
    let known = known.on(link.beyond);
    let last = match known.table {
        table @ 0..=2 => link.rows(connection, &TABLES[table], &known.after)?,
        3 => link.extents(connection, &known.after)?,
        4 => {
            link.cuts_and_dead(connection)?;
            None
        }
        _ => {
            link.end(connection)?;
            return Ok(Flattened::Done);
        }
    };
    Ok(Flattened::More(known.next(last)))
}

fn is_linked(connection: &Connection, at: &Flattening) -> Outcome<bool> {
    Ok(connection
        .prepare_cached("SELECT 1 FROM branch WHERE branch = ?1 AND parent = ?2 AND parent_layer = ?3")?
        .exists(params![at.child, at.parent, at.layer])?)
}

fn choose(connection: &Connection) -> Outcome<Option<Fork>> {
    let forks: Vec<Fork> = connection
        .prepare_cached("SELECT branch, parent, parent_layer FROM branch WHERE parent IS NOT NULL")?
        .query_map([], |row| Ok(Fork { child: row.get(0)?, parent: row.get(1)?, layer: row.get(2)? }))?
        .collect::<rusqlite::Result<_>>()?;
    let chain = flatten::longest_allowed(&forks);
    let counted = chain.into_iter().map(|fork| Ok((fork, own_rows(connection, fork.parent)?)));
    Ok(flatten::choose(&counted.collect::<Outcome<Vec<_>>>()?))
}

fn own_rows(connection: &Connection, branch: BranchId) -> Outcome<u64> {
    let mut sum = 0;
    for table in ["inode", "dentry", "ext"] {
        let sql = format!("SELECT count(*) FROM (SELECT 1 FROM {table} WHERE branch = ?1 LIMIT {COUNTED})");
        sum += connection.prepare_cached(&sql)?.query_row([branch], |row| number(row, 0))?;
    }
    Ok(sum)
}

/// A key as SQLite takes it.
fn values(key: &[KeyPart]) -> Vec<Value> {
    let value = |part: &KeyPart| match part {
        KeyPart::Number(number) => Value::Integer(*number),
        KeyPart::Name(name) => Value::Blob(name.clone()),
    };
    key.iter().map(value).collect()
}

fn parts(row: &Row<'_>, count: usize) -> rusqlite::Result<Vec<KeyPart>> {
    let part = |at| {
        Ok(match row.get::<_, Value>(at)? {
            Value::Blob(name) => KeyPart::Name(name),
            Value::Integer(number) => KeyPart::Number(number),
            other => {
                let kind = other.data_type();
                return Err(rusqlite::Error::InvalidColumnType(at, "key".into(), kind));
            }
        })
    };
    (0..count).map(part).collect()
}

/// The link that goes.
struct Link {
    child: BranchId,
    parent: BranchId,
    layer: Layer,
    /// Where the parent begins.
    beyond: Option<(BranchId, Layer)>,
    /// Up to which layer the child's history is counted.
    counted: Layer,
}

impl Link {
    fn of(connection: &Connection, at: &Flattening) -> Outcome<Self> {
        let beyond = rows::view(connection, at.parent, at.layer)?.chain.get(1).map(|l| (l.branch, l.layer));
        let counted = history::counted_upto(connection, at.child)?;
        Ok(Self { child: at.child, parent: at.parent, layer: at.layer, beyond, counted })
    }

    /// Keys that the parent shows beyond one, in order.
    fn page(
        &self,
        connection: &Connection,
        table: &str,
        key: &[&str],
        and: &str,
        after: &[KeyPart],
    ) -> Outcome<Vec<Vec<KeyPart>>> {
        let columns = key.join(", ");
        let marks: Vec<_> = (0..key.len()).map(|at| format!("?{}", at + 3)).collect();
        let beyond = match after.is_empty() {
            true => String::new(),
            false => format!("AND ({columns}) > ({})", marks.join(", ")),
        };
        let sql = format!(
            "SELECT {columns} FROM {table} WHERE branch = ?1 AND born <= ?2 {beyond} {and}
             UNION ALL SELECT {columns} FROM {table}_h WHERE branch = ?1 AND born <= ?2 AND died > ?2 {beyond} {and}
             ORDER BY {columns} LIMIT {BATCH}"
        );
        let after = values(after);
        let mut parameters: Vec<&dyn ToSql> = vec![&self.parent, &self.layer];
        parameters.extend(after.iter().map(|value| value as &dyn ToSql));
        let mut statement = connection.prepare_cached(&sql)?;
        let found = statement.query_map(&parameters[..], |row| parts(row, key.len()))?;
        Ok(found.collect::<rusqlite::Result<_>>()?)
    }

    /// The layer in which the child first had a version of its own.
    fn first_own(
        &self,
        connection: &Connection,
        table: &str,
        key: &[&str],
        at: &[Value],
    ) -> Outcome<Option<Layer>> {
        let condition = equal(key, 2);
        let sql = format!(
            "SELECT min(born) FROM (SELECT born FROM {table} WHERE branch = ?1 AND {condition}
             UNION ALL SELECT born FROM {table}_h WHERE branch = ?1 AND {condition})"
        );
        let mut parameters: Vec<&dyn ToSql> = vec![&self.child];
        parameters.extend(at.iter().map(|value| value as &dyn ToSql));
        Ok(connection.prepare_cached(&sql)?.query_row(&parameters[..], |row| row.get(0))?)
    }

    /// Whether a view of the child before this layer is kept.
    fn is_seen_before(&self, connection: &Connection, layer: Layer) -> Outcome<bool> {
        Ok(connection
            .prepare_cached(
                "SELECT 1 FROM layer WHERE branch = ?1 AND layer < ?2
                 UNION ALL SELECT 1 FROM branch WHERE parent = ?1 AND parent_layer < ?2",
            )?
            .exists(params![self.child, layer])?)
    }

    /// A batch of a plain table; the last key, where there may be more.
    fn rows(
        &self,
        connection: &Connection,
        table: &Table,
        after: &[KeyPart],
    ) -> Outcome<Option<Vec<KeyPart>>> {
        let and = if self.beyond.is_some() { String::new() } else { format!("AND {}", table.alive) };
        let page = self.page(connection, table.name, table.key, &and, after)?;
        for key in &page {
            let at = values(key);
            match self.first_own(connection, table.name, table.key, &at)? {
                None => self.take(connection, table, &at, None)?,
                Some(own) if self.is_seen_before(connection, own)? => {
                    self.take(connection, table, &at, Some(own))?;
                }
                Some(_) => {}
            }
        }
        self.counted_anew(connection, &page)?;
        Ok(page.last().filter(|_| page.len() == BATCH).cloned())
    }

    /// Takes a row over: as a present one, or as history up to `died`.
    fn take(&self, connection: &Connection, table: &Table, at: &[Value], died: Option<Layer>) -> Outcome<()> {
        let Table { name, key, values, taken, .. } = table;
        let (columns, condition) = (key.join(", "), equal(key, 4));
        let (to, more, value) = match died {
            None => ((*name).to_owned(), "", String::new()),
            Some(died) => (format!("{name}_h"), ", died", format!(", {died}")),
        };
        let sql = format!(
            "INSERT OR IGNORE INTO {to}(branch, {columns}, born, {values}{more})
             SELECT ?3, {columns}, {BORN}, {taken}{value} FROM {name} WHERE branch = ?1 AND {condition} AND born <= ?2
             UNION ALL SELECT ?3, {columns}, {BORN}, {taken}{value} FROM {name}_h
               WHERE branch = ?1 AND {condition} AND born <= ?2 AND died > ?2"
        );
        let mut parameters: Vec<&dyn ToSql> = vec![&self.parent, &self.layer, &self.child];
        parameters.extend(at.iter().map(|value| value as &dyn ToSql));
        // The layer of a death is a number in the text: not one of a few statements that are kept.
        let taken = match died {
            None => connection.prepare_cached(&sql)?.execute(&parameters[..])?,
            Some(_) => connection.prepare(&sql)?.execute(&parameters[..])?,
        };
        if let Some(died) = died.filter(|died| taken > 0 && *died <= self.counted) {
            let bytes = history::of_row(connection, name, self.child, key, at, died)?;
            history::adjust(connection, self.child, bytes)?;
        }
        Ok(())
    }

    /// Present rows have come to a branch that may be no head any more.
    fn counted_anew(&self, connection: &Connection, page: &[Vec<KeyPart>]) -> Outcome<()> {
        if page.is_empty() { Ok(()) } else { history::recount_left(connection, self.child) }
    }

    // === Contents ===

    fn extents(&self, connection: &Connection, after: &[KeyPart]) -> Outcome<Option<Vec<KeyPart>>> {
        let key = ["did", "blk"];
        // Contents that were dead by then are not to be reached.
        let and = format!(
            "AND did NOT IN (SELECT d.did FROM dead d WHERE d.branch = {} AND d.died <= {})",
            self.parent, self.layer
        );
        let page = self.page(connection, "ext", &key, &and, after)?;
        for at in &page {
            let at = values(at);
            match self.first_change(connection, &at)? {
                None => self.take_extent(connection, &at, None)?,
                Some(own) if self.is_seen_before(connection, own)? => {
                    self.take_extent(connection, &at, Some(own))?;
                }
                Some(_) => {}
            }
        }
        self.counted_anew(connection, &page)?;
        Ok(page.last().filter(|_| page.len() == BATCH).cloned())
    }

    /// The layer from which on the child shows something else for a block: a version of its own, a cut, or nothing, its content being dead.
    fn first_change(&self, connection: &Connection, at: &[Value]) -> Outcome<Option<Layer>> {
        let own = self.first_own(connection, "ext", &["did", "blk"], at)?;
        let other: Option<Layer> = connection
            .prepare_cached(
                "SELECT min(l) FROM (SELECT born l FROM cut WHERE branch = ?1 AND did = ?2 AND blk <= ?3
                 UNION ALL SELECT died FROM dead WHERE branch = ?1 AND did = ?2)",
            )?
            .query_row(params![self.child, at[0], at[1]], |row| row.get(0))?;
        Ok([own, other].into_iter().flatten().min())
    }

    fn take_extent(&self, connection: &Connection, at: &[Value], died: Option<Layer>) -> Outcome<()> {
        let found = connection
            .prepare_cached(
                "SELECT did, blk, born, kind, alloc, block FROM ext
                   WHERE branch = ?1 AND did = ?3 AND blk = ?4 AND born <= ?2
                 UNION ALL SELECT did, blk, born, kind, alloc, block FROM ext_h
                   WHERE branch = ?1 AND did = ?3 AND blk = ?4 AND born <= ?2 AND died > ?2",
            )?
            .query_row(params![self.parent, self.layer, at[0], at[1]], |row| {
                let version = Version {
                    branch: self.parent,
                    did: number(row, 0)?,
                    blk: number(row, 1)?,
                    born: row.get(2)?,
                };
                let block = row.get::<_, Option<i64>>(5)?.unwrap_or(0);
                Ok((version, row.get::<_, i64>(3)?, rows::alloc(row, 4)?, block))
            })
            .optional()?;
        let Some((old, kind, alloc, block)) = found else { return Ok(()) };
        let new = Version { branch: self.child, did: old.did, blk: old.blk, born: BORN };
        let Some(died) = died else { return old.copy_to(connection, &new, kind, &alloc, block) };
        let is_new = old.copy_to_history(connection, &new, kind, &alloc, block, died)?;
        if is_new && died <= self.counted {
            let (did, blk) = (rows::int(old.did), rows::int(old.blk));
            let bytes = history::of_extent(connection, self.child, did, blk, died)?;
            history::adjust(connection, self.child, bytes)?;
        }
        Ok(())
    }

    /// What the parent hides of its ancestors, the child hides from now on.
    fn cuts_and_dead(&self, connection: &Connection) -> Outcome<()> {
        if self.beyond.is_none() {
            return Ok(());
        }
        let at = params![self.parent, self.layer, self.child];
        connection
            .prepare_cached(
                "UPDATE cut SET blk = min(blk, coalesce((SELECT min(p.blk) FROM cut p
                   WHERE p.branch = ?1 AND p.did = cut.did AND p.born <= ?2), blk)) WHERE branch = ?3",
            )?
            .execute(at)?;
        connection
            .prepare_cached(&format!(
                "INSERT OR IGNORE INTO cut(branch, did, born, blk) SELECT ?3, did, {BORN}, min(blk) FROM cut
                 WHERE branch = ?1 AND born <= ?2 GROUP BY did"
            ))?
            .execute(at)?;
        connection
            .prepare_cached(&format!(
                "INSERT OR IGNORE INTO dead(branch, did, died, reaped) SELECT ?3, did, {BORN}, 1 FROM dead
                 WHERE branch = ?1 AND died <= ?2"
            ))?
            .execute(at)?;
        Ok(())
    }

    /// From now on the child begins where its parent begins.
    fn end(&self, connection: &Connection) -> Outcome<()> {
        connection
            .prepare_cached(
                "UPDATE branch SET origin = coalesce(origin, parent), origin_layer = coalesce(origin_layer, parent_layer),
                 parent = ?2, parent_layer = ?3,
                 ino_floor = min(ino_floor, (SELECT p.ino_floor FROM branch p WHERE p.branch = ?4)) WHERE branch = ?1",
            )?
            .execute(params![
                self.child,
                self.beyond.map(|(branch, _)| branch),
                self.beyond.map(|(_, layer)| layer),
                self.parent
            ])?;
        if self.beyond.is_none() {
            connection
                .prepare_cached("DELETE FROM dead WHERE branch = ?1 AND reaped = 1")?
                .execute([self.child])?;
        }
        layers::forget_fork(connection, self.parent, self.layer)
    }
}

/// A condition that fixes a key, whose first value is the parameter `?from`.
fn equal(key: &[&str], from: usize) -> String {
    let each = key.iter().enumerate().map(|(at, column)| format!("{column} = ?{}", at + from));
    each.collect::<Vec<_>>().join(" AND ")
}
