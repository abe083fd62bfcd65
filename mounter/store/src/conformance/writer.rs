//! What a mounter does, in small: a session, a lease, batches with positions and counters; and rows to fill them with.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use tarbox_types::{BlockId, BlockIndex, Cookie, DataId, FIRST_INO, Ino, ROOT_INO, Seq, SessionId, TenantId};
use uuid::Uuid;

use crate::{codec, *};

pub const DIR: u32 = 0o040_000;
pub const REG: u32 = 0o100_000;
pub const BS: u32 = 8192;
pub const UNCUT: u64 = u64::MAX >> 1;

pub fn new_tenant(name: &str) -> NewTenant {
    NewTenant {
        id: TenantId::random(),
        name: name.into(),
        limits: Limits { bytes: 1 << 30, inodes: 1 << 20, file_bytes: 1 << 40 },
        block_size: BS,
        compression: Compression::Zstd,
        root_uid: 11,
        root_gid: 22,
        root_mode: 0o755,
    }
}

pub async fn session(db: &dyn Database) -> SessionId {
    let id = SessionId(Uuid::new_v4());
    db.open_session(&NewSession {
        id,
        node: "node-7".into(),
        boot_id: "boot".into(),
        pid: std::process::id(),
        start_time: 4,
    })
    .await
    .unwrap();
    id
}

/// A writer with a lease.
pub struct Writer {
    pub db: Arc<dyn Database>,
    pub store: Arc<dyn TenantStore>,
    pub session: SessionId,
    pub fence: Fence,
    pub seq: Seq,
    pub next_ino: Ino,
    pub used_bytes: u64,
    pub used_inodes: u64,
}

impl Writer {
    /// Makes a tenant and takes its lease.
    pub async fn create(db: Arc<dyn Database>, name: &str) -> Self {
        let tenant = db.create_tenant(&new_tenant(name)).await.unwrap();
        let session = session(&*db).await;
        Self::acquire(db, tenant.id, session).await
    }

    pub async fn acquire(db: Arc<dyn Database>, id: TenantId, session: SessionId) -> Self {
        let lease = db.acquire(id, session).await.unwrap();
        let store = db.open_tenant(id).await.unwrap();
        Self {
            store,
            session,
            fence: lease.fence,
            seq: lease.tenant.seq,
            next_ino: lease.next_ino,
            used_bytes: lease.tenant.used_bytes,
            used_inodes: lease.tenant.used_inodes,
            db,
        }
    }

    pub fn number(&mut self) -> u64 {
        self.next_ino += 1;
        self.next_ino - 1
    }

    /// Position and counters as they would be now.
    pub fn batch(&self) -> Batch {
        Batch {
            from_seq: self.seq,
            to_seq: self.seq + 1,
            next_ino: self.next_ino,
            used_bytes: self.used_bytes,
            used_inodes: self.used_inodes,
            ..Batch::default()
        }
    }

    pub async fn try_commit(&mut self, fill: impl FnOnce(&mut Batch)) -> Result<Committed> {
        let mut batch = self.batch();
        fill(&mut batch);
        let done = self.store.commit(&self.fence, &batch).await?;
        self.seq = batch.to_seq;
        (self.used_bytes, self.used_inodes) = (batch.used_bytes, batch.used_inodes);
        Ok(done)
    }

    pub async fn commit(&mut self, fill: impl FnOnce(&mut Batch)) -> Committed {
        self.try_commit(fill).await.unwrap()
    }

    pub async fn seal(&mut self, name: &str) -> View {
        let done = self
            .commit(|batch| {
                batch.seal = Some(Seal { name: name.into(), request: format!("request {name}") });
            })
            .await;
        let branch = self.store.head().await.unwrap().1.chain[0].branch;
        self.store.view(branch, done.sealed.unwrap()).await.unwrap()
    }

    pub async fn head(&self) -> View {
        self.store.head().await.unwrap().1
    }

    /// Uploads a block under a new id.
    pub async fn upload(&self, raw: &[u8]) -> BlockHeader {
        let id = self.store.reserve_blocks(1).await.unwrap().start;
        let block = codec::encode(id, Bytes::copy_from_slice(raw), Compression::Zstd);
        self.store.upload(std::slice::from_ref(&block)).await.unwrap();
        block.header
    }

    /// A file of one block in the root, committed.
    pub async fn file(&mut self, name: &str, raw: &[u8]) -> (Ino, BlockId) {
        let header = self.upload(raw).await;
        let ino = self.number();
        let id = header.block;
        self.commit(|batch| {
            batch.headers.push(header);
            batch.inodes.push(InodeRow { charge: u64::from(BS), ..file(ino, raw.len() as u64) });
            batch.entries.push(entry(ROOT_INO, name, ino, REG, ino));
            batch.extents.push(block_extent(ino, 0, id));
            batch.used_bytes += u64::from(BS);
            batch.used_inodes += 1;
        })
        .await;
        (ino, id)
    }
}

pub fn file(ino: Ino, size: u64) -> InodeRow {
    let time = Time { sec: 1_700_000_000 + ino as i64, nsec: 5 };
    InodeRow {
        ino,
        mode: REG | 0o644,
        uid: 1000,
        gid: 1001,
        rdev: 0,
        nlink: 1,
        size,
        atime: time,
        mtime: time,
        ctime: time,
        dir_parent: 0,
        did: ino,
        cut: UNCUT,
        charge: 0,
        prealloc: vec![],
        target: Bytes::new(),
    }
}

pub fn dir(ino: Ino, parent: Ino) -> InodeRow {
    InodeRow { mode: DIR | 0o755, nlink: 2, dir_parent: parent, did: 0, ..file(ino, 4096) }
}

pub fn entry(parent: Ino, name: &str, ino: Ino, kind: u32, cookie: Cookie) -> EntryRow {
    EntryRow { parent, name: Bytes::copy_from_slice(name.as_bytes()), ino, kind, cookie }
}

pub fn units(bits: &[u8]) -> AllocMap {
    AllocMap(smallvec::SmallVec::from_slice(bits))
}

/// An extent with both its units allocated.
pub fn block_extent(did: DataId, blk: BlockIndex, block: BlockId) -> ExtentRow {
    ExtentRow { did, blk, alloc: units(&[3]), body: ExtentBody::Block(block) }
}

pub fn inline_extent(did: DataId, blk: BlockIndex, data: &[u8]) -> ExtentRow {
    ExtentRow { did, blk, alloc: units(&[1]), body: ExtentBody::Inline(Bytes::copy_from_slice(data)) }
}

pub fn data(ino: &InodeRow) -> DataRef {
    DataRef { did: ino.did, cut: ino.cut }
}

pub fn uncut(did: DataId) -> DataRef {
    DataRef { did, cut: UNCUT }
}

pub fn trimmed(bytes: &[u8]) -> Vec<u8> {
    bytes[..codec::trimmed_len(bytes)].to_vec()
}

/// The bytes of blocks that are not holes, zeros at their ends left out.
pub async fn bytes_of(
    store: &dyn TenantStore,
    view: &View,
    data: DataRef,
    blks: &[u64],
) -> BTreeMap<u64, Vec<u8>> {
    let read = store.read(view, data, blks).await.unwrap();
    read.into_iter().map(|(blk, bytes)| (blk, trimmed(&bytes))).collect()
}

/// All names of a directory, read in pages.
pub async fn names(store: &dyn TenantStore, view: &View, parent: Ino) -> Vec<(String, Ino)> {
    let (mut after, mut names) = (0, vec![]);
    loop {
        let page = store.list(view, parent, after, 3).await.unwrap();
        for (entry, inode) in &page {
            assert!(entry.cookie > after, "cookies grow");
            assert_eq!(entry.ino, inode.ino);
            after = entry.cookie;
            names.push((String::from_utf8(entry.name.to_vec()).unwrap(), entry.ino));
        }
        if page.len() < 3 {
            names.sort();
            return names;
        }
    }
}

/// Everything that one look at a tenant shows, to be compared. Numbers up to `up_to` of the first lease are looked for.
pub async fn snapshot(store: &dyn TenantStore, view: &View, up_to: Ino) -> Vec<String> {
    let mut out = vec![];
    for ino in std::iter::once(ROOT_INO).chain(FIRST_INO + (1 << 20)..up_to) {
        if let Some(row) = store.inode(view, ino).await.unwrap() {
            for (entry, _) in store.list(view, ino, 0, 1000).await.unwrap() {
                out.push(format!("{entry:?}"));
            }
            let xattrs = store.xattrs(view, ino).await.unwrap();
            let extents = store.extents(view, data(&row), 0..1000).await.unwrap();
            let blks: Vec<_> = extents.iter().map(|extent| extent.blk).collect();
            let bytes = bytes_of(store, view, data(&row), &blks).await;
            out.push(format!("{row:?} {xattrs:?} {extents:?} {bytes:?}"));
        }
    }
    out
}
