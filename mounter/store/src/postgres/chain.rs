//! Rows as a view shows them: text for statements that look through a chain of branches.
//!
//! `$1` is the family everywhere. A statement over a chain takes the links as arrays, in `$2`, `$3`, `$4`:
//! branches, layers, and the limit below which a number can have come from that branch at all.

use super::statement::{Statement, int};
use crate::model::View;

/// The links, nearest first; the planner knows that they come in the order of `ord`, so that a `LIMIT 1`
/// after `ORDER BY ord` asks no branch behind the first that answers.
pub(super) const LINKS: &str =
    "unnest($2::bigint[], $3::bigint[], $4::bigint[]) WITH ORDINALITY AS a(branch, layer, lim, ord)";

/// The rows `t` of a key, for a `LATERAL`. `OFFSET 0` keeps the planner from turning the join around: as long as it has
/// no statistics, it takes a scan of the whole family for cheaper than a few looks into an index.
pub(super) fn probe(table: &str, columns: &str, key: &str) -> String {
    format!("(SELECT {columns} FROM tarbox.{table} t WHERE t.family = $1 AND {key} OFFSET 0)")
}

/// A head without ancestors: its current rows are all there is to see.
pub(super) fn is_plain_head(view: &View) -> bool {
    matches!(view.chain[..], [link] if link.layer == i64::MAX)
}

/// Begins a statement with the family and the links of a view.
pub(super) fn statement(family: i64, view: &View) -> Statement {
    let branches: Vec<i64> = view.chain.iter().map(|link| link.branch).collect();
    let layers: Vec<i64> = view.chain.iter().map(|link| link.layer).collect();
    Statement::default().with(family).with(branches).with(layers).with(limits(view))
}

/// For each link: numbers at or beyond its limit were handed out after a nearer link forked.
fn limits(view: &View) -> Vec<i64> {
    let mut limit = i64::MAX;
    let mut limits = Vec::with_capacity(view.chain.len());
    for link in &view.chain {
        limits.push(limit);
        limit = limit.min(int(link.ino_floor));
    }
    limits
}

/// The version of one row that link `a` shows, whiteouts included: current, else from the history.
/// `key` fixes the rest of the primary key of the row `t`.
pub(super) fn version(table: &str, columns: &str, key: &str, link: &str) -> String {
    format!(
        "SELECT {columns} FROM tarbox.{table} t
         WHERE t.family = $1 AND t.branch = {link}.branch AND {key} AND t.born <= {link}.layer
         UNION ALL
         (SELECT {columns} FROM tarbox.{table}_h t
          WHERE {link}.layer < 9223372036854775807 AND t.family = $1 AND t.branch = {link}.branch AND {key}
            AND t.died > {link}.layer AND t.born <= {link}.layer
          ORDER BY t.died LIMIT 1)"
    )
}

/// The row that a view shows, whiteouts included: that of the nearest link that has one.
/// `columns` are plain columns of `t`; `number` is the part of the key that a link's limit holds against.
/// The last column is the ordinal of the link.
pub(super) fn nearest(table: &str, columns: &str, key: &str, number: &str) -> String {
    let version = version(table, columns, key, "a");
    format!(
        "SELECT {columns}, a.ord FROM {LINKS} CROSS JOIN LATERAL ({version} LIMIT 1) t
         WHERE {number} < a.lim ORDER BY a.ord LIMIT 1"
    )
}

/// Whether a link nearer than `a` shows a version (a whiteout, too) of the row with this key.
pub(super) fn masked(table: &str, key: &str) -> String {
    let version = version(table, "1", key, "n");
    let links = LINKS.replace("AS a(", "AS n(");
    format!("EXISTS (SELECT FROM {links} CROSS JOIN LATERAL ({version} LIMIT 1) v WHERE n.ord < a.ord)")
}
