//! What differs between two views, and which names inodes have.

use sqlx::Row;
use tarbox_types::Ino;

use super::{
    TenantRows,
    chain::{self, LINKS, masked},
    rows::{self, ENTRY, unreadable},
    statement::{Statement, column, count, int},
};
use crate::{error::Result, model::*};

/// Rows of the windows: current ones born in one, and history that began or ended in one.
fn in_windows(table: &str, columns: &str) -> String {
    format!(
        "SELECT DISTINCT {columns} FROM unnest($2::bigint[], $3::bigint[], $4::bigint[]) AS w(branch, after, upto)
         CROSS JOIN LATERAL (
           SELECT {columns} FROM tarbox.{table} t
           WHERE t.family = $1 AND t.branch = w.branch AND t.born > w.after AND t.born <= w.upto
           UNION ALL SELECT {columns} FROM tarbox.{table}_h t WHERE t.family = $1 AND t.branch = w.branch
             AND (t.born > w.after AND t.born <= w.upto OR t.died > w.after AND t.died <= w.upto)) t"
    )
}

impl TenantRows {
    pub(super) async fn changes_between(&self, one: &View, other: &View) -> Result<Changes> {
        let windows = one.windows(other);
        let statement = |table: &str, columns: &str| {
            Statement::new(in_windows(table, columns))
                .with(self.family)
                .with(column(&windows, |window| window.branch))
                .with(column(&windows, |window| window.after))
                .with(column(&windows, |window| window.upto))
        };
        let inodes = self.pool.read("compare views", || statement("inode", "t.ino")).await?;
        let entries = self.pool.read("compare views", || statement("dentry", "t.parent, t.name")).await?;
        let read = || -> rows::Sql<Changes> {
            Ok(Changes {
                inodes: inodes.iter().map(|row| row.try_get(0).map(count)).collect::<rows::Sql<_>>()?,
                entries: entries
                    .iter()
                    .map(|row| Ok((count(row.try_get(0)?), rows::bytes(row, 1)?)))
                    .collect::<rows::Sql<_>>()?,
            })
        };
        read().map_err(unreadable)
    }

    pub(super) async fn names_of_inodes(&self, view: &View, inos: &[Ino]) -> Result<Vec<EntryRow>> {
        let columns = ENTRY.replace("e.", "c.");
        let masked = masked("dentry", "t.parent = c.parent AND t.name = c.name");
        // In a hashed subplan: as a join it would be repeated for each row.
        let wanted = "(c.ino IN (SELECT unnest($5::bigint[]))) IS TRUE";
        let part = |table: &str, valid: &str| {
            format!(
                "SELECT {columns} FROM tarbox.{table} c WHERE {valid} AND c.family = $1 AND c.branch = a.branch
                   AND c.born <= a.layer AND {wanted} AND (a.ord = 1 OR NOT {masked})"
            )
        };
        let current = part("dentry", "true");
        let history = part("dentry_h", "a.layer < 9223372036854775807 AND c.died > a.layer");
        let sql = format!(
            "SELECT {ENTRY} FROM {LINKS} CROSS JOIN LATERAL ({current} UNION ALL {history}) e WHERE e.parent < a.lim"
        );
        let found = self
            .pool
            .read("look for names", || {
                let mut statement = chain::statement(self.family, view).with(column(inos, |ino| int(*ino)));
                statement.push(&sql);
                statement
            })
            .await?;
        found.iter().map(|row| rows::entry(row, 0).map_err(unreadable)).collect()
    }
}
