//! The [`Database`] of a directory: tenants, sessions, leases.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use nix::fcntl::{Flock, FlockArg};
use parking_lot::Mutex;
use rusqlite::{Connection, params};
use tarbox_types::{FIRST_INO, FamilyId, ROOT_INO, SessionId, TenantId};
use uuid::Uuid;

use super::{
    collect,
    connect::{self, Kind},
    control::{Control, Entry, Stage},
    family::{self, Family, blocking},
    fault::{Outcome, Place},
    rows::{self, TenantRow, int},
    schema,
    sessions::Sessions,
    store::SqliteTenant,
};
use crate::{
    api::{Database, SchemaVersion, TenantStore},
    codec::{BLOCK_MAX, BLOCK_MIN},
    error::{Result, StoreError},
    model::*,
};

/// Numbers that a take-over skips: those that died unsynced with a node are not used again.
const TAKE_OVER_SKIPS: u64 = 1 << 20;
/// Liveness, not time, ends a lease here.
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 86_400);
/// A question costs microseconds here.
const AGAIN: Duration = Duration::from_millis(250);
/// A connection that was not used for so long is closed by the next heartbeat.
const IDLE: Duration = Duration::from_secs(20);

/// The database of a directory.
pub(super) struct SqliteDatabase {
    pub(super) inner: Arc<Inner>,
}

/// What tenants' stores share.
pub(super) struct Inner {
    url: Arc<str>,
    dir: PathBuf,
    pub(super) control: Control,
    sessions: Sessions,
    families: Mutex<HashMap<FamilyId, Arc<Family>>>,
    /// Locked by whoever does the background work.
    lead: Mutex<Option<Flock<File>>>,
}

impl SqliteDatabase {
    pub(super) fn open(url: &str, dir: PathBuf) -> Result<Self> {
        let place = Place { url, dir: &dir };
        let sessions = dir.join("sessions");
        connect::make_dir(&sessions).map_err(|error| place.io(&dir, error))?;
        let control = Control::open(url, &dir)?;
        connect::sync_dir(&dir).map_err(|error| place.io(&dir, error))?;
        let found = control.version()?;
        if found.min_version > schema::VERSION {
            return Err(StoreError::Schema {
                url: url.to_owned(),
                min_version: found.min_version,
                known: schema::VERSION,
            });
        }
        let inner = Inner {
            url: url.into(),
            control,
            sessions: Sessions::new(sessions),
            families: Mutex::default(),
            lead: Mutex::default(),
            dir,
        };
        Ok(Self { inner: Arc::new(inner) })
    }
}

impl Inner {
    fn place(&self) -> Place<'_> {
        Place { url: &self.url, dir: &self.dir }
    }

    fn family_dir(&self, family: FamilyId) -> PathBuf {
        self.dir.join(format!("family-{family}"))
    }

    pub(super) fn family(&self, id: FamilyId) -> Arc<Family> {
        let mut families = self.families.lock();
        let family = families
            .entry(id)
            .or_insert_with(|| Arc::new(Family::new(id, self.url.clone(), self.family_dir(id))));
        family.clone()
    }

    /// Who holds the lease, if anybody that lives.
    pub(super) fn holder(&self, row: &TenantRow) -> Result<Option<Holder>> {
        if !row.is_held || !self.sessions.is_alive(row.session) {
            return Ok(None);
        }
        let known = self.control.holder(row.session)?;
        Ok(Some(known.unwrap_or(Holder { session: row.session, node: "unknown".into(), pid: 0 })))
    }

    pub(super) fn is_alive(&self, session: SessionId) -> bool {
        self.sessions.is_alive(session)
    }

    pub(super) fn tenant_of(&self, row: TenantRow, family: FamilyId) -> Result<Tenant> {
        let holder = self.holder(&row)?;
        Ok(row.into_tenant(family, holder))
    }

    /// Only one at a time makes or removes tenants and their directories.
    fn lock(&self) -> Result<Flock<File>> {
        let path = self.dir.join("create.lock");
        self.lock_file(&path, FlockArg::LockExclusive).map_err(|error| self.place().io(&path, error))
    }

    fn lock_file(&self, path: &Path, how: FlockArg) -> std::io::Result<Flock<File>> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        Flock::lock(file, how).map_err(|(_, errno)| errno.into())
    }

    /// Takes the lead of the background work; whether it is ours now.
    pub(super) fn take_lead(&self) -> Result<bool> {
        let mut lead = self.lead.lock();
        if lead.is_some() {
            return Ok(true);
        }
        let path = self.dir.join("leader.lock");
        match self.lock_file(&path, FlockArg::LockExclusiveNonblock) {
            Ok(taken) => {
                *lead = Some(taken);
                Ok(true)
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(self.place().io(&path, error)),
        }
    }

    pub(super) fn give_lead_back(&self) {
        *self.lead.lock() = None;
    }

    /// Removes what crashes left: tenants that were being made or removed.
    fn sweep(&self) -> Result<()> {
        let all = self.control.all()?;
        for left in all.iter().filter(|entry| matches!(entry.stage, Stage::Making | Stage::Removing)) {
            if all.iter().any(|other| other.family == left.family && other.id != left.id) {
                self.family(left.family)
                    .write("removing a tenant", |connection| collect::forget_tenant(connection, left.id))?;
            } else {
                self.remove_family(left.family)?;
            }
            self.control.remove(left.id)?;
        }
        Ok(())
    }

    fn remove_family(&self, family: FamilyId) -> Result<()> {
        self.families.lock().remove(&family);
        let dir = self.family_dir(family);
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(self.place().io(&dir, error)),
            _ => Ok(()),
        }
    }

    /// Makes the name free where a deletion was cut short.
    fn free_name(&self, name: &str) -> Result<()> {
        let Some(entry) = self.control.find_name(name)? else { return Ok(()) };
        let row = self
            .family(entry.family)
            .read("looking for a tenant", |connection| TenantRow::find(connection, entry.id))?;
        match row {
            Some(row) if row.state == TenantState::Live => Err(StoreError::NameTaken(name.to_owned())),
            _ => self.control.set_stage(entry.id, Stage::Deleted),
        }
    }

    /// Registers a tenant in the control database around `make`, which makes its rows in the family.
    /// `family` is where to make it; `None` = in a new one.
    pub(super) fn make_tenant(
        &self,
        new: &NewTenant,
        family: Option<FamilyId>,
        make: impl FnOnce(&Family) -> Result<()>,
    ) -> Result<Tenant> {
        validate(new)?;
        let _lock = self.lock()?;
        if let Some(entry) = self.control.find(new.id)?
            && matches!(entry.stage, Stage::Live | Stage::Deleted)
        {
            return self.present(entry)?.ok_or_else(|| StoreError::NoTenant(new.id.to_string()));
        }
        self.sweep()?;
        self.free_name(&new.name)?;
        let id = match family {
            Some(family) => {
                self.control.insert(new.id, &new.name, family)?;
                family
            }
            None => self.make_family(new)?,
        };
        let family = self.family(id);
        make(&family)?;
        self.control.set_stage(new.id, Stage::Live)?;
        let entry = Entry { id: new.id, family: id, stage: Stage::Live };
        self.present(entry)?.ok_or_else(|| StoreError::NoTenant(new.id.to_string()))
    }

    /// A family's directory with empty databases, durable.
    fn make_family(&self, new: &NewTenant) -> Result<FamilyId> {
        let (id, dir) = loop {
            let id = self.control.next_family()?;
            let dir = self.family_dir(id);
            // Of a control database that was lost: its data is not ours to remove.
            if !dir.exists() {
                break (id, dir);
            }
        };
        self.control.insert(new.id, &new.name, id)?;
        connect::make_dir(&dir).map_err(|error| self.place().io(&dir, error))?;
        for (path, kind) in [(family::meta_path(&dir), Kind::Meta), (family::blocks_path(&dir), Kind::Blocks)]
        {
            self.place().settle("making a family", connect::create(&path, kind).map(drop))?;
        }
        for dir in [&dir, &self.dir] {
            connect::sync_dir(dir).map_err(|error| self.place().io(dir, error))?;
        }
        Ok(id)
    }

    pub(super) fn present(&self, entry: Entry) -> Result<Option<Tenant>> {
        if matches!(entry.stage, Stage::Making | Stage::Removing) {
            return Ok(None);
        }
        let family = self.family(entry.family);
        let row = family.read("looking for a tenant", |connection| TenantRow::find(connection, entry.id))?;
        row.map(|row| self.tenant_of(row, entry.family)).transpose()
    }

    fn need(&self, id: TenantId) -> Result<(Entry, Arc<Family>)> {
        match self.control.find(id)? {
            Some(entry) if matches!(entry.stage, Stage::Live | Stage::Deleted) => {
                Ok((entry, self.family(entry.family)))
            }
            _ => Err(StoreError::NoTenant(id.to_string())),
        }
    }

    fn delete(&self, id: TenantId, in_use: InUse) -> Result<()> {
        let _lock = self.lock()?;
        let (entry, family) = self.need(id)?;
        if entry.stage == Stage::Deleted {
            return Ok(());
        }
        family.write("deleting a tenant", |connection| {
            let row = TenantRow::need(connection, id)?;
            match (self.holder(&row)?, in_use) {
                (Some(holder), InUse::Refuse) => Err(StoreError::Held { tenant: id, holder }.into()),
                (Some(_), InUse::GoOn) => {
                    connection.execute("UPDATE tenant SET state = 1 WHERE id = ?1", [id.0.as_bytes()])?;
                    Ok(())
                }
                (None, InUse::Refuse | InUse::GoOn) => fence_off(connection, id),
            }
        })?;
        self.control.set_stage(id, Stage::Deleted)
    }

    /// Whether a deleted tenant's data may go; who held it and is dead can commit no more.
    fn check_reapable(&self, id: TenantId, family: &Family) -> Result<()> {
        if self.control.has_snapshots(id)? {
            return Err(StoreError::Refused(format!(
                "snapshots of tenant {id} are kept, which need its rows"
            )));
        }
        family.write("reaping a tenant", |connection| match TenantRow::find(connection, id)? {
            Some(row) if row.is_held => match self.holder(&row)? {
                Some(holder) => Err(StoreError::Held { tenant: id, holder }.into()),
                None => fence_off(connection, id),
            },
            Some(_) | None => Ok(()),
        })
    }

    fn reap(&self, id: TenantId) -> Result<bool> {
        let _lock = self.lock()?;
        let Some(entry) = self.control.find(id)? else { return Ok(true) };
        if entry.stage == Stage::Live {
            return Err(StoreError::Refused(format!("tenant {id} is not deleted")));
        }
        if entry.stage == Stage::Deleted {
            self.check_reapable(id, &self.family(entry.family))?;
        }
        let is_alone =
            !self.control.all()?.iter().any(|other| other.family == entry.family && other.id != id);
        if is_alone {
            self.control.set_stage(id, Stage::Removing)?;
            self.remove_family(entry.family)?;
        } else if !collect::reap(&self.family(entry.family), id)? {
            return Ok(false);
        }
        self.control.remove(id)?;
        Ok(true)
    }

    fn acquire(&self, id: TenantId, session: SessionId) -> Result<Lease> {
        let (_, family) = self.need(id)?;
        if !self.sessions.is_alive(session) {
            return Err(StoreError::Refused(format!("session {} is not open", session.0)));
        }
        let token = Uuid::new_v4();
        let taken = family.write("taking a lease", |connection| {
            let old = TenantRow::need(connection, id)?;
            if old.state == TenantState::Deleted {
                return Err(StoreError::Deleted(id).into());
            }
            if old.session != session
                && let Some(holder) = self.holder(&old)?
            {
                connection.execute("UPDATE tenant SET wanted = 1 WHERE id = ?1", [id.0.as_bytes()])?;
                return Ok(Err(holder));
            }
            // Blocks uploaded under the same session may still be waiting for their commit.
            connection.execute(
                "UPDATE tenant SET epoch = epoch + 1, token = ?2, held = 1, wanted = 0, next_ino = next_ino + ?4,
                 uploads_from = iif(session = ?3, uploads_from, (SELECT next_block FROM family)), session = ?3
                 WHERE id = ?1",
                params![id.0.as_bytes(), token.as_bytes(), session.0.as_bytes(), int(TAKE_OVER_SKIPS)],
            )?;
            let row = TenantRow::need(connection, id)?;
            let head = rows::view(connection, row.head_branch, i64::MAX)?;
            let committed_epoch =
                connection.query_row("SELECT commit_epoch FROM tenant WHERE id = ?1", [id.0.as_bytes()], |row| {
                    row.get(0)
                })?;
            Ok(Ok((old.fence(), committed_epoch, row, head)))
        })?;
        let (previous, committed_epoch, row, head) =
            taken.map_err(|holder| StoreError::Held { tenant: id, holder })?;
        self.control.note_holder(id, session)?;
        let (fence, next_ino) = (row.fence(), row.next_ino);
        Ok(Lease {
            fence,
            previous,
            committed_epoch,
            next_ino,
            head,
            tenant: self.tenant_of(row, family.id)?,
        })
    }

    /// Closes the families' connections that were not used for `age`.
    fn close_idle(&self, age: Duration) {
        let families: Vec<_> = self.families.lock().values().cloned().collect();
        for family in families {
            family.close_idle(age);
        }
    }
}

/// Marks a tenant deleted that nobody holds: whoever did commits no more.
fn fence_off(connection: &Connection, id: TenantId) -> Outcome<()> {
    connection.execute(
        "UPDATE tenant SET state = 1, held = 0, epoch = epoch + 1, token = ?2 WHERE id = ?1",
        params![id.0.as_bytes(), Uuid::new_v4().as_bytes()],
    )?;
    Ok(())
}

/// Checks what a new tenant is to be made from.
pub(super) fn validate(new: &NewTenant) -> Result<()> {
    let is_good = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_');
    if !(1..=63).contains(&new.name.len()) || !new.name.bytes().all(is_good) {
        return Err(StoreError::Invalid {
            key: "tenant name",
            value: new.name.clone(),
            allowed: "1 to 63 of a-z, 0-9, `-`, `.`, `_`".into(),
        });
    }
    if !new.block_size.is_power_of_two() || !(BLOCK_MIN..=BLOCK_MAX).contains(&new.block_size) {
        return Err(StoreError::Invalid {
            key: "block size",
            value: new.block_size.to_string(),
            allowed: "a power of two from 4Ki to 4Mi".into(),
        });
    }
    if new.limits.file_bytes > 1 << 53 {
        return Err(StoreError::Invalid {
            key: "file size limit",
            value: new.limits.file_bytes.to_string(),
            allowed: "at most 8Pi (2^53 bytes); 0 for no limit".into(),
        });
    }
    Ok(())
}

/// The row of a tenant whose head is this branch.
pub(super) fn insert_tenant(
    connection: &Connection,
    new: &NewTenant,
    branch: i64,
    (next_ino, seq): (u64, u64),
    used: (u64, u64),
) -> Outcome<()> {
    connection.execute(
        "INSERT INTO tenant(id, name, state, quota_bytes, quota_inodes, max_file, block_size, compression,
         head_branch, cur_layer, last_view, used_bytes, used_inodes, next_ino, seq, epoch, token, session, held,
         wanted, uploads_from)
         SELECT ?1, ?2, 0, ?3, ?4, ?5, ?6, ?7, ?8, 1, 0, ?9, ?10, ?11, ?14, 0, ?12, ?13, 0, 0, next_block FROM family",
        params![
            new.id.0.as_bytes(),
            new.name,
            int(new.limits.bytes),
            int(new.limits.inodes),
            int(new.limits.file_bytes),
            new.block_size,
            i64::from(new.compression == Compression::Zstd),
            branch,
            int(used.0),
            int(used.1),
            int(next_ino),
            Uuid::new_v4().as_bytes(),
            Uuid::nil().as_bytes(),
            int(seq)
        ],
    )?;
    Ok(())
}

/// A new tenant's first rows.
fn plant(connection: &Connection, new: &NewTenant) -> Outcome<()> {
    let branch: i64 = connection.query_row(
        "UPDATE family SET next_branch = next_branch + 1 RETURNING next_branch - 1",
        [],
        |row| row.get(0),
    )?;
    // Without ancestors no number needs to be looked for in them.
    connection.execute(
        "INSERT INTO branch(branch, tenant, ino_floor, fork_seq) VALUES(?1, ?2, 0, 0)",
        params![branch, new.id.0.as_bytes()],
    )?;
    insert_tenant(connection, new, branch, (FIRST_INO, 0), (0, 1))?;
    let (sec, nsec) = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or((0, 0), |now| (now.as_secs() as i64, now.subsec_nanos()));
    connection.execute(
        "INSERT INTO inode(branch, ino, born, dead, mode, uid, gid, rdev, nlink, size, atime, atime_ns, mtime,
         mtime_ns, ctime, ctime_ns, dir_parent, did, cut, charge)
         VALUES(?1, ?2, 1, 0, ?3, ?4, ?5, 0, 2, 4096, ?6, ?7, ?6, ?7, ?6, ?7, ?2, 0, ?8, 0)",
        params![
            branch,
            int(ROOT_INO),
            libc::S_IFDIR | (new.root_mode & 0o7777),
            new.root_uid,
            new.root_gid,
            sec,
            nsec,
            i64::MAX
        ],
    )?;
    Ok(())
}

#[async_trait]
impl Database for SqliteDatabase {
    fn display_url(&self) -> String {
        self.inner.url.to_string()
    }

    /// There are none; whoever hands the URL on must not change the database by it.
    fn set_credentials(&self, url: &str) -> Result<()> {
        if url == self.display_url() {
            return Ok(());
        }
        Err(StoreError::Refused(format!("{url} is another database than {}", self.display_url())))
    }

    async fn schema_version(&self) -> Result<SchemaVersion> {
        self.inner.control.version()
    }

    async fn create_tenant(&self, new: &NewTenant) -> Result<Tenant> {
        blocking(|| {
            self.inner.make_tenant(new, None, |family| {
                family.write("making a tenant", |connection| plant(connection, new))
            })
        })
    }

    async fn tenant(&self, id: TenantId) -> Result<Option<Tenant>> {
        self.inner.control.find(id)?.map_or(Ok(None), |entry| self.inner.present(entry))
    }

    async fn tenant_by_name(&self, name: &str) -> Result<Option<Tenant>> {
        let found =
            self.inner.control.find_name(name)?.map_or(Ok(None), |entry| self.inner.present(entry))?;
        Ok(found.filter(|tenant| tenant.state == TenantState::Live))
    }

    async fn tenants(&self) -> Result<Vec<Tenant>> {
        let mut tenants = Vec::new();
        for entry in self.inner.control.all()? {
            tenants.extend(self.inner.present(entry)?);
        }
        Ok(tenants)
    }

    async fn resize_tenant(&self, id: TenantId, limits: &Limits) -> Result<Tenant> {
        let (_, family) = self.inner.need(id)?;
        let row = family.write("changing limits", |connection| {
            connection.execute(
                "UPDATE tenant SET quota_bytes = ?2, quota_inodes = ?3, max_file = ?4 WHERE id = ?1",
                params![id.0.as_bytes(), int(limits.bytes), int(limits.inodes), int(limits.file_bytes)],
            )?;
            TenantRow::need(connection, id)
        })?;
        self.inner.tenant_of(row, family.id)
    }

    async fn delete_tenant(&self, id: TenantId, in_use: InUse) -> Result<()> {
        blocking(|| self.inner.delete(id, in_use))
    }

    async fn reap_tenant(&self, id: TenantId) -> Result<bool> {
        blocking(|| self.inner.reap(id))
    }

    async fn open_session(&self, new: &NewSession) -> Result<()> {
        let sessions = &self.inner.sessions;
        blocking(|| sessions.open(new.id))
            .map_err(|error| self.inner.place().io(&sessions.path(new.id), error))?;
        let known = self.inner.control.sessions()?;
        let gone: Vec<_> = known.into_iter().filter(|session| !sessions.is_alive(*session)).collect();
        self.inner.control.put_session(new, &gone)
    }

    async fn beat(&self, session: SessionId) -> Result<Beat> {
        let mut tenants = Vec::new();
        for entry in self.inner.control.held_by(session)? {
            let family = self.inner.family(entry.family);
            let row =
                family.read("renewing a session", |connection| TenantRow::find(connection, entry.id))?;
            if let Some(row) = row.filter(|row| row.is_held) {
                tenants.push(BeatTenant {
                    tenant: row.id,
                    epoch: row.epoch,
                    limits: row.limits,
                    state: row.state,
                    wanted: row.is_wanted,
                    seals: self.inner.control.seals(entry.id)?,
                });
            }
        }
        self.inner.close_idle(IDLE);
        Ok(Beat { valid_for: FOR_EVER, again_in: AGAIN, tenants })
    }

    async fn close_session(&self, session: SessionId) -> Result<()> {
        // Given back, not left behind: before the session counts as dead.
        for entry in self.inner.control.held_by(session)? {
            self.inner.family(entry.family).write("giving a lease back", |connection| {
                connection.execute(
                    "UPDATE tenant SET held = 0, wanted = 0 WHERE id = ?1 AND session = ?2 AND held = 1",
                    params![entry.id.0.as_bytes(), session.0.as_bytes()],
                )?;
                Ok(())
            })?;
        }
        self.inner.sessions.close(session);
        self.inner.control.remove_session(session)?;
        self.inner.control.close_idle();
        // The last connection to close writes a WAL back: what is left is one file a copy of which is whole.
        blocking(|| self.inner.close_idle(Duration::ZERO));
        Ok(())
    }

    async fn acquire(&self, tenant: TenantId, session: SessionId) -> Result<Lease> {
        self.inner.acquire(tenant, session)
    }

    async fn release(&self, fence: &Fence) -> Result<()> {
        let (_, family) = match self.inner.need(fence.tenant) {
            Err(StoreError::NoTenant(_)) => return Ok(()),
            other => other?,
        };
        family.write("giving a lease back", |connection| {
            connection.execute(
                "UPDATE tenant SET held = 0, wanted = 0
                 WHERE id = ?1 AND token = ?2 AND epoch = ?3 AND session = ?4 AND held = 1",
                params![
                    fence.tenant.0.as_bytes(),
                    fence.token.as_bytes(),
                    fence.epoch,
                    fence.session.0.as_bytes()
                ],
            )?;
            Ok(())
        })
    }

    async fn open_tenant(&self, id: TenantId) -> Result<Arc<dyn TenantStore>> {
        let (_, family) = self.inner.need(id)?;
        let row = family.read("opening a tenant", |connection| TenantRow::need(connection, id))?;
        Ok(Arc::new(SqliteTenant::new(self.inner.clone(), family, id, row.block_size)))
    }
}

/// For messages and tests: where a family's files are.
#[cfg(test)]
pub(super) fn family_files(dir: &std::path::Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = std::fs::read_dir(dir)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    found.retain(|path: &PathBuf| path.to_string_lossy().contains("/family-"));
    found.sort();
    found
}
