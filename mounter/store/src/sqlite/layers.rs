//! Layers: sealed, listed, restored, cloned, deleted.

use rusqlite::{Connection, OptionalExtension, Row, params};
use tarbox_types::{BranchId, Layer, TenantId};
use uuid::Uuid;

use super::{
    commit::{self, NewLayer},
    database,
    fault::Outcome,
    fork,
    rows::{self, TenantRow, int, number},
};
use crate::{
    error::{Result, StoreError},
    model::*,
};

const COLUMNS: &str =
    "SELECT branch, layer, name, sealed_at, used_bytes, used_inodes, tenant FROM layer WHERE";

fn decode(row: &Row<'_>) -> rusqlite::Result<LayerRow> {
    Ok(LayerRow {
        branch: row.get(0)?,
        layer: row.get(1)?,
        name: row.get(2)?,
        sealed_at: row.get(3)?,
        used_bytes: number(row, 4)?,
        used_inodes: number(row, 5)?,
        tenant: TenantId(rows::uuid(row, 6)?),
    })
}

/// The row of a layer that is kept.
pub(super) fn need(connection: &Connection, branch: BranchId, layer: Layer) -> Outcome<LayerRow> {
    connection
        .prepare_cached(&format!("{COLUMNS} branch = ?1 AND layer = ?2"))?
        .query_row(params![branch, layer], decode)
        .optional()?
        .ok_or_else(|| StoreError::NoLayer { branch, layer }.into())
}

/// The layer that a request sealed.
pub(super) fn of_request(connection: &Connection, id: TenantId, request: &str) -> Outcome<Option<LayerRow>> {
    same(connection, id, "request", request)
}

/// The layer of a name.
pub(super) fn of_name(connection: &Connection, id: TenantId, name: &str) -> Outcome<Option<LayerRow>> {
    same(connection, id, "name", name)
}

/// The tenant's layer with this value in a column that is unique.
fn same(connection: &Connection, id: TenantId, column: &str, value: &str) -> Outcome<Option<LayerRow>> {
    Ok(connection
        .prepare_cached(&format!("{COLUMNS} tenant = ?1 AND {column} = ?2"))?
        .query_row(params![id.0.as_bytes(), value], decode)
        .optional()?)
}

/// Layers sealed for the tenant, on whatever branch, newest first.
pub(super) fn of_tenant(connection: &Connection, id: TenantId) -> Outcome<Vec<LayerRow>> {
    let sql = format!("{COLUMNS} tenant = ?1 ORDER BY sealed_at DESC, branch DESC, layer DESC");
    let mut statement = connection.prepare_cached(&sql)?;
    Ok(statement.query_map([id.0.as_bytes()], decode)?.collect::<rusqlite::Result<_>>()?)
}

/// Layers of the head's line, newest first.
pub(super) fn of_line(connection: &Connection, id: TenantId) -> Outcome<Vec<LayerRow>> {
    let row = TenantRow::need(connection, id)?;
    let mut found = Vec::new();
    for (branch, layer) in line(connection, row.head_branch)? {
        let mut statement = connection
            .prepare_cached(&format!("{COLUMNS} branch = ?1 AND layer <= ?2 ORDER BY layer DESC"))?;
        for layer in statement.query_map(params![branch, layer], decode)? {
            found.push(layer?);
        }
    }
    Ok(found)
}

/// What a head has come from, nearest first: through where the branches began, whatever has been flattened since.
fn line(connection: &Connection, head: BranchId) -> Outcome<Vec<(BranchId, Layer)>> {
    let mut line = vec![(head, Layer::MAX)];
    let mut statement = connection.prepare_cached(
        "SELECT b.branch, coalesce(c.origin_layer, c.parent_layer) FROM branch c
         JOIN branch b ON b.branch = coalesce(c.origin, c.parent) WHERE c.branch = ?1",
    )?;
    while let Some((branch, _)) = line.last() {
        let next = statement.query_row([branch], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        match next {
            Some(next) => line.push(next),
            None => break,
        }
    }
    Ok(line)
}

/// Seals the head of a tenant that nobody holds. Whoever held it before cannot commit into the sealed layer.
pub(super) fn seal(
    connection: &Connection,
    id: TenantId,
    seal: &Seal,
    holder: &dyn Fn(&TenantRow) -> Result<Option<Holder>>,
) -> Outcome<LayerRow> {
    let row = TenantRow::need(connection, id)?;
    let tenant = id.0.as_bytes();
    if let Some(sealed) = of_request(connection, id, &seal.request)? {
        return Ok(sealed);
    }
    if row.state == TenantState::Deleted {
        return Err(StoreError::Deleted(id).into());
    }
    if let Some(holder) = holder(&row)? {
        return Err(StoreError::Held { tenant: id, holder }.into());
    }
    let is_taken = connection
        .prepare_cached("SELECT 1 FROM layer WHERE tenant = ?1 AND name = ?2")?
        .exists(params![tenant, seal.name])?;
    if is_taken {
        return Err(
            StoreError::Refused(format!("there is a checkpoint named `{}` already", seal.name)).into()
        );
    }
    if row.is_held {
        connection.execute(
            "UPDATE tenant SET epoch = epoch + 1, token = ?2, held = 0 WHERE id = ?1",
            params![tenant, Uuid::new_v4().as_bytes()],
        )?;
    }
    seal_head(connection, &row, &seal.name, &seal.request)?;
    need(connection, row.head_branch, row.layer)
}

fn seal_head(connection: &Connection, row: &TenantRow, name: &str, request: &str) -> Outcome<()> {
    commit::insert_layer(
        connection,
        &NewLayer {
            tenant: row.id.0.as_bytes(),
            branch: row.head_branch,
            layer: row.layer,
            name,
            request,
            used_bytes: row.used_bytes,
            used_inodes: row.used_inodes,
            seq: row.seq,
        },
    )
}

/// Whether anything was committed since the head's last seal, or since it began.
fn has_changed(connection: &Connection, row: &TenantRow) -> Outcome<bool> {
    let sealed: Option<u64> = connection
        .prepare_cached("SELECT seq FROM layer WHERE branch = ?1 ORDER BY layer DESC LIMIT 1")?
        .query_row([row.head_branch], |row| number(row, 0))
        .optional()?;
    let known = match sealed {
        Some(seq) => seq,
        None => connection
            .prepare_cached("SELECT fork_seq FROM branch WHERE branch = ?1")?
            .query_row([row.head_branch], |row| number(row, 0))?,
    };
    let (from, to): (i64, i64) = connection
        .prepare_cached("SELECT silent_from, silent_to FROM tenant WHERE id = ?1")?
        .query_row([row.id.0.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let seq = int(row.seq);
    Ok(if to == seq { from } else { seq } > int(known))
}

/// Puts the tenant's head on a new branch that begins at a sealed layer. It counts as a commit: what a holder before left in
/// a journal was done to another head.
pub(super) fn restore(
    connection: &Connection,
    fence: &Fence,
    branch: BranchId,
    layer: Layer,
) -> Outcome<View> {
    let row = TenantRow::need(connection, fence.tenant)?;
    if row.fence() != *fence || !row.is_held || row.state == TenantState::Deleted {
        return Err(commit::refusal(connection, fence, None)?.into());
    }
    let sealed = need(connection, branch, layer)?;
    let owner: Vec<u8> = connection
        .prepare_cached("SELECT tenant FROM layer WHERE branch = ?1 AND layer = ?2")?
        .query_row(params![branch, layer], |row| row.get(0))?;
    if owner != row.id.0.as_bytes()
        && !line(connection, row.head_branch)?.iter().any(|(at, upto)| *at == branch && *upto >= layer)
    {
        return Err(
            StoreError::Refused(format!("layer {layer} of branch {branch} is another tenant's")).into()
        );
    }
    if has_changed(connection, &row)? {
        let name = format!("before-restore-{}.{}", row.head_branch, row.layer);
        seal_head(connection, &row, &name, &name)?;
    }
    let head = fork::fork(connection, row.id, branch, layer, row.next_ino, row.seq)?;
    connection.execute(
        "UPDATE tenant SET head_branch = ?2, cur_layer = 1, last_view = 0, used_bytes = ?3, used_inodes = ?4,
         commit_epoch = epoch WHERE id = ?1",
        params![row.id.0.as_bytes(), head, int(sealed.used_bytes), int(sealed.used_inodes)],
    )?;
    rows::view(connection, head, Layer::MAX)
}

/// A new tenant whose head begins at a sealed layer.
pub(super) fn clone(connection: &Connection, branch: BranchId, layer: Layer, new: &NewTenant) -> Outcome<()> {
    let sealed = need(connection, branch, layer)?;
    // The source's own counter, or one beyond it: numbers of the source are never used again by the clone.
    let next_ino: u64 = connection.query_row("SELECT max(next_ino) FROM tenant", [], |row| number(row, 0))?;
    // Its position goes on from the layer's: patches lie on what it has from there in the order of their positions.
    let seq: u64 = connection
        .prepare_cached("SELECT seq FROM layer WHERE branch = ?1 AND layer = ?2")?
        .query_row(params![branch, layer], |row| number(row, 0))?;
    let head = fork::fork(connection, new.id, branch, layer, next_ino, seq)?;
    database::insert_tenant(connection, new, head, (next_ino, seq), (sealed.used_bytes, sealed.used_inodes))
}

/// Removes a checkpoint; what only it needed is left as work for the collector.
pub(super) fn delete(connection: &Connection, branch: BranchId, layer: Layer) -> Outcome<()> {
    need(connection, branch, layer)?;
    let has_child = connection
        .prepare_cached("SELECT 1 FROM branch WHERE parent = ?1 AND parent_layer = ?2")?
        .exists(params![branch, layer])?;
    if has_child {
        return Err(StoreError::LayerInUse { branch, layer }.into());
    }
    connection.execute("DELETE FROM layer WHERE branch = ?1 AND layer = ?2", params![branch, layer])?;
    leave_prune_work(connection, branch, layer)
}

/// A branch does not begin at this layer any more: if no checkpoint and no other child is there, it is no view any more.
pub(super) fn forget_fork(connection: &Connection, branch: BranchId, layer: Layer) -> Outcome<()> {
    let is_kept = connection
        .prepare_cached(
            "SELECT 1 FROM layer WHERE branch = ?1 AND layer = ?2
             UNION ALL SELECT 1 FROM branch WHERE parent = ?1 AND parent_layer = ?2",
        )?
        .exists(params![branch, layer])?;
    if is_kept { Ok(()) } else { leave_prune_work(connection, branch, layer) }
}

/// After the view at `layer` is gone: what has to be pruned between its neighbours, and the head's new `last_view`.
pub(super) fn leave_prune_work(connection: &Connection, branch: BranchId, layer: Layer) -> Outcome<()> {
    let neighbour = |sql: &str| -> Outcome<Option<Layer>> {
        Ok(connection.prepare_cached(sql)?.query_row(params![branch, layer], |row| row.get(0))?)
    };
    let above = neighbour(
        "SELECT max(l) FROM (SELECT max(layer) l FROM layer WHERE branch = ?1 AND layer < ?2
         UNION ALL SELECT max(parent_layer) FROM branch WHERE parent = ?1 AND parent_layer < ?2)",
    )?
    .unwrap_or(0);
    let below = neighbour(
        "SELECT min(l) FROM (SELECT min(layer) l FROM layer WHERE branch = ?1 AND layer > ?2
         UNION ALL SELECT min(parent_layer) FROM branch WHERE parent = ?1 AND parent_layer > ?2)",
    )?;
    let head: Option<(Layer, Layer)> = connection
        .prepare_cached(
            "SELECT cur_layer, last_view FROM tenant WHERE head_branch = ?1 AND (state = 0 OR held = 1)",
        )?
        .query_row([branch], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let upto = match (below, head) {
        (Some(next), _) => next,
        (None, Some((current, _))) => current,
        (None, None) => Layer::MAX,
    };
    if head.is_some_and(|(_, last_view)| last_view == layer) {
        connection.execute(
            "UPDATE tenant SET last_view = ?2 WHERE head_branch = ?1 AND (state = 0 OR held = 1)",
            params![branch, above],
        )?;
    }
    connection.execute(
        "INSERT INTO prune(branch, above, below, upto) VALUES(?1, ?2, ?3, ?4)",
        params![branch, above, layer, upto],
    )?;
    Ok(())
}
