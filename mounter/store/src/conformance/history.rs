//! The property the whole model stands on: whatever is committed later, a kept view shows what it showed.
//!
//! Random batches, seals, restores, clones and deletions of layers run against an engine and a model in memory;
//! at the end every kept view and every head must read as the model says, row by row, and pass the check.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use tarbox_types::{BlockIndex, BranchId, Cookie, DataId, Ino, Layer, ROOT_INO};
use tokio::runtime::Runtime;

use super::{Site, blocks::collect_all, writer::*};
use crate::*;

/// One random step. Numbers choose among what is there.
#[derive(Clone, Debug)]
enum Step {
    Create {
        directory: u8,
        content: u8,
    },
    Remove(u8),
    Rename {
        from: u8,
        directory: u8,
    },
    /// Put another inode under a name, which keeps its cookie.
    Replace {
        name: u8,
        by: u8,
    },
    Touch {
        file: u8,
        uid: u8,
    },
    Xattr {
        file: u8,
        value: u8,
    },
    Write {
        file: u8,
        blk: u8,
        content: u8,
        is_block: bool,
    },
    Patch {
        file: u8,
        blk: u8,
        off: u8,
        byte: u8,
    },
    Punch {
        file: u8,
        blk: u8,
    },
    Truncate {
        file: u8,
        blk: u8,
    },
    /// Truncation to nothing under a new content.
    Empty(u8),
    Seal,
    Restore(u8),
    Clone(u8),
    /// Go on in another tenant.
    Switch(u8),
    DeleteLayer(u8),
    Collect,
    /// Some steps of shortening chains; and whether they go on where earlier ones ended.
    Flatten {
        steps: u8,
        is_cut_off: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (any::<u8>(), any::<u8>()).prop_map(|(directory, content)| Step::Create { directory, content }),
        3 => any::<u8>().prop_map(Step::Remove),
        2 => (any::<u8>(), any::<u8>()).prop_map(|(from, directory)| Step::Rename { from, directory }),
        2 => (any::<u8>(), any::<u8>()).prop_map(|(name, by)| Step::Replace { name, by }),
        2 => (any::<u8>(), any::<u8>()).prop_map(|(file, uid)| Step::Touch { file, uid }),
        2 => (any::<u8>(), 0..3u8).prop_map(|(file, value)| Step::Xattr { file, value }),
        6 => (any::<u8>(), 0..5u8, any::<u8>(), any::<bool>())
            .prop_map(|(file, blk, content, is_block)| Step::Write { file, blk, content, is_block }),
        5 => (any::<u8>(), 0..5u8, any::<u8>(), 1..=255u8)
            .prop_map(|(file, blk, off, byte)| Step::Patch { file, blk, off, byte }),
        2 => (any::<u8>(), 0..5u8).prop_map(|(file, blk)| Step::Punch { file, blk }),
        2 => (any::<u8>(), 0..5u8).prop_map(|(file, blk)| Step::Truncate { file, blk }),
        1 => any::<u8>().prop_map(Step::Empty),
        5 => Just(Step::Seal),
        2 => any::<u8>().prop_map(Step::Restore),
        2 => any::<u8>().prop_map(Step::Clone),
        2 => any::<u8>().prop_map(Step::Switch),
        2 => any::<u8>().prop_map(Step::DeleteLayer),
        1 => Just(Step::Collect),
        3 => (1..12u8, any::<bool>()).prop_map(|(steps, is_cut_off)| Step::Flatten { steps, is_cut_off }),
    ]
}

/// What a view shows. (`cut` is left out: what it hides shows in the extents.)
#[derive(Clone, Debug, Default, PartialEq)]
struct State {
    inodes: BTreeMap<Ino, InodeRow>,
    entries: BTreeMap<(Ino, Bytes), (Ino, Cookie)>,
    xattrs: BTreeMap<Ino, Bytes>,
    data: BTreeMap<(DataId, BlockIndex), Vec<u8>>,
}

impl State {
    fn files(&self) -> Vec<Ino> {
        self.inodes.values().filter(|row| row.mode & DIR == 0).map(|row| row.ino).collect()
    }

    fn directories(&self) -> Vec<Ino> {
        self.inodes.values().filter(|row| row.mode & DIR != 0).map(|row| row.ino).collect()
    }

    fn blocks_of(&self, did: DataId) -> Vec<BlockIndex> {
        self.data.range((did, 0)..(did + 1, 0)).map(|((_, blk), _)| *blk).collect()
    }

    /// Sets charge and size of a file to what its content asks for.
    fn settle(&mut self, ino: Ino) -> InodeRow {
        let did = self.inodes[&ino].did;
        let blks = self.blocks_of(did);
        let row = self.inodes.get_mut(&ino).unwrap();
        row.charge = 2 * UNIT * blks.len() as u64;
        row.size = blks.last().map_or(0, |blk| (blk + 1) * u64::from(BS));
        row.clone()
    }

    fn used(&self) -> (u64, u64) {
        (self.inodes.values().map(|row| row.charge).sum(), self.inodes.len() as u64)
    }
}

/// A tenant being written, and what it should show.
struct Line {
    writer: Writer,
    head: State,
}

/// A kept view and what it should show.
struct Kept {
    branch: BranchId,
    layer: Layer,
    state: State,
    /// Index of the tenant that sealed it.
    line: usize,
}

struct World {
    lines: Vec<Line>,
    at: usize,
    kept: Vec<Kept>,
    tenants: usize,
    flattening: Option<Flattening>,
}

fn pick<T: Clone>(choice: u8, among: &[T]) -> Option<T> {
    (!among.is_empty()).then(|| among[choice as usize % among.len()].clone())
}

const WHOLE: [u8; 1] = [3];

impl World {
    async fn commit(&mut self, fill: impl FnOnce(&mut Batch)) -> Committed {
        let line = &mut self.lines[self.at];
        let (used_bytes, used_inodes) = line.head.used();
        line.writer
            .commit(|batch| {
                (batch.used_bytes, batch.used_inodes) = (used_bytes, used_inodes);
                fill(batch);
            })
            .await
    }

    fn head(&mut self) -> &mut State {
        &mut self.lines[self.at].head
    }

    fn number(&mut self) -> u64 {
        self.lines[self.at].writer.number()
    }

    /// Uploads a block, or finds an equal one: then it is to be named among `reused`.
    async fn block(&mut self, raw: &[u8]) -> (BlockHeader, bool) {
        let writer = &self.lines[self.at].writer;
        let hash = codec::hash(raw);
        match writer.store.find_blocks(&[hash]).await.unwrap()[0] {
            Some(block) => (BlockHeader { block, hash, len: 0, codec: Codec::Raw }, true),
            None => (writer.upload(raw).await, false),
        }
    }

    async fn run(&mut self, step: &Step) {
        match step {
            Step::Create { directory, content } => self.create(*directory, *content).await,
            Step::Remove(name) => self.remove(*name).await,
            Step::Rename { from, directory } => self.rename(*from, *directory).await,
            Step::Replace { name, by } => self.replace(*name, *by).await,
            Step::Touch { file, uid } => {
                let Some(ino) = pick(*file, &self.head().files()) else { return };
                self.head().inodes.get_mut(&ino).unwrap().uid = u32::from(*uid);
                let row = self.head().inodes[&ino].clone();
                self.commit(|batch| batch.inodes.push(row)).await;
            }
            Step::Xattr { file, value } => {
                let Some(ino) = pick(*file, &self.head().files()) else { return };
                let value = (*value > 0).then(|| Bytes::from(vec![*value; 30]));
                match &value {
                    Some(value) => self.head().xattrs.insert(ino, value.clone()),
                    None => self.head().xattrs.remove(&ino),
                };
                self.commit(|batch| batch.xattrs.push((ino, value))).await;
            }
            Step::Write { file, blk, content, is_block } => {
                self.write(*file, u64::from(*blk), *content, *is_block).await;
            }
            Step::Patch { file, blk, off, byte } => self.patch(*file, *blk, *off, *byte).await,
            Step::Punch { file, blk } => {
                let Some(ino) = pick(*file, &self.head().files()) else { return };
                let (did, blk) = (self.head().inodes[&ino].did, u64::from(*blk));
                self.head().data.remove(&(did, blk));
                let row = self.head().settle(ino);
                self.commit(|batch| {
                    batch.inodes.push(row);
                    batch.removed_extents.push((did, blk));
                })
                .await;
            }
            Step::Truncate { file, blk } => {
                let Some(ino) = pick(*file, &self.head().files()) else { return };
                let (did, blk) = (self.head().inodes[&ino].did, u64::from(*blk));
                self.head().data.retain(|(d, b), _| *d != did || *b < blk);
                let row = self.head().settle(ino);
                let row = InodeRow { cut: row.cut.min(blk * u64::from(BS)), ..row };
                self.head().inodes.insert(ino, row.clone());
                self.commit(|batch| {
                    batch.inodes.push(row);
                    batch.truncated.push((did, blk));
                })
                .await;
            }
            Step::Empty(file) => {
                let Some(ino) = pick(*file, &self.head().files()) else { return };
                let (did, fresh) = (self.head().inodes[&ino].did, self.number());
                self.head().data.retain(|(d, _), _| *d != did);
                let row = self.head().inodes.get_mut(&ino).unwrap();
                (row.did, row.cut) = (fresh, UNCUT);
                let row = self.head().settle(ino);
                self.commit(|batch| {
                    batch.inodes.push(row);
                    batch.removed_data.push(did);
                })
                .await;
            }
            Step::Seal => {
                let name = format!("seal {}", self.kept.len() + self.tenants * 1000 + self.at);
                let request = format!("{name} {}", self.lines[self.at].writer.seq);
                let done = self.commit(|batch| batch.seal = Some(Seal { name, request })).await;
                let branch = self.lines[self.at].writer.head().await.chain[0].branch;
                let (state, line) = (self.head().clone(), self.at);
                self.kept.push(Kept { branch, layer: done.sealed.unwrap(), state, line });
            }
            Step::Restore(which) => self.restore(*which).await,
            Step::Clone(which) => self.clone_at(*which).await,
            Step::Switch(line) => self.at = *line as usize % self.lines.len(),
            Step::DeleteLayer(which) => {
                if self.kept.is_empty() {
                    return;
                }
                let index = *which as usize % self.kept.len();
                let (branch, layer) = (self.kept[index].branch, self.kept[index].layer);
                match self.lines[self.at].writer.store.delete_layer(branch, layer).await {
                    Ok(()) => drop(self.kept.remove(index)),
                    Err(StoreError::LayerInUse { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            Step::Collect => {
                collect_all(&*self.lines[self.at].writer.store).await;
            }
            Step::Flatten { steps, is_cut_off } => self.flatten(*steps, *is_cut_off).await,
        }
    }

    async fn flatten(&mut self, steps: u8, is_cut_off: bool) {
        for _ in 0..steps {
            let from = self.flattening.take();
            self.flattening = match self.lines[self.at].writer.store.flatten(from).await.unwrap() {
                Flattened::More(at) => Some(at),
                Flattened::Done | Flattened::Nothing => None,
            };
        }
        if is_cut_off {
            self.flattening = None;
        }
    }

    async fn create(&mut self, directory: u8, content: u8) {
        let parent = pick(directory, &self.head().directories()).unwrap();
        let ino = self.number();
        let is_dir = content.is_multiple_of(5);
        let row = if is_dir { dir(ino, parent) } else { file(ino, 0) };
        let name = Bytes::from(format!("n{}", ino % 7));
        if self.head().entries.contains_key(&(parent, name.clone())) {
            return;
        }
        self.head().inodes.insert(ino, row);
        self.head().entries.insert((parent, name.clone()), (ino, ino));
        if is_dir {
            self.head().inodes.get_mut(&parent).unwrap().nlink += 1;
        }
        let (row, parent_row) = (self.head().inodes[&ino].clone(), self.head().inodes[&parent].clone());
        let kind = row.mode & 0o170_000;
        self.commit(|batch| {
            batch.inodes.extend([row, parent_row]);
            batch.entries.push(EntryRow { parent, name, ino, kind, cookie: ino });
        })
        .await;
    }

    /// Removes a file with its name, or an empty directory.
    async fn remove(&mut self, name: u8) {
        let keys: Vec<_> = self.head().entries.keys().cloned().collect();
        let Some((parent, name)) = pick(name, &keys) else { return };
        let (ino, cookie) = self.head().entries[&(parent, name.clone())];
        let is_dir = self.head().inodes[&ino].mode & DIR != 0;
        if is_dir && self.head().entries.keys().any(|(of, _)| *of == ino) {
            return;
        }
        self.head().entries.remove(&(parent, name.clone()));
        if is_dir {
            self.head().inodes.get_mut(&parent).unwrap().nlink -= 1;
        }
        let gone = self.head().inodes.remove(&ino).unwrap();
        self.head().xattrs.remove(&ino);
        self.head().data.retain(|(did, _), _| *did != gone.did);
        let parent_row = self.head().inodes[&parent].clone();
        self.commit(|batch| {
            batch.inodes.push(parent_row);
            batch.removed_entries.push((parent, name, cookie));
            batch.removed_inodes.push(ino);
            if gone.did != 0 {
                batch.removed_data.push(gone.did);
            }
        })
        .await;
    }

    /// Moves a file to another directory under a name that is free there.
    async fn rename(&mut self, from: u8, directory: u8) {
        let keys: Vec<_> = self.head().entries.keys().cloned().collect();
        let Some((parent, name)) = pick(from, &keys) else { return };
        let (ino, cookie) = self.head().entries[&(parent, name.clone())];
        let to = pick(directory, &self.head().directories()).unwrap();
        if self.head().inodes[&ino].mode & DIR != 0 || self.head().entries.contains_key(&(to, name.clone())) {
            return;
        }
        let new_cookie = self.number();
        self.head().entries.remove(&(parent, name.clone()));
        self.head().entries.insert((to, name.clone()), (ino, new_cookie));
        self.commit(|batch| {
            batch.removed_entries.push((parent, name.clone(), cookie));
            batch.entries.push(EntryRow { parent: to, name, ino, kind: REG, cookie: new_cookie });
        })
        .await;
    }

    async fn replace(&mut self, name: u8, by: u8) {
        let keys: Vec<_> = self.head().entries.keys().cloned().collect();
        let (Some(over), Some(from)) = (pick(name, &keys), pick(by, &keys)) else { return };
        let ((old, cookie), (new, from_cookie)) = (self.head().entries[&over], self.head().entries[&from]);
        let is_dir = |state: &State, ino| state.inodes[&ino].mode & DIR != 0;
        if old == new || is_dir(self.head(), old) || is_dir(self.head(), new) {
            return;
        }
        self.head().entries.remove(&from);
        self.head().entries.insert(over.clone(), (new, cookie));
        let gone = self.head().inodes.remove(&old).unwrap();
        self.head().xattrs.remove(&old);
        self.head().data.retain(|(did, _), _| *did != gone.did);
        self.commit(|batch| {
            batch.removed_entries.push((from.0, from.1, from_cookie));
            batch.entries.push(EntryRow { parent: over.0, name: over.1, ino: new, kind: REG, cookie });
            batch.removed_inodes.push(old);
            batch.removed_data.push(gone.did);
        })
        .await;
    }

    async fn write(&mut self, file: u8, blk: BlockIndex, content: u8, is_block: bool) {
        let Some(ino) = pick(file, &self.head().files()) else { return };
        let did = self.head().inodes[&ino].did;
        // Few different contents, so that blocks are shared.
        let raw = vec![content % 4 + 1; if is_block { 6000 } else { 40 }];
        self.head().data.insert((did, blk), raw.clone());
        let row = self.head().settle(ino);
        let block = if is_block { Some(self.block(&raw).await) } else { None };
        self.commit(|batch| {
            batch.inodes.push(row);
            let body = match block {
                Some((header, true)) => {
                    batch.reused.push(header.block);
                    ExtentBody::Block(header.block)
                }
                Some((header, false)) => {
                    batch.headers.push(header.clone());
                    ExtentBody::Block(header.block)
                }
                None => ExtentBody::Inline(raw.into()),
            };
            batch.extents.push(ExtentRow { did, blk, alloc: units(&WHOLE), body });
        })
        .await;
    }

    async fn patch(&mut self, file: u8, blk: u8, off: u8, byte: u8) {
        let Some(ino) = pick(file, &self.head().files()) else { return };
        let did = self.head().inodes[&ino].did;
        let Some(blk) = pick(blk, &self.head().blocks_of(did)) else { return };
        let off = u32::from(off) * 32;
        let bytes = self.head().data.get_mut(&(did, blk)).unwrap();
        let end = off as usize + 3;
        bytes.resize(bytes.len().max(end), 0);
        bytes[off as usize..end].fill(byte);
        self.commit(|batch| {
            let data = Bytes::from(vec![byte; 3]);
            batch.patches.push(PatchRow { did, blk, seq: batch.to_seq, off, data });
            batch.patched.push((did, blk, units(&WHOLE)));
        })
        .await;
    }

    async fn restore(&mut self, which: u8) {
        let at = self.at;
        let own: Vec<_> = (0..self.kept.len()).filter(|index| self.kept[*index].line == at).collect();
        let Some(index) = pick(which, &own) else { return };
        let (branch, layer) = (self.kept[index].branch, self.kept[index].layer);
        let line = &mut self.lines[at];
        let before = line.writer.store.layers().await.unwrap().len();
        let (old, _) = line.writer.store.head().await.unwrap();
        line.writer.store.restore(&line.writer.fence, branch, layer).await.unwrap();
        let was = std::mem::replace(&mut line.head, self.kept[index].state.clone());
        // Where something had changed, what stood before was sealed.
        if line.writer.store.view(old.head_branch, old.layer).await.is_ok() {
            let is_new =
                !self.kept.iter().any(|kept| (kept.branch, kept.layer) == (old.head_branch, old.layer));
            if is_new {
                let kept = Kept { branch: old.head_branch, layer: old.layer, state: was, line: at };
                self.kept.push(kept);
            }
        }
        assert!(self.lines[at].writer.head().await.chain.len() <= 8, "{before} layers before");
        self.learn_cuts().await;
    }

    /// A cut counts from the last fork: after one, it is what the store says.
    async fn learn_cuts(&mut self) {
        let line = &mut self.lines[self.at];
        let view = line.writer.head().await;
        for row in line.head.inodes.values_mut() {
            row.cut = line.writer.store.inode(&view, row.ino).await.unwrap().unwrap().cut;
        }
    }

    async fn clone_at(&mut self, which: u8) {
        if self.kept.is_empty() || self.lines.len() >= 4 {
            return;
        }
        let index = which as usize % self.kept.len();
        let (branch, layer) = (self.kept[index].branch, self.kept[index].layer);
        self.tenants += 1;
        let writer = &self.lines[self.at].writer;
        let new = new_tenant(&format!("{}-clone-{}", writer.fence.tenant.0.as_simple(), self.tenants));
        writer.store.branch_from(branch, layer, &new).await.unwrap();
        let (db, session) = (writer.db.clone(), writer.session);
        let writer = Writer::acquire(db, new.id, session).await;
        self.lines.push(Line { writer, head: self.kept[index].state.clone() });
        self.at = self.lines.len() - 1;
        self.learn_cuts().await;
    }

    async fn compare(&self) {
        let every: Vec<Ino> = {
            let states =
                self.lines.iter().map(|line| &line.head).chain(self.kept.iter().map(|kept| &kept.state));
            let mut numbers: Vec<_> = states.flat_map(|state| state.inodes.keys().copied()).collect();
            numbers.sort_unstable();
            numbers.dedup();
            numbers
        };
        for (index, line) in self.lines.iter().enumerate() {
            let view = line.writer.head().await;
            let shown = show(&*line.writer.store, &view, &every).await;
            assert_eq!(shown, plain(&line.head), "head of tenant {index}, {view:?}");
            let report = line.writer.store.check(false, &|_| ()).await.unwrap();
            assert!(report.faults.is_empty(), "tenant {index}: {:?}", report.faults);
            let (tenant, _) = line.writer.store.head().await.unwrap();
            assert_eq!((tenant.used_bytes, tenant.used_inodes), line.head.used());
        }
        for kept in &self.kept {
            let store = &self.lines[kept.line].writer.store;
            let view = store.view(kept.branch, kept.layer).await.unwrap();
            assert_eq!(show(&**store, &view, &every).await, plain(&kept.state), "{view:?}");
        }
    }
}

/// A state as it is compared: cuts are not.
fn plain(state: &State) -> State {
    let mut state = state.clone();
    state.inodes.values_mut().for_each(|row| row.cut = UNCUT);
    // Times of the root come from the database's clock.
    state.inodes.values_mut().filter(|row| row.ino == ROOT_INO).for_each(|row| {
        (row.atime, row.mtime, row.ctime) = Default::default();
    });
    state.data.values_mut().for_each(|bytes| *bytes = trimmed(bytes));
    state
}

/// Reads everything that a view shows.
async fn show(store: &dyn TenantStore, view: &View, every: &[Ino]) -> State {
    let mut state = State::default();
    for ino in every {
        let Some(row) = store.inode(view, *ino).await.unwrap() else { continue };
        if let Some(value) = store.xattrs(view, *ino).await.unwrap() {
            state.xattrs.insert(*ino, value);
        }
        if row.mode & DIR != 0 {
            let mut after = 0;
            loop {
                let page = store.list(view, *ino, after, 2).await.unwrap();
                for (entry, inode) in &page {
                    assert!(entry.cookie > after);
                    after = entry.cookie;
                    let found = store.lookup(view, *ino, &entry.name).await.unwrap();
                    assert_eq!(found.as_ref(), Some(&(entry.clone(), inode.clone())));
                    state.entries.insert((*ino, entry.name.clone()), (entry.ino, entry.cookie));
                }
                if page.len() < 2 {
                    break;
                }
            }
        } else {
            let extents = store.extents(view, data(&row), 0..100).await.unwrap();
            let blks: Vec<_> = extents.iter().map(|extent| extent.blk).collect();
            let read = bytes_of(store, view, data(&row), &blks).await;
            for extent in extents {
                if extent.kind != ExtentKind::Hole {
                    assert_eq!(extent.alloc, units(&WHOLE));
                    state.data.insert((row.did, extent.blk), read[&extent.blk].clone());
                }
            }
        }
        state.inodes.insert(*ino, row);
    }
    plain(&state)
}

async fn play(db: std::sync::Arc<dyn Database>, name: String, steps: &[Step]) {
    let writer = Writer::create(db, &name).await;
    let root = writer.store.inode(&writer.head().await, ROOT_INO).await.unwrap().unwrap();
    let head = State { inodes: BTreeMap::from([(ROOT_INO, root)]), ..State::default() };
    let lines = vec![Line { writer, head }];
    let mut world = World { lines, at: 0, kept: vec![], tenants: 0, flattening: None };
    for step in steps {
        world.run(step).await;
    }
    world.compare().await;
    for line in &world.lines {
        collect_all(&*line.writer.store).await;
    }
    world.compare().await;
    super::chains::flatten_all(&*world.lines[0].writer.store).await;
    world.compare().await;
    for line in &world.lines {
        assert!(line.writer.head().await.chain.len() <= 2);
        collect_all(&*line.writer.store).await;
    }
    world.compare().await;
    world.lines[0].writer.db.close_session(world.lines[0].writer.session).await.unwrap();
}

pub fn kept_views_never_change(runtime: &Runtime, site: &dyn Site) {
    let db = runtime.block_on(site.open()).unwrap();
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(32);
    let config = Config { cases, max_shrink_iters: 400, failure_persistence: None, ..Config::default() };
    let mut number = 0;
    let number = std::cell::RefCell::new(&mut number);
    TestRunner::new(config)
        .run(&prop::collection::vec(step(), 1..90), |steps| {
            let name = {
                let mut number = number.borrow_mut();
                **number += 1;
                format!("history-{}", **number)
            };
            runtime.block_on(play(db.clone(), name, &steps));
            Ok(())
        })
        .unwrap();
}
