//! Requests in memory that outlives the process: a shared memory file divided into slots.
//!
//! A request is read into a slot and stays there until its reply has been written, so that a successor finds what its
//! predecessor had read. The file is a header page, then *big* slots (any request), then *small* ones:
//!
//! ```text
//! file   = page { magic u64, format u32, big u32, small u32, big_size u32, small_size u32, _ .. 64, saved: INIT [40], _ .. 128,
//!                 nonce u64, lowest u64 } big* small*
//! slot   = state u32, device u32, result_len u32, _ u32, alias u64, _ .. 64, result [448], request
//! ```
//! `nonce` is a random number that tells the connection from others (0 in files of earlier releases), `lowest` a `unique` below
//! which nothing is open (0 = unknown). Fields are only added, so that releases read each other's files.
//! `alias` is the `unique` under which the kernel knows the request since it sent it a second time; 0 = its own.
//! Rules, each of which guards against a failure that was measured:
//! - `request.len` is zeroed before each read; "len != 0 and the process dead" is a whole request.
//! - The result and [`State::Applied`] are stored before the reply is written (after it, an old write would be done again).
//! - To clear: `request.len` first, then the state; never the other way round.
//! - The pages are populated (and locked, if allowed) before the kernel writes to them: a fault in a dying process costs
//!   the request (EIO).
#![allow(unsafe_code)]

mod left;
mod saved;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mlock, mmap, munlock, munmap};
use parking_lot::{Condvar, Mutex};
use tarbox_types::Format;

use crate::abi::{IN_HEADER_SIZE, MIN_READ_BUFFER};
use crate::decode::Header;
use crate::init::SavedInit;

pub use left::{connection, is_agreed};

const MAGIC: u64 = u64::from_ne_bytes(*b"tbxslots");
/// The slots file.
pub const FORMAT: Format = Format::only(1);
const FORMAT_OFFSET: usize = 8;
const PAGE: usize = 4096;
const NONCE_OFFSET: usize = 128;
const LOWEST_OFFSET: usize = 136;
const SLOT_HEADER: usize = 512;
const ALIAS_OFFSET: usize = 16;
const RESULT_OFFSET: usize = 64;
/// Longest reply, header included, that is kept in a slot. Longer ones are those of reads, which may be done again.
pub const RESULT_CAPACITY: usize = SLOT_HEADER - RESULT_OFFSET;
/// Three pages, for a request with 8 KiB of data; whole pages, as the memory of each slot is given back on its own.
const SMALL_SIZE: usize = 3 * PAGE;
/// Longest request in a small slot.
pub const SMALL_REQUEST: usize = SMALL_SIZE - SLOT_HEADER;
/// That many small slots keep their memory.
const RESIDENT_SMALL: usize = 64;
/// Room in a big slot beside the data of the longest write.
const BIG_EXTRA: usize = PAGE;

/// How far a slot's request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Read, or about to be.
    Read,
    /// Done; the result is in the slot, the reply perhaps not written.
    Applied,
}

/// How many slots a file has, and for how long a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotsLayout {
    /// Slots for any request; each reading thread needs one, the rest take writes over 8 KiB that wait.
    /// Where all are taken, nothing more is read until one is free. Memory beyond the first few is taken only while it is needed.
    pub big: u32,
    /// Slots for other requests: the most that can wait at a time. Memory likewise.
    pub small: u32,
    /// Longest write in bytes.
    pub max_write: u32,
}

impl Default for SlotsLayout {
    fn default() -> Self {
        Self { big: 32, small: 1024, max_write: 1 << 20 }
    }
}

/// Creates an empty slots file, whose pages are populated by the sessions that use it.
///
/// # Errors
/// Those of `memfd_create(2)` and `ftruncate(2)`.
pub fn create_slots(layout: SlotsLayout) -> io::Result<OwnedFd> {
    let descriptor = memfd_create(c"tarbox-slots", MFdFlags::MFD_CLOEXEC)?;
    let sizes = Sizes::of(layout);
    let file = File::from(descriptor);
    file.set_len(sizes.file_length() as u64)?;
    use std::os::unix::fs::FileExt;
    let mut header = [0_u8; 28];
    header[0..8].copy_from_slice(&MAGIC.to_ne_bytes());
    let numbers = [FORMAT.written(), sizes.big, sizes.small, sizes.big_size, sizes.small_size];
    for (place, number) in header[8..].chunks_exact_mut(4).zip(numbers) {
        place.copy_from_slice(&number.to_ne_bytes());
    }
    file.write_all_at(&header, 0)?;
    let nonce = tarbox_types::TenantId::random().0.as_u64_pair().1;
    file.write_all_at(&nonce.to_ne_bytes(), NONCE_OFFSET as u64)?;
    Ok(file.into())
}

#[derive(Clone, Copy, Debug)]
struct Sizes {
    big: u32,
    small: u32,
    big_size: u32,
    small_size: u32,
}

impl Sizes {
    fn of(layout: SlotsLayout) -> Self {
        let big_size = (layout.max_write as usize).max(MIN_READ_BUFFER).next_multiple_of(PAGE) + BIG_EXTRA;
        Self {
            big: layout.big.max(2),
            small: layout.small.max(2),
            big_size: big_size as u32,
            small_size: SMALL_SIZE as u32,
        }
    }

    fn small_offset(&self) -> usize {
        PAGE + self.big as usize * self.big_size as usize
    }

    fn file_length(&self) -> usize {
        (self.small_offset() + self.small as usize * self.small_size as usize).next_multiple_of(PAGE)
    }

    fn count(&self) -> usize {
        (self.big + self.small) as usize
    }

    /// Offset and length of the slot `index`; big ones come first.
    fn place(&self, index: usize) -> (usize, usize) {
        let (big_size, small_size) = (self.big_size as usize, self.small_size as usize);
        match index.checked_sub(self.big as usize) {
            None => (PAGE + index * big_size, big_size),
            Some(small) => (self.small_offset() + small * small_size, small_size),
        }
    }

    fn read(file: &File) -> io::Result<Self> {
        use std::os::unix::fs::FileExt;
        let mut header = [0_u8; 28];
        file.read_exact_at(&mut header, 0)?;
        let number =
            |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let sizes = Self { big: number(12), small: number(16), big_size: number(20), small_size: number(24) };
        let format = number(FORMAT_OFFSET);
        if header[0..8] == MAGIC.to_ne_bytes() && !FORMAT.reads(format) {
            let read = FORMAT.read();
            let text =
                format!("it has format {format}; this program reads {} to {}", read.start(), read.end());
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let right = header[0..8] == MAGIC.to_ne_bytes()
            && (2..4096).contains(&sizes.big)
            && (2..65536).contains(&sizes.small)
            && (3 * PAGE..=64 << 20).contains(&(sizes.big_size as usize))
            && (sizes.big_size as usize).is_multiple_of(PAGE)
            && sizes.small_size as usize == SMALL_SIZE
            && file.metadata()?.len() >= sizes.file_length() as u64;
        right
            .then_some(sizes)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it is no slots file"))
    }
}

/// A mapped slots file and which of its slots are free.
#[derive(Debug)]
pub(crate) struct Slots {
    file: File,
    base: NonNull<u8>,
    sizes: Sizes,
    /// That many of the big and of the small slots keep their memory.
    resident: (usize, usize),
    free: Mutex<Free>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct Free {
    big: VecDeque<usize>,
    small: VecDeque<usize>,
}

// SAFETY: the mapping is reached through `Slot`s, each of which is the only one for its range (the free lists hand an
// index out once), and through the header page, written by one thread before the readers start.
unsafe impl Send for Slots {}
// SAFETY: as above.
unsafe impl Sync for Slots {}

impl Slots {
    /// Maps the file; `resident_big` big slots and the first small ones are populated and, if allowed, locked.
    pub(crate) fn open(descriptor: OwnedFd, resident_big: usize) -> io::Result<Arc<Self>> {
        let file = File::from(descriptor);
        let sizes = Sizes::read(&file)?;
        let length = std::num::NonZeroUsize::new(sizes.file_length()).ok_or(io::ErrorKind::InvalidData)?;
        // SAFETY: a new mapping, of a file that only we and a process already dead ever had mapped.
        let base = unsafe {
            mmap(
                None,
                length,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                file.as_fd(),
                0,
            )
        }?;
        let resident = (resident_big.min(sizes.big as usize), RESIDENT_SMALL.min(sizes.small as usize));
        let slots =
            Self { file, base: base.cast(), sizes, resident, free: Mutex::default(), freed: Condvar::new() };
        slots.populate(0, PAGE + resident.0 * sizes.big_size as usize);
        slots.populate(sizes.small_offset(), resident.1 * SMALL_SIZE);
        // A connection may live for many releases: whoever serves it writes as its own release does.
        slots.format().store(FORMAT.written(), Ordering::Release);
        Ok(Arc::new(slots))
    }

    fn format(&self) -> &AtomicU32 {
        // SAFETY: inside the header page, aligned, and lives as long as `self`.
        unsafe { AtomicU32::from_ptr(self.base.add(FORMAT_OFFSET).cast().as_ptr()) }
    }

    /// Makes pages present in the page table for writing, and keeps them there if the limits allow it.
    fn populate(&self, offset: usize, length: usize) {
        // SAFETY: callers give ranges inside the mapping.
        let (start, outcome) = unsafe {
            let start = self.base.add(offset).cast();
            (start, mlock(start, length))
        };
        // mlock populates for writing too, but RLIMIT_MEMLOCK may forbid it.
        if outcome.is_err() {
            // SAFETY: as above; MADV_POPULATE_WRITE (5.14) changes no content.
            let populated = unsafe { madvise(start, length, MmapAdvise::MADV_POPULATE_WRITE) };
            if populated.is_err() {
                self.touch(offset, length);
            }
        }
    }

    /// Populates by writing back what is there, for kernels that have no better way.
    fn touch(&self, offset: usize, length: usize) {
        for page in (offset..offset + length).step_by(PAGE) {
            // SAFETY: inside the mapping; aligned, as slots and pages begin at multiples of 4; an atomic that adds
            // nothing cannot disturb anybody.
            unsafe { AtomicU32::from_ptr(self.base.add(page).cast().as_ptr()) }
                .fetch_add(0, Ordering::Relaxed);
        }
    }

    /// How many slots there are.
    pub(crate) fn count(&self) -> usize {
        self.sizes.count()
    }

    /// Longest request that fits a big slot.
    pub(crate) fn big_capacity(&self) -> usize {
        self.sizes.big_size as usize - SLOT_HEADER
    }

    /// Gives every slot that may hold something, as it was left; to be called once, before any [`Slots::take`]. Dropping one
    /// frees it. Those for which the file has no memory are free at once: looking into them would take memory for each.
    pub(crate) fn take_all(self: &Arc<Self>) -> io::Result<Vec<Slot>> {
        let mut used = vec![false; self.count()];
        left::for_each_used(&self.file, &self.sizes, |index| {
            used[index] = true;
            Ok(())
        })?;
        let mut taken = Vec::new();
        for index in (0..self.count()).rev() {
            if used[index] || self.is_resident(index) {
                taken.push(self.adopt(index));
            } else {
                self.add_free(index);
            }
        }
        Ok(taken)
    }

    fn adopt(self: &Arc<Self>, index: usize) -> Slot {
        let (offset, length) = self.sizes.place(index);
        // SAFETY: `place` gives ranges inside the mapping.
        let start = unsafe { self.base.add(offset) };
        Slot { slots: Arc::clone(self), index, start, length, received: 0, keep: false }
    }

    /// Takes a big slot, waiting for one to become free: this bounds what waits at a time.
    pub(crate) fn take_big(self: &Arc<Self>) -> Slot {
        self.take(|free| free.big.pop_back())
    }

    /// Takes a small slot, waiting for one to become free.
    pub(crate) fn take_small(self: &Arc<Self>) -> Slot {
        self.take(|free| free.small.pop_back())
    }

    fn take(self: &Arc<Self>, pick: impl Fn(&mut Free) -> Option<usize>) -> Slot {
        let index = {
            let mut free = self.free.lock();
            loop {
                match pick(&mut free) {
                    Some(index) => break index,
                    None => self.freed.wait(&mut free),
                }
            }
        };
        if !self.is_resident(index) {
            let (offset, length) = self.sizes.place(index);
            self.populate(offset, length);
        }
        self.adopt(index)
    }

    fn is_resident(&self, index: usize) -> bool {
        match index.checked_sub(self.sizes.big as usize) {
            None => index < self.resident.0,
            Some(small) => small < self.resident.1,
        }
    }

    fn give_back(&self, index: usize) {
        if !self.is_resident(index) {
            self.release_memory(index);
        }
        self.add_free(index);
        self.freed.notify_all();
    }

    fn add_free(&self, index: usize) {
        let resident = self.is_resident(index);
        let mut free = self.free.lock();
        let list = if index < self.sizes.big as usize { &mut free.big } else { &mut free.small };
        // Resident slots are taken first.
        if resident {
            list.push_back(index);
        } else {
            list.push_front(index);
        }
    }

    /// Gives the memory of a slot back that was only needed for a burst.
    fn release_memory(&self, index: usize) {
        let (offset, length) = self.sizes.place(index);
        // SAFETY: inside the mapping, and nobody has this slot.
        unsafe {
            let _ = munlock(self.base.add(offset).cast(), length);
        }
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let _ = fallocate(&self.file, punch, offset as i64, length as i64);
    }

    /// [`Slot::redirect`], for a slot that somebody else has: header words are atomics.
    pub(crate) fn redirect(self: &Arc<Self>, index: usize, device: usize, unique: u64) {
        if let Some(slot) = (index < self.count()).then(|| self.adopt(index)) {
            slot.redirect(device, unique);
            slot.leave();
        }
    }

    /// What was agreed at INIT, as far as it was stored.
    pub(crate) fn saved_init(&self) -> Option<SavedInit> {
        let mut bytes = [0_u8; saved::LENGTH];
        // SAFETY: the header page is longer than this.
        unsafe {
            self.base.add(saved::OFFSET).as_ptr().copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len())
        };
        saved::read(&bytes)
    }

    /// Stores what was agreed at INIT; before the reply to it, so that a successor finds it in any case.
    pub(crate) fn save_init(&self, init: &SavedInit) {
        let bytes = saved::write(init);
        // SAFETY: the header page is longer than this, and one thread does this before any other starts.
        unsafe {
            self.base.add(saved::OFFSET).as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len())
        };
    }

    /// A `unique` below which no request is open; 0 = unknown.
    pub(crate) fn lowest_open(&self) -> &AtomicU64 {
        // SAFETY: inside the header page, aligned, and lives as long as `self`.
        unsafe { AtomicU64::from_ptr(self.base.add(LOWEST_OFFSET).cast().as_ptr()) }
    }

    /// Ends the mapping and gives the file back.
    pub(crate) fn descriptor(&self) -> io::Result<OwnedFd> {
        self.file.as_fd().try_clone_to_owned()
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // SAFETY: nobody has a slot any more: each holds the `Arc`.
        let unmapped = unsafe { munmap(self.base.cast(), self.sizes.file_length()) };
        if let Err(errno) = unmapped {
            tracing::warn!(%errno, "the slots stay mapped");
        }
    }
}

/// The right to one slot. Dropping it clears the slot and frees it, unless [`Slot::leave`] was called.
#[derive(Debug)]
pub(crate) struct Slot {
    slots: Arc<Slots>,
    index: usize,
    start: NonNull<u8>,
    length: usize,
    received: usize,
    keep: bool,
}

// SAFETY: a slot is the only access to its range (see `Slots`), which stays mapped as long as `slots` lives.
unsafe impl Send for Slot {}
// SAFETY: through `&Slot` bytes are only read, and the two header words are atomics.
unsafe impl Sync for Slot {}

impl Slot {
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        debug_assert!(offset + 4 <= self.length && offset.is_multiple_of(4));
        // SAFETY: inside the slot, aligned (slots begin at multiples of 512), and lives as long as `self`.
        unsafe { AtomicU32::from_ptr(self.start.add(offset).cast().as_ptr()) }
    }

    /// The `len` of the request's header.
    fn request_len(&self) -> &AtomicU32 {
        self.word(SLOT_HEADER)
    }

    /// Makes the slot empty, in the order that leaves no moment in which an old request looks like a new one.
    pub(crate) fn clear(&mut self) {
        self.request_len().store(0, Ordering::Release);
        self.word(0).store(0, Ordering::Release);
        self.received = 0;
    }

    /// Where the kernel writes the next request, which will come from the descriptor `device`.
    pub(crate) fn buffer(&mut self, device: usize) -> &mut [u8] {
        self.clear();
        self.redirect(device, 0);
        // SAFETY: the slot's range, borrowed exclusively.
        unsafe {
            std::slice::from_raw_parts_mut(self.start.add(SLOT_HEADER).as_ptr(), self.length - SLOT_HEADER)
        }
    }

    /// Says that a request of `length` bytes has been read into [`Slot::buffer`].
    pub(crate) fn set_received(&mut self, length: usize) {
        self.received = length.min(self.length - SLOT_HEADER);
    }

    /// Copies the request of `from` and then clears that. In between it is there twice; recovery counts it once.
    pub(crate) fn move_from(&mut self, from: &mut Slot) {
        let device = from.device();
        let source = from.request();
        let length = source.len();
        let target = self.buffer(device);
        // Everything but `len`, which completes the copy.
        target[4..length].copy_from_slice(&source[4..]);
        self.request_len().store(length as u32, Ordering::Release);
        self.received = length;
        from.clear();
    }

    /// The request.
    pub(crate) fn request(&self) -> &[u8] {
        // SAFETY: `received` is at most the room behind the header; nobody writes while `self` is borrowed: the kernel
        // only does between `buffer` and `set_received`.
        unsafe { std::slice::from_raw_parts(self.start.add(SLOT_HEADER).as_ptr(), self.received) }
    }

    /// Index of the descriptor that the request was read from.
    pub(crate) fn device(&self) -> usize {
        self.word(4).load(Ordering::Acquire) as usize
    }

    fn alias(&self) -> &AtomicU64 {
        // SAFETY: inside the slot's header, aligned (slots begin at multiples of 512), lives as long as `self`.
        unsafe { AtomicU64::from_ptr(self.start.add(ALIAS_OFFSET).cast().as_ptr()) }
    }

    /// Says that the kernel has sent the request a second time: the reply goes to `device`, for `unique`.
    pub(crate) fn redirect(&self, device: usize, unique: u64) {
        self.word(4).store(device as u32, Ordering::Release);
        self.alias().store(unique, Ordering::Release);
    }

    /// The `unique` of the request that is or was here last: clearing leaves it.
    pub(crate) fn last_unique(&self) -> u64 {
        // SAFETY: behind the slot's header, aligned (slots begin at multiples of 512), lives as long as `self`.
        unsafe { AtomicU64::from_ptr(self.start.add(SLOT_HEADER + 8).cast().as_ptr()) }
            .load(Ordering::Relaxed)
    }

    /// The `unique` that the reply has to carry; 0 if the slot is empty.
    pub(crate) fn reply_unique(&self) -> u64 {
        match self.alias().load(Ordering::Acquire) {
            0 => Header::parse(self.request()).map_or(0, |header| header.unique),
            alias => alias,
        }
    }

    /// Stores the reply and marks the request as done. False where it is too long, which only replies of reads are.
    pub(crate) fn store_result(&mut self, head: &[u8], body: &[u8]) -> bool {
        let total = head.len() + body.len();
        if total > RESULT_CAPACITY {
            return false;
        }
        // SAFETY: the result's range inside the slot, borrowed exclusively.
        let room = unsafe {
            std::slice::from_raw_parts_mut(self.start.add(RESULT_OFFSET).as_ptr(), RESULT_CAPACITY)
        };
        room[..head.len()].copy_from_slice(head);
        room[head.len()..total].copy_from_slice(body);
        self.word(8).store(total as u32, Ordering::Release);
        self.word(0).store(1, Ordering::Release);
        true
    }

    /// How far the request has come.
    pub(crate) fn state(&self) -> State {
        if self.word(0).load(Ordering::Acquire) == 1 { State::Applied } else { State::Read }
    }

    /// The stored reply.
    pub(crate) fn result(&self) -> &[u8] {
        let length = (self.word(8).load(Ordering::Acquire) as usize).min(RESULT_CAPACITY);
        // SAFETY: inside the slot; written only through `&mut self`.
        unsafe { std::slice::from_raw_parts(self.start.add(RESULT_OFFSET).as_ptr(), length) }
    }

    /// Finds what the process before left here: the length of a whole request, if there is one.
    pub(crate) fn find_left(&mut self) -> Option<usize> {
        let length = self.request_len().load(Ordering::Acquire) as usize;
        let whole = (IN_HEADER_SIZE..=self.length - SLOT_HEADER).contains(&length);
        whole.then(|| {
            self.received = length;
            length
        })
    }

    /// Leaves the request in the slot for a successor; the slot is not used again by this process.
    pub(crate) fn leave(mut self) {
        self.keep = true;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if !self.keep {
            self.clear();
            self.slots.give_back(self.index);
        }
    }
}
