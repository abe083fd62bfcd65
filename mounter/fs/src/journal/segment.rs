//! Segments: preallocated files mapped into memory. The one place of this crate with `unsafe`.
//!
//! Who may touch which bytes:
//! - below `published` nothing is written as long as an [`Arc<Segment>`] exists: readers take plain slices of it;
//! - at and above `published` only the one [`Tail`] of the segment writes;
//! - the header's words are accessed atomically only.
//!
//! A segment becomes a [`Spare`] again, and its bytes writable, only by value: when nobody else holds it.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io,
    num::NonZeroUsize,
    os::fd::AsFd,
    path::{Path, PathBuf},
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use nix::{
    fcntl::FallocateFlags,
    sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap},
};
use parking_lot::Mutex;
use tarbox_types::Seq;

use super::{
    JournalError,
    format::{
        self, Frame, SEGMENT_HEADER, SEGMENT_MAGIC, SegmentHeader, commit_word, encode_frame, encode_header,
        frame_bytes,
    },
};
use crate::effect_codec;

/// Every so many records a segment remembers where one stands.
const INDEX_STEP: u64 = 32;

/// The lock on a journal's directory: held as long as anything of it is mapped.
pub(super) type DirectoryLock = Arc<LockedDirectory>;

/// An open directory with a lock on it.
pub(super) struct LockedDirectory(pub(super) File);

impl Drop for LockedDirectory {
    fn drop(&mut self) {
        // Closing alone would leave it locked while a child, forked and not yet executing, has the descriptor too.
        let _ = self.0.unlock();
    }
}

// === Mapping ===

/// A whole file, mapped shared and writable.
pub(super) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is reachable from any thread; who may access which part is what the module's doc says.
unsafe impl Send for Mapping {}
// SAFETY: as above; shared access is by atomics, or to bytes that nobody writes.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `file`, which must have them: an access beyond its end would kill the process.
    pub(super) fn new(file: &File, len: usize) -> io::Result<Self> {
        if file.metadata()?.len() < len as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let size = NonZeroUsize::new(len).ok_or(io::ErrorKind::UnexpectedEof)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing in this process.
        let base = unsafe { mmap(None, size, access, MapFlags::MAP_SHARED, file, 0) }?;
        Ok(Self { base: base.cast(), len })
    }

    /// Word at `at` (a multiple of 8).
    pub(super) fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at + 8 <= self.len, "word {at} of a mapping of {} bytes", self.len);
        // SAFETY: inside the mapping, aligned (its base is page-aligned), and words are accessed atomically only.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(at).cast()) }
    }

    /// # Safety
    /// Nobody writes these bytes while the slice lives.
    unsafe fn slice(&self, from: usize, to: usize) -> &[u8] {
        assert!(from <= to && to <= self.len, "bytes {from}..{to} of a mapping of {} bytes", self.len);
        // SAFETY: inside the mapping; not written, says the caller.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(from), to - from) }
    }

    /// # Safety
    /// Nobody else accesses these bytes meanwhile.
    unsafe fn fill(&self, at: usize, bytes: &[u8]) {
        assert!(
            at <= self.len && bytes.len() <= self.len - at,
            "write at {at} beyond a mapping of {}",
            self.len
        );
        // SAFETY: inside the mapping; exclusive, says the caller; the source is not in it or lies below `published`.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.as_ptr().add(at), bytes.len()) }
    }

    /// Takes the pages out of this process (the file keeps them).
    fn release_pages(&self) {
        // SAFETY: the mapping is shared and backed by a file: its bytes stay what they are.
        let _ = unsafe { madvise(self.base.cast(), self.len, MmapAdvise::MADV_DONTNEED) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; slices borrow from `self`, so none is left.
        let _ = unsafe { munmap(self.base.cast(), self.len) };
    }
}

// === Spare ===

/// A segment file that holds nothing.
pub(super) struct Spare {
    map: Mapping,
    path: PathBuf,
    lock: DirectoryLock,
}

impl Spare {
    /// Allocates a segment file. It appears under its name only when it has all its bytes.
    pub(super) fn create(path: PathBuf, bytes: u64, lock: DirectoryLock) -> Result<Self, JournalError> {
        let new = path.with_extension("new");
        let made = allocate(&new, bytes).and_then(|file| {
            let map = Mapping::new(&file, bytes as usize).map_err(io_error("map", &new))?;
            std::fs::rename(&new, &path).map_err(io_error("rename", &new))?;
            Ok(map)
        });
        match made {
            Ok(map) => Ok(Self { map, path, lock }),
            Err(error) => {
                let _ = std::fs::remove_file(&new);
                Err(error)
            }
        }
    }

    /// A segment file as found; what is in it is looked at with [`Spare::bytes`].
    pub(super) fn found(path: PathBuf, file: &File, bytes: usize, lock: DirectoryLock) -> io::Result<Self> {
        Ok(Self { map: Mapping::new(file, bytes)?, path, lock })
    }

    /// Its bytes as they stand.
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: a spare is owned by one and written only through `&mut self` or by value.
        unsafe { self.map.slice(0, self.map.len) }
    }

    pub(super) fn len(&self) -> u64 {
        self.map.len as u64
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Marks it as holding nothing.
    pub(super) fn blank(&mut self) {
        self.map.word(0).store(0, Ordering::Release);
    }

    /// Clears everything from `from` on.
    pub(super) fn wipe(&mut self, from: usize) {
        const ZEROS: [u8; 4096] = [0; 4096];
        for at in (from..self.map.len).step_by(ZEROS.len()) {
            let len = ZEROS.len().min(self.map.len - at);
            // SAFETY: borrowed exclusively, so nobody else has access.
            unsafe { self.map.fill(at, &ZEROS[..len]) };
        }
    }

    /// Puts it to use. The magic word goes last: a kill in between leaves a spare.
    pub(super) fn activate(mut self, header: SegmentHeader) -> (Arc<Segment>, Tail) {
        self.blank();
        let bytes = encode_header(&header);
        // SAFETY: owned by value, so nobody else has access.
        unsafe { self.map.fill(8, &bytes[8..]) };
        self.map.word(SEGMENT_HEADER).store(0, Ordering::Relaxed);
        self.map.word(0).store(SEGMENT_MAGIC.to_le(), Ordering::Release);
        let last_seq = header.first_seq.wrapping_sub(1);
        let none =
            Frames { end: SEGMENT_HEADER, last_seq, index: Vec::new(), uniques: NO_UNIQUES, unverified: 0 };
        self.resume(header, none)
    }

    /// Takes up a segment in use; what is behind its frames is cut.
    pub(super) fn resume(self, header: SegmentHeader, frames: Frames) -> (Arc<Segment>, Tail) {
        let Frames { end, last_seq, index, uniques, unverified } = frames;
        if end + 8 <= self.map.len {
            self.map.word(end).store(0, Ordering::Release);
        }
        let segment = Arc::new(Segment {
            map: self.map,
            path: self.path,
            lock: self.lock,
            header,
            unverified,
            published: AtomicUsize::new(end),
            last_seq: AtomicU64::new(last_seq),
            index: Mutex::new(index),
            uniques: (AtomicU64::new(uniques.0), AtomicU64::new(uniques.1)),
        });
        (Arc::clone(&segment), Tail { segment, at: end })
    }

    /// Removes the file.
    pub(super) fn remove(self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn allocate(path: &Path, bytes: u64) -> Result<File, JournalError> {
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .map_err(io_error("create", path))?;
    // posix_fallocate(3) would write zeros where the file system cannot allocate; that is right here too,
    // but nix offers only the system call, and every file system that makes sense here has it.
    nix::fcntl::fallocate(file.as_fd(), FallocateFlags::empty(), 0, bytes as libc::off_t).map_err(
        |errno| JournalError::NoRoom {
            dir: path.parent().unwrap_or(path).to_owned(),
            bytes,
            source: errno.into(),
        },
    )?;
    Ok(file)
}

pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JournalError {
    let path = path.to_owned();
    move |source| JournalError::Io { action, path, source }
}

// === Segment ===

/// What is in a segment.
pub(super) struct Frames {
    /// Byte after the last one.
    pub(super) end: usize,
    /// Number of the last one; one less than the first where there is none.
    pub(super) last_seq: Seq,
    /// Where some stand, ascending.
    pub(super) index: Vec<(Seq, u32)>,
    /// Lowest and highest `unique` of their records.
    pub(super) uniques: (u64, u64),
    /// Up to this number checksums were not verified.
    pub(super) unverified: Seq,
}

/// A segment in use.
pub(super) struct Segment {
    map: Mapping,
    path: PathBuf,
    lock: DirectoryLock,
    header: SegmentHeader,
    /// As [`Frames::unverified`].
    unverified: Seq,
    /// Byte after the last frame.
    published: AtomicUsize,
    /// Number of the last frame; one less than the first where there is none.
    last_seq: AtomicU64,
    /// Where some frames stand, ascending.
    index: Mutex<Vec<(Seq, u32)>>,
    /// Lowest and highest `unique` of its records.
    uniques: (AtomicU64, AtomicU64),
}

/// [`Segment::uniques`] where there are none.
pub(super) const NO_UNIQUES: (u64, u64) = (u64::MAX, 0);

impl Segment {
    /// Bytes of frames, by their place in the file.
    pub(super) fn bytes(&self, from: usize, to: usize) -> &[u8] {
        assert!(SEGMENT_HEADER <= from && to <= self.end(), "bytes {from}..{to} are no frames");
        // SAFETY: between the header and `published` nothing is written as long as a `Segment` exists.
        unsafe { self.map.slice(from, to) }
    }

    /// Byte after the last frame.
    pub(super) fn end(&self) -> usize {
        self.published.load(Ordering::Acquire)
    }

    pub(super) fn len(&self) -> u64 {
        self.map.len as u64
    }

    pub(super) fn ordinal(&self) -> u64 {
        self.header.ordinal
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn first_seq(&self) -> Seq {
        self.header.first_seq
    }

    pub(super) fn last_seq(&self) -> Seq {
        self.last_seq.load(Ordering::Acquire)
    }

    pub(super) fn format(&self) -> u32 {
        self.header.format
    }

    pub(super) fn nonce(&self) -> u64 {
        self.header.nonce
    }

    /// Whether one of its records was made by the request `unique` of its connection.
    pub(super) fn answers(&self, unique: u64) -> bool {
        let (lowest, highest) =
            (self.uniques.0.load(Ordering::Acquire), self.uniques.1.load(Ordering::Acquire));
        (lowest..=highest).contains(&unique)
            && self.frames().any(|frame| {
                effect_codec::unique_of(self.record(&frame)).map(effect_codec::request_of) == Ok(unique)
            })
    }

    fn frames(&self) -> impl Iterator<Item = Frame> {
        let first = self.frame(SEGMENT_HEADER);
        std::iter::successors(first, |frame| self.frame(frame.next))
    }

    /// The frame at `at`, which is a boundary; `None` at the end.
    pub(super) fn frame(&self, at: usize) -> Option<Frame> {
        let frames = self.bytes(SEGMENT_HEADER, self.end());
        format::frame_layout(frames, at.checked_sub(SEGMENT_HEADER)?)
            .map(|frame| frame.shifted(SEGMENT_HEADER))
    }

    /// Whether the frame at `at` is as it was written; what was verified when the segment was taken up is not verified again.
    pub(super) fn is_sound(&self, at: usize, frame: &Frame) -> bool {
        frame.seq > self.unverified || format::is_sound(self.bytes(at, frame.payload.end), self.header.salt)
    }

    /// The record of a frame.
    pub(super) fn record(&self, frame: &Frame) -> &[u8] {
        self.bytes(frame.record.start, frame.record.end)
    }

    /// Where the frame `seq` stands; the end where it is not there yet.
    pub(super) fn locate(&self, seq: Seq) -> usize {
        let mut at = {
            let index = self.index.lock();
            let next = index.partition_point(|&(known, _)| known <= seq);
            next.checked_sub(1).map_or(SEGMENT_HEADER, |known| index[known].1 as usize)
        };
        while let Some(frame) = self.frame(at)
            && frame.seq < seq
        {
            at = frame.next;
        }
        at
    }

    /// Marks the file as holding nothing, while slices of the frames may still be read.
    pub(super) fn blank(&self) {
        self.map.word(0).store(0, Ordering::Release);
    }

    /// A spare again, now that nobody else holds it.
    pub(super) fn into_spare(self) -> Spare {
        let mut spare = Spare { map: self.map, path: self.path, lock: self.lock };
        spare.blank();
        spare
    }

    /// Lets go of the pages that this process has mapped.
    pub(super) fn release_pages(&self) {
        self.map.release_pages();
    }
}

/// Whether the frame `seq` of a segment belongs in its index.
pub(super) fn is_indexed(seq: Seq) -> bool {
    seq.is_multiple_of(INDEX_STEP)
}

// === Tail ===

/// The right to append to a segment: there is one per segment.
pub(super) struct Tail {
    segment: Arc<Segment>,
    at: usize,
}

impl Tail {
    /// Whether a frame fits.
    pub(super) fn fits(&self, record: usize, payload: usize) -> bool {
        frame_bytes(record, payload) <= self.segment.map.len - self.at
    }

    pub(super) fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    /// Writes a frame that [`Tail::fits`], and returns where its payload stands.
    ///
    /// The commit word is stored last and the word behind the frame is cleared before it,
    /// so that a kill at any instruction leaves the frame with a clean end, or nothing.
    pub(super) fn append(&mut self, seq: Seq, unique: u64, record: &[u8], payload: [&[u8]; 2]) -> usize {
        let [bytes, note] = payload;
        let len = bytes.len() + note.len();
        assert!(self.fits(record.len(), len), "a frame that does not fit its segment");
        let map = &self.segment.map;
        let at = self.at;
        let next = at + frame_bytes(record.len(), len);
        let body = at + format::FRAME_HEADER;
        let head = encode_frame(self.segment.header.salt, seq, record, payload);
        // SAFETY: at and above `published` only the one tail of a segment writes, and nobody reads.
        unsafe {
            map.fill(at + 8, &head);
            map.fill(body, record);
            map.fill(body + record.len(), bytes);
            map.fill(body + record.len() + bytes.len(), note);
        }
        if next + 8 <= map.len {
            map.word(next).store(0, Ordering::Relaxed);
        }
        map.word(at).store(commit_word(record.len(), len).to_le(), Ordering::Release);
        if is_indexed(seq) {
            self.segment.index.lock().push((seq, at as u32));
        }
        let unique = effect_codec::request_of(unique);
        if unique != 0 {
            self.segment.uniques.0.fetch_min(unique, Ordering::Release);
            self.segment.uniques.1.fetch_max(unique, Ordering::Release);
        }
        self.segment.last_seq.store(seq, Ordering::Release);
        self.segment.published.store(next, Ordering::Release);
        self.at = next;
        body + record.len()
    }
}
