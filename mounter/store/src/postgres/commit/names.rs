//! The parts of a commit for inodes, names and extended attributes.

use std::collections::HashSet;

use super::Parts;
use crate::{
    codec,
    model::*,
    postgres::{
        chain::probe,
        statement::{column, int},
    },
};

const INODE: &str = "mode, uid, gid, rdev, nlink, size, atime, atime_ns, mtime, mtime_ns, ctime, ctime_ns, \
     dir_parent, did, cut, charge, prealloc, target";

/// `a = EXCLUDED.a, …`
pub(super) fn excluded(columns: &str) -> String {
    columns.split(", ").map(|name| format!("{name} = EXCLUDED.{name}")).collect::<Vec<_>>().join(", ")
}

/// `t.a, t.b, …`
pub(super) fn of(alias: &str, columns: &str) -> String {
    columns.split(", ").map(|name| format!("{alias}.{name}")).collect::<Vec<_>>().join(", ")
}

/// Copies the versions that a kept view sees, and that this commit replaces or removes, to the history.
/// `keys` is a table `k`, `on` finds its rows in the table `t`. Without a kept view nothing is looked up.
pub(super) fn keep(parts: &mut Parts, table: &str, columns: &str, keys: &str, on: &str) {
    let values = of("t", columns);
    let old = format!("f.last_view >= 0 AND t.branch = f.branch AND {on} AND t.born <= f.last_view");
    let old = probe(table, &format!("{values}, t.born"), &old);
    parts.part(
        &format!("{table}_kept"),
        &format!(
            "INSERT INTO tarbox.{table}_h (family, branch, {columns}, born, died)
             SELECT $1, f.branch, {values}, t.born, f.layer FROM f CROSS JOIN {keys} CROSS JOIN LATERAL {old} t"
        ),
    );
}

pub(super) fn inodes(parts: &mut Parts, batch: &Batch) {
    let (rows, gone) = (&batch.inodes, &batch.removed_inodes);
    if rows.is_empty() && gone.is_empty() {
        return;
    }
    let keys = rows.iter().map(|row| int(row.ino)).chain(gone.iter().map(|ino| int(*ino)));
    let keys = parts.bind(keys.collect::<Vec<_>>());
    keep(
        parts,
        "inode",
        &format!("ino, dead, {INODE}"),
        &format!("unnest({keys}::bigint[]) AS k(ino)"),
        "t.ino = k.ino",
    );
    if !rows.is_empty() {
        upsert_inodes(parts, rows);
    }
    if !gone.is_empty() {
        remove_inodes(parts, gone.iter().map(|ino| int(*ino)).collect());
    }
}

fn upsert_inodes(parts: &mut Parts, rows: &[InodeRow]) {
    let arrays = [
        ("bigint", parts.bind(column(rows, |r| int(r.ino)))),
        ("int", parts.bind(column(rows, |r| r.mode as i32))),
        ("bigint", parts.bind(column(rows, |r| i64::from(r.uid)))),
        ("bigint", parts.bind(column(rows, |r| i64::from(r.gid)))),
        ("bigint", parts.bind(column(rows, |r| i64::from(r.rdev)))),
        ("bigint", parts.bind(column(rows, |r| i64::from(r.nlink)))),
        ("bigint", parts.bind(column(rows, |r| int(r.size)))),
        ("bigint", parts.bind(column(rows, |r| r.atime.sec))),
        ("int", parts.bind(column(rows, |r| r.atime.nsec as i32))),
        ("bigint", parts.bind(column(rows, |r| r.mtime.sec))),
        ("int", parts.bind(column(rows, |r| r.mtime.nsec as i32))),
        ("bigint", parts.bind(column(rows, |r| r.ctime.sec))),
        ("int", parts.bind(column(rows, |r| r.ctime.nsec as i32))),
        ("bigint", parts.bind(column(rows, |r| int(r.dir_parent)))),
        ("bigint", parts.bind(column(rows, |r| int(r.did)))),
        ("bigint", parts.bind(column(rows, |r| int(r.cut)))),
        ("bigint", parts.bind(column(rows, |r| int(r.charge)))),
        ("bytea", parts.bind(column(rows, |r| codec::encode_ranges(&r.prealloc)))),
        ("bytea", parts.bind(column(rows, |r| r.target.to_vec()))),
    ];
    let arrays = arrays.map(|(kind, number)| format!("{number}::{kind}[]")).join(", ");
    let set = excluded(INODE);
    parts.part(
        "inode_new",
        &format!(
            "INSERT INTO tarbox.inode (family, branch, born, dead, ino, {INODE})
             SELECT $1, f.branch, f.layer, false, k.* FROM f, unnest({arrays}) k
             ON CONFLICT (family, branch, ino) DO UPDATE SET born = EXCLUDED.born, dead = false, {set}"
        ),
    );
}

/// Deleted where no ancestor can have the number, else a whiteout.
fn remove_inodes(parts: &mut Parts, gone: Vec<i64>) {
    let gone = parts.bind(gone);
    let old =
        probe("inode", "t.ctid AS at", "t.branch = f.branch AND t.ino = k.ino AND k.ino >= f.ino_floor");
    let keys = format!("unnest({gone}::bigint[]) AS k(ino)");
    parts.delete(
        "inode_gone",
        "inode",
        &format!("SELECT o.at FROM f CROSS JOIN {keys} CROSS JOIN LATERAL {old} o"),
    );
    parts.part(
        "inode_whiteout",
        &format!(
            "INSERT INTO tarbox.inode (family, branch, born, dead, ino, {INODE})
             SELECT $1, f.branch, f.layer, true, k.ino, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, '', ''
             FROM f, unnest({gone}::bigint[]) AS k(ino) WHERE k.ino < f.ino_floor
             ON CONFLICT (family, branch, ino) DO UPDATE SET born = EXCLUDED.born, dead = true"
        ),
    );
}

pub(super) fn entries(parts: &mut Parts, batch: &Batch) {
    let (rows, gone) = (&batch.entries, &batch.removed_entries);
    if rows.is_empty() && gone.is_empty() {
        return;
    }
    let parents = rows.iter().map(|row| int(row.parent)).chain(gone.iter().map(|(parent, ..)| int(*parent)));
    let parents = parts.bind(parents.collect::<Vec<_>>());
    let names = rows.iter().map(|row| &row.name[..]).chain(gone.iter().map(|(_, name, _)| &name[..]));
    let names = parts.bind(names.collect::<Vec<_>>());
    keep(
        parts,
        "dentry",
        "parent, name, ino, kind, cookie",
        &format!("unnest({parents}::bigint[], {names}::bytea[]) AS k(parent, name)"),
        "t.parent = k.parent AND t.name = k.name",
    );
    if !rows.is_empty() {
        upsert_entries(parts, rows);
    }
    if !gone.is_empty() {
        let parents = parts.bind(gone.iter().map(|(parent, ..)| int(*parent)).collect::<Vec<_>>());
        let names = parts.bind(gone.iter().map(|(_, name, _)| &name[..]).collect::<Vec<_>>());
        let cookies = parts.bind(gone.iter().map(|(.., cookie)| int(*cookie)).collect::<Vec<_>>());
        let old =
            "t.branch = f.branch AND t.parent = k.parent AND t.name = k.name AND k.parent >= f.ino_floor";
        let old = probe("dentry", "t.ctid AS at", old);
        let keys = format!("unnest({parents}::bigint[], {names}::bytea[]) AS k(parent, name)");
        let which = format!("SELECT o.at FROM f CROSS JOIN {keys} CROSS JOIN LATERAL {old} o");
        parts.delete("dentry_gone", "dentry", &which);
        parts.part(
            "dentry_whiteout",
            &format!(
                "INSERT INTO tarbox.dentry (family, branch, born, parent, name, ino, kind, cookie)
                 SELECT $1, f.branch, f.layer, k.parent, k.name, NULL, 0, k.cookie
                 FROM f, unnest({parents}::bigint[], {names}::bytea[], {cookies}::bigint[]) AS k(parent, name, cookie)
                 WHERE k.parent < f.ino_floor
                 ON CONFLICT (family, branch, parent, name) DO UPDATE SET born = EXCLUDED.born, ino = NULL"
            ),
        );
    }
}

fn upsert_entries(parts: &mut Parts, rows: &[EntryRow]) {
    let parents = parts.bind(column(rows, |r| int(r.parent)));
    let names = parts.bind(rows.iter().map(|r| &r.name[..]).collect::<Vec<_>>());
    let inos = parts.bind(column(rows, |r| int(r.ino)));
    let kinds = parts.bind(column(rows, |r| r.kind as i32));
    let cookies = parts.bind(column(rows, |r| int(r.cookie)));
    parts.part(
        "dentry_new",
        &format!(
            "INSERT INTO tarbox.dentry (family, branch, born, parent, name, ino, kind, cookie)
             SELECT $1, f.branch, f.layer, k.*
             FROM f, unnest({parents}::bigint[], {names}::bytea[], {inos}::bigint[], {kinds}::int[],
               {cookies}::bigint[]) k
             ON CONFLICT (family, branch, parent, name) DO UPDATE SET born = EXCLUDED.born, ino = EXCLUDED.ino,
               kind = EXCLUDED.kind, cookie = EXCLUDED.cookie"
        ),
    );
}

/// An inode that goes takes its extended attributes with it. Its number is never used again, so that what an ancestor
/// has under it needs no whiteout.
pub(super) fn xattrs(parts: &mut Parts, batch: &Batch) {
    let dead: HashSet<_> = batch.removed_inodes.iter().copied().collect();
    let alive = || batch.xattrs.iter().filter(|(ino, _)| !dead.contains(ino));
    let set: Vec<_> =
        alive().filter_map(|(ino, value)| value.as_ref().map(|value| (int(*ino), &value[..]))).collect();
    let emptied: Vec<_> = alive().filter(|(_, value)| value.is_none()).map(|(ino, _)| int(*ino)).collect();
    let dead: Vec<_> = dead.into_iter().map(int).collect();
    let keys: Vec<_> =
        set.iter().map(|(ino, _)| *ino).chain(emptied.iter().copied()).chain(dead.iter().copied()).collect();
    if keys.is_empty() {
        return;
    }
    let keys = parts.bind(keys);
    keep(parts, "xattr", "ino, value", &format!("unnest({keys}::bigint[]) AS k(ino)"), "t.ino = k.ino");
    let gone: Vec<_> = emptied.iter().copied().chain(dead).collect();
    if !gone.is_empty() {
        let gone = parts.bind(gone);
        let emptied = parts.bind(emptied.clone());
        let old = probe("xattr", "t.ctid AS at", "t.branch = f.branch AND t.ino = k.ino");
        let which = format!(
            "SELECT o.at FROM f CROSS JOIN unnest({gone}::bigint[]) AS k(ino) CROSS JOIN LATERAL {old} o
             WHERE k.ino >= f.ino_floor OR k.ino <> ALL ({emptied}::bigint[])"
        );
        parts.delete("xattr_gone", "xattr", &which);
    }
    let inos: Vec<_> = set.iter().map(|(ino, _)| *ino).chain(emptied.iter().copied()).collect();
    if inos.is_empty() {
        return;
    }
    let values: Vec<_> =
        set.iter().map(|(_, value)| Some(*value)).chain(emptied.iter().map(|_| None)).collect();
    let (inos, values) = (parts.bind(inos), parts.bind(values));
    parts.part(
        "xattr_new",
        &format!(
            "INSERT INTO tarbox.xattr (family, branch, born, ino, value)
             SELECT $1, f.branch, f.layer, k.ino, k.value
             FROM f, unnest({inos}::bigint[], {values}::bytea[]) AS k(ino, value)
             WHERE k.value IS NOT NULL OR k.ino < f.ino_floor
             ON CONFLICT (family, branch, ino) DO UPDATE SET born = EXCLUDED.born, value = EXCLUDED.value"
        ),
    );
}
