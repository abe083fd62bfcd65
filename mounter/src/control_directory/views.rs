//! Checkpoints that are looked at: the numbers that their node ids begin with, and what is in memory of each.
//!
//! The kernel keeps node ids for as long as it likes, so a number means one checkpoint for the life of the connection. It is written
//! down before the kernel is first told it, so that whoever goes on after a kill knows it. That is a file and not the journal: what
//! is journalled goes once it is committed. A number has a line of its own, appended by one write(2); half a one was told nobody.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    path::Path,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use fuse3::{Errno, Result};
use parking_lot::Mutex;
use tarbox_fs::{FileSystem, Sealed};
use tarbox_store::{StoreError, TenantStore};
use tarbox_types::{Ino, KernelCache};

use super::{
    errno,
    node::{CONTROL, node},
    patiently,
};

/// The first number of a checkpoint.
const FIRST: u16 = CONTROL + 1;
/// So many are in memory at a time; others are taken in again when somebody asks.
const OPEN_MAX: usize = 8;
/// What nobody has asked for goes from memory after this time.
const IDLE: Duration = Duration::from_secs(60);

/// See the module's documentation.
pub(super) struct Views {
    head: Arc<FileSystem>,
    store: Arc<dyn TenantStore>,
    kernel: OnceLock<Arc<dyn KernelCache>>,
    state: Mutex<State>,
}

struct State {
    table: Table,
    open: BTreeMap<u16, Open>,
}

/// Numbers and what they mean, on disk as in memory.
struct Table {
    file: File,
    numbers: HashMap<Sealed, u16>,
    meant: BTreeMap<u16, Meant>,
}

#[derive(Clone, Copy)]
struct Meant {
    sealed: Sealed,
    is_gone: bool,
}

struct Open {
    file_system: FileSystem,
    used: Instant,
}

impl Views {
    /// Goes on with the numbers in `file`.
    pub(super) fn open(file: &Path, head: Arc<FileSystem>, store: Arc<dyn TenantStore>) -> io::Result<Self> {
        let state = State { table: Table::open(file)?, open: BTreeMap::new() };
        Ok(Self { head, store, kernel: OnceLock::new(), state: Mutex::new(state) })
    }

    pub(super) fn attach(&self, kernel: Arc<dyn KernelCache>) {
        let _ = self.kernel.set(kernel);
    }

    /// The number of a checkpoint, for ever.
    ///
    /// # Errors
    /// ENFILE where all are used, EIO where it cannot be written down.
    pub(super) fn number_of(&self, sealed: Sealed) -> Result<u16> {
        self.state.lock().table.number_of(sealed)
    }

    /// The checkpoint of a number.
    ///
    /// # Errors
    /// ESTALE where it is gone, or where nobody was ever told this number.
    pub(super) async fn get(&self, number: u16) -> Result<FileSystem> {
        let sealed = {
            let mut state = self.state.lock();
            let meant = state.table.meant.get(&number).copied().filter(|meant| !meant.is_gone);
            let meant = meant.ok_or_else(errno::stale)?;
            if let Some(open) = state.open.get_mut(&number) {
                open.used = Instant::now();
                return Ok(open.file_system.clone());
            }
            meant.sealed
        };
        let view = patiently(|| self.store.view(sealed.branch, sealed.layer)).await;
        let view = view.map_err(|error| self.failed(sealed, &error))?;
        let file_system = self.head.at(sealed, view, number);
        if let Some(kernel) = self.kernel.get() {
            file_system.attach(Arc::new(OfView { kernel: Arc::clone(kernel), view: number }));
        }
        let mut state = self.state.lock();
        state.make_room();
        // Somebody else may have been faster: what is in memory already is kept.
        let open = state.open.entry(number).or_insert(Open { file_system, used: Instant::now() });
        Ok(open.file_system.clone())
    }

    fn failed(&self, sealed: Sealed, error: &StoreError) -> Errno {
        if matches!(error, StoreError::NoLayer { .. }) {
            self.gone(sealed);
            return errno::stale();
        }
        tracing::error!(%error, branch = sealed.branch, layer = sealed.layer, "a checkpoint cannot be looked at");
        errno::of_kind(error.kind())
    }

    /// A checkpoint has been deleted: nothing more is shown of it, and the kernel keeps nothing of it.
    pub(super) fn gone(&self, sealed: Sealed) {
        let open = {
            let mut state = self.state.lock();
            let Some(&number) = state.table.numbers.get(&sealed) else { return };
            if let Some(meant) = state.table.meant.get_mut(&number) {
                meant.is_gone = true;
            }
            state.open.remove(&number)
        };
        if let Some(open) = open {
            open.file_system.forget_all();
        }
    }

    /// Lets go of what nobody uses; what is left in memory.
    pub(super) fn in_use(&self) -> Vec<Sealed> {
        let mut state = self.state.lock();
        state.open.retain(|_, open| open.used.elapsed() < IDLE);
        let State { table, open } = &*state;
        open.keys().filter_map(|number| table.meant.get(number).map(|meant| meant.sealed)).collect()
    }

    /// How many have a number, and how many are in memory.
    pub(super) fn count(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.table.meant.len(), state.open.len())
    }
}

impl State {
    fn make_room(&mut self) {
        while self.open.len() >= OPEN_MAX {
            let oldest = self.open.iter().min_by_key(|(_, open)| open.used).map(|(number, _)| *number);
            match oldest {
                Some(number) => drop(self.open.remove(&number)),
                None => return,
            }
        }
    }
}

impl Table {
    fn open(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new().create(true).truncate(false).read(true).append(true).open(path)?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        file.set_len(whole as u64)?;
        let mut table = Self { file, numbers: HashMap::new(), meant: BTreeMap::new() };
        for (number, sealed) in text[..whole].lines().filter_map(read_line) {
            table.insert(number, sealed);
        }
        Ok(table)
    }

    fn insert(&mut self, number: u16, sealed: Sealed) {
        self.numbers.insert(sealed, number);
        self.meant.insert(number, Meant { sealed, is_gone: false });
    }

    fn number_of(&mut self, sealed: Sealed) -> Result<u16> {
        if let Some(number) = self.numbers.get(&sealed) {
            return Ok(*number);
        }
        let last = self.meant.last_key_value().map_or(FIRST - 1, |(number, _)| *number);
        let number = last.checked_add(1).ok_or_else(errno::too_many_views)?;
        let line = format!("{number} {} {}\n", sealed.branch, sealed.layer);
        let end = self.file.metadata().map_err(|error| errno::of_io(&error))?.len();
        self.file.write_all(line.as_bytes()).map_err(|error| {
            // Half a line would become a whole one, of another meaning, with the next.
            let _ = self.file.set_len(end);
            errno::of_io(&error)
        })?;
        self.insert(number, sealed);
        Ok(number)
    }
}

/// Number, branch, layer.
fn read_line(line: &str) -> Option<(u16, Sealed)> {
    let mut words = line.split(' ');
    let number = words.next()?.parse().ok()?;
    let sealed = Sealed { branch: words.next()?.parse().ok()?, layer: words.next()?.parse().ok()? };
    Some((number, sealed))
}

/// The kernel, for who knows inode numbers of one view.
struct OfView {
    kernel: Arc<dyn KernelCache>,
    view: u16,
}

impl KernelCache for OfView {
    fn invalidate_inode(&self, ino: Ino, offset: i64, length: i64) -> bool {
        self.kernel.invalidate_inode(node(self.view, ino), offset, length)
    }

    fn invalidate_entry(&self, parent: Ino, name: &[u8]) -> bool {
        self.kernel.invalidate_entry(node(self.view, parent), name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(branch: i64, layer: i64) -> Sealed {
        Sealed { branch, layer }
    }

    #[test]
    fn a_number_means_the_same_for_every_successor_and_half_a_line_was_told_nobody() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("views");
        let mut table = Table::open(&path).expect("open");
        assert_eq!(table.number_of(sealed(1, 5)).expect("a number"), FIRST);
        assert_eq!(table.number_of(sealed(1, 6)).expect("a number"), FIRST + 1);
        assert_eq!(table.number_of(sealed(1, 5)).expect("a number"), FIRST);
        drop(table);
        let mut file = OpenOptions::new().append(true).open(&path).expect("open");
        file.write_all(b"4 1 7").expect("a torn line");
        let mut table = Table::open(&path).expect("open");
        assert_eq!(table.number_of(sealed(1, 6)).expect("a number"), FIRST + 1);
        assert_eq!(table.number_of(sealed(2, 1)).expect("a number"), FIRST + 2);
        drop(table);
        let table = Table::open(&path).expect("open");
        assert_eq!(table.meant.get(&(FIRST + 2)).map(|meant| meant.sealed), Some(sealed(2, 1)));
        assert_eq!(table.meant.len(), 3);
    }

    #[test]
    fn when_all_numbers_are_used_one_more_checkpoint_is_refused_and_the_others_stay() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut table = Table::open(&directory.path().join("views")).expect("open");
        table.insert(u16::MAX, sealed(1, 1));
        let refused = table.number_of(sealed(1, 2)).expect_err("no number is left");
        assert_eq!(refused, errno::too_many_views());
        assert_eq!(table.number_of(sealed(1, 1)).expect("a number"), u16::MAX);
    }
}
