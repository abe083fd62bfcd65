//! Inodes, names and extended attributes as a view shows them.

use bytes::Bytes;
use sqlx::{Row, postgres::PgRow};
use tarbox_types::{Cookie, Ino};

use super::{
    TenantRows,
    chain::{self, LINKS, is_plain_head, masked, nearest, probe},
    rows::{self, ENTRY, INODE, unreadable},
    statement::{Statement, int},
};
use crate::{
    error::{Result, StoreError},
    model::*,
};

impl TenantRows {
    pub(super) async fn read_inode(&self, view: &View, ino: Ino) -> Result<Option<InodeRow>> {
        let found = if is_plain_head(view) {
            self.pool
                .read("load an inode", || {
                    let sql = format!(
                        "SELECT {INODE}, i.dead, 1::bigint FROM tarbox.inode i WHERE family = $1 AND branch = $2 AND ino = $3"
                    );
                    Statement::new(sql).with(self.family).with(view.chain[0].branch).with(int(ino))
                })
                .await?
        } else {
            self.pool
                .read("load an inode", || {
                    let columns = format!("{INODE}, i.dead").replace("i.", "t.");
                    let sql = nearest("inode", &columns, "t.ino = $5", "$5");
                    let mut statement = chain::statement(self.family, view).with(int(ino));
                    statement.push(&sql);
                    statement
                })
                .await?
        };
        found.first().map_or(Ok(None), |row| live_inode(row, 0))
    }

    pub(super) async fn read_entry(
        &self,
        view: &View,
        parent: Ino,
        name: &[u8],
    ) -> Result<Option<(EntryRow, InodeRow)>> {
        let found = if is_plain_head(view) {
            self.pool
                .read("look up a name", || {
                    let inode = probe("inode", "*", "t.branch = e.branch AND t.ino = e.ino");
                    let sql = format!(
                        "SELECT {ENTRY}, {INODE}, i.dead, 1::bigint FROM tarbox.dentry e LEFT JOIN LATERAL {inode} i ON true
                         WHERE e.family = $1 AND e.branch = $2 AND e.parent = $3 AND e.name = $4"
                    );
                    Statement::new(sql).with(self.family).with(view.chain[0].branch).with(int(parent)).with(name)
                })
                .await?
        } else {
            self.pool
                .read("look up a name", || {
                    let columns = ENTRY.replace("e.", "t.");
                    let entry = nearest("dentry", &columns, "t.parent = $5 AND t.name = $6", "$5");
                    let inode = inode_of("e.ino");
                    let mut statement = chain::statement(self.family, view).with(int(parent)).with(name);
                    statement.push(&format!(
                        "SELECT {ENTRY}, {INODE}, i.dead, i.ord FROM ({entry}) e LEFT JOIN LATERAL ({inode}) i ON true"
                    ));
                    statement
                })
                .await?
        };
        match found.first() {
            Some(row) if !is_whiteout(row)? => entry_with_inode(row).map(Some),
            _ => Ok(None),
        }
    }

    pub(super) async fn list_entries(
        &self,
        view: &View,
        parent: Ino,
        after: Cookie,
        limit: usize,
    ) -> Result<Vec<(EntryRow, InodeRow)>> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let found = if is_plain_head(view) {
            self.pool
                .read("list a directory", || {
                    let inode = probe("inode", "*", "t.branch = e.branch AND t.ino = e.ino");
                    let sql = format!(
                        "SELECT {ENTRY}, {INODE}, i.dead, 1::bigint FROM
                           (SELECT * FROM tarbox.dentry WHERE family = $1 AND branch = $2 AND parent = $3
                              AND cookie > $4 AND ino IS NOT NULL ORDER BY cookie LIMIT $5) e
                         LEFT JOIN LATERAL {inode} i ON true
                         ORDER BY e.cookie"
                    );
                    Statement::new(sql)
                        .with(self.family)
                        .with(view.chain[0].branch)
                        .with(int(parent))
                        .with(int(after))
                        .with(limit)
                })
                .await?
        } else {
            self.pool
                .read("list a directory", || {
                    let mut statement =
                        chain::statement(self.family, view).with(int(parent)).with(int(after)).with(limit);
                    statement.push(&list_sql());
                    statement
                })
                .await?
        };
        found.iter().map(entry_with_inode).collect()
    }

    pub(super) async fn read_xattrs(&self, view: &View, ino: Ino) -> Result<Option<Bytes>> {
        let found = self
            .pool
            .read("load extended attributes", || {
                let mut statement = chain::statement(self.family, view).with(int(ino));
                statement.push(&nearest("xattr", "t.value", "t.ino = $5", "$5"));
                statement
            })
            .await?;
        let Some(row) = found.first() else { return Ok(None) };
        let value: Option<&[u8]> = row.try_get(0).map_err(unreadable)?;
        Ok(value.map(Bytes::copy_from_slice))
    }

    pub(super) async fn list_orphans(&self, view: &View) -> Result<Vec<InodeRow>> {
        let found = self
            .pool
            .read("list orphans", || {
                let columns = INODE.replace("i.", "t.");
                let masked = masked("inode", "t.ino = i.ino");
                let mut statement = chain::statement(self.family, view);
                statement.push(&format!(
                    "SELECT {INODE}, i.dead, a.ord FROM {LINKS} CROSS JOIN LATERAL (
                       SELECT {columns}, t.dead FROM tarbox.inode t
                       WHERE t.family = $1 AND t.branch = a.branch AND t.nlink = 0 AND NOT t.dead AND t.born <= a.layer
                       UNION ALL
                       SELECT {columns}, t.dead FROM tarbox.inode_h t
                       WHERE a.layer < 9223372036854775807 AND t.family = $1 AND t.branch = a.branch
                         AND t.nlink = 0 AND NOT t.dead AND t.born <= a.layer AND t.died > a.layer
                     ) i WHERE i.ino < a.lim AND NOT {masked} ORDER BY i.ino"
                ));
                statement
            })
            .await?;
        found.iter().filter_map(|row| live_inode(row, 0).transpose()).collect()
    }
}

/// The inode of a number that another row names.
fn inode_of(number: &str) -> String {
    let columns = format!("{INODE}, i.dead").replace("i.", "t.");
    nearest("inode", &columns, &format!("t.ino = {number}"), number)
}

/// A page of a directory: from each link the names beyond the cookie, those left out that a nearer link has a word on.
fn list_sql() -> String {
    let columns = ENTRY.replace("e.", "t.");
    let masked = masked("dentry", "t.parent = c.parent AND t.name = c.name");
    let page = |table: &str, valid: &str| {
        format!(
            "(SELECT {columns} FROM tarbox.{table} c
              WHERE {valid} AND c.family = $1 AND c.branch = a.branch AND c.parent = $5 AND c.cookie > $6
                AND c.ino IS NOT NULL AND c.born <= a.layer AND (a.ord = 1 OR NOT {masked})
              ORDER BY c.cookie LIMIT $7)",
            columns = columns.replace("t.", "c.")
        )
    };
    let current = page("dentry", "true");
    let history = page("dentry_h", "a.layer < 9223372036854775807 AND c.died > a.layer");
    let inode = inode_of("e.ino");
    format!(
        "SELECT {ENTRY}, {INODE}, i.dead, i.ord FROM
           (SELECT {columns} FROM {LINKS} CROSS JOIN LATERAL ({current} UNION ALL {history}) t
            WHERE $5 < a.lim ORDER BY t.cookie LIMIT $7) e
         LEFT JOIN LATERAL ({inode}) i ON true ORDER BY e.cookie"
    )
}

/// Reads [`INODE`], `dead` and the ordinal of the link from column `at` on.
pub(super) fn live_inode(row: &PgRow, at: usize) -> Result<Option<InodeRow>> {
    if row.try_get::<bool, _>(at + 19).map_err(unreadable)? {
        return Ok(None);
    }
    let ord: i64 = row.try_get(at + 20).map_err(unreadable)?;
    rows::inode(row, at, ord > 1).map(Some)
}

/// Of a name: said here and not in the statement, where it would invite the index of cookies.
fn is_whiteout(row: &PgRow) -> Result<bool> {
    Ok(row.try_get::<Option<i64>, _>(2).map_err(unreadable)?.is_none())
}

fn entry_with_inode(row: &PgRow) -> Result<(EntryRow, InodeRow)> {
    let entry = rows::entry(row, 0).map_err(unreadable)?;
    let inode = match row.try_get::<Option<i64>, _>(5).map_err(unreadable)? {
        Some(_) => live_inode(row, 5)?,
        None => None,
    };
    match inode {
        Some(inode) => Ok((entry, inode)),
        None => Err(StoreError::Damaged {
            what: format!("name `{}` in directory {}", entry.name.escape_ascii(), entry.parent),
            reason: format!("inode {}, which it names, does not exist", entry.ino),
        }),
    }
}
