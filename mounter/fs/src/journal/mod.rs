//! The journal of one tenant: what was done and is not in the database yet.
//!
//! A directory (tmpfs or disk) with preallocated segments mapped into memory. A record is there as soon as one word is stored,
//! so a kill at any instruction leaves it whole or not at all. Payloads are copied once, into the segment; everybody else
//! holds a [`Payload`], which pins its segment.
//!
//! ```text
//! spare ──append──► used ──all committed, not retained──► spare (recycled)
//!   ▲                 └── … but pinned ──► pinned ──unpinned──┘
//!   │   (and none of them answers a request whose result is not safe: see `Shared::is_awaited`)
//!   └ fallocate, up to max_bytes; surplus unlinked by trim
//! ```
//!
//! [`Journal`] appends and has one owner; [`JournalReader`] reads, pins, and takes note of commits beside it.
//! Lock order: the caller's lock around `Journal`, then the chain's, then a segment's index. None is held during I/O.

mod control;
mod directory;
mod error;
mod format;
mod payload;
mod reader;
mod recovery;
mod segment;

use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tarbox_store::{Fence, Lease};
use tarbox_types::{Connection, Epoch, Seq};

pub use error::{AppendError, JournalError};
pub use payload::Payload;
pub use reader::{JournalReader, Records, Recovered};
pub use recovery::{Cut, Opened, Reason, Rejected, Told};

use self::{control::ControlFile, reader::Shared, segment::Tail};
use crate::{effect::Record, effect_codec};

pub use format::FORMAT;
/// The usual size of a segment.
pub const SEGMENT_BYTES: u64 = 8 << 20;
/// The least size of a segment: a record of 64 KiB with a payload of 1 MiB fits.
pub const MIN_SEGMENT_BYTES: u64 = 2 << 20;
/// The largest size of a segment: offsets in it have 32 bits.
pub const MAX_SEGMENT_BYTES: u64 = 1 << 30;

/// Ages of records are kept this exactly.
const AGE_STEP: Duration = Duration::from_millis(5);

/// Where a journal is and how large it may become.
#[derive(Clone, Debug)]
pub struct JournalConfig {
    /// Directory, of this journal alone, on a file system that overwrites allocated blocks in place (tmpfs, ext4, xfs;
    /// not btrfs, where a full device would kill the process); made with mode 0700 if it is not there. Its parent takes journals set aside.
    pub dir: PathBuf,
    /// Bytes per segment ([`SEGMENT_BYTES`]); brought into [`MIN_SEGMENT_BYTES`] to [`MAX_SEGMENT_BYTES`], rounded up to
    /// pages, and at most a quarter of `max_bytes` where that is possible.
    pub segment_bytes: u64,
    /// The most that all segments take (`journalSize`); never less than one segment.
    pub max_bytes: u64,
}

/// Whose records the journal may hold, and what the database has.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Our lease.
    pub fence: Fence,
    /// The lease before ours: what a dead process left was written under it (or under ours).
    pub previous: Fence,
    /// Epoch of the database's last commit: what was written under a lease since then, before ours, goes on where the
    /// database stands, even if later leases have come and gone without a word.
    pub committed_epoch: Epoch,
    /// The database's position: later records are to be replayed.
    pub seq: Seq,
}

impl From<&Lease> for Identity {
    fn from(lease: &Lease) -> Self {
        Self {
            fence: lease.fence.clone(),
            previous: lease.previous.clone(),
            committed_epoch: lease.committed_epoch,
            seq: lease.tenant.seq,
        }
    }
}

/// A record just appended.
#[derive(Clone, Debug)]
pub struct Appended {
    /// Its number.
    pub seq: Seq,
    /// Its payload, where it stands in the journal.
    pub payload: Payload,
}

/// The appending end of a journal. Dropping it leaves the files as they are, for a successor.
pub struct Journal {
    shared: Arc<Shared>,
    control: ControlFile,
    /// Binds the segments to the control file.
    id: u128,
    /// `None` until the first record after an open that did not go on in the last segment.
    tail: Option<Tail>,
    next_ordinal: u64,
    last_age: Option<Instant>,
    scratch: Vec<u8>,
}

impl Journal {
    /// Opens the journal, taking up what a dead process left.
    ///
    /// The records after [`Identity::seq`] stay in the journal, uncommitted, with their numbers: they are to be applied to the
    /// tree ([`Opened::replay`]) and then committed like any others. A journal of somebody else, or one that begins beyond the
    /// database's position, is renamed to `<dir>.rejected-<epoch>-<n>` and reported in [`Opened::rejected`]; a torn tail is cut
    /// and reported in [`Opened::cut`].
    ///
    /// # Errors
    /// Nothing on disk is changed by [`JournalError::Damaged`], [`JournalError::Incompatible`] or
    /// [`JournalError::Undecodable`], except that the journal now says that it belongs to `identity.fence`, so that trying again
    /// with the next lease finds it. [`JournalError::NoRoom`] where not even one segment can be allocated.
    pub fn open(config: &JournalConfig, identity: &Identity) -> Result<Opened, JournalError> {
        Self::open_for(config, identity, &Connection::default())
    }

    /// As [`Journal::open`], for a mount that may go on: [`Opened::told`] says which of the requests left on `connection` have
    /// been done. Until [`JournalReader::settled`] no record of that connection goes.
    ///
    /// # Errors
    /// As [`Journal::open`].
    pub fn open_for(
        config: &JournalConfig,
        identity: &Identity,
        connection: &Connection,
    ) -> Result<Opened, JournalError> {
        recovery::open(config, identity, connection)
    }

    /// Appends a record. What [`crate::effect::Effect::Write`] refers to is `payload`.
    ///
    /// When this returns, the record survives the death of the process. Numbers are consecutive.
    ///
    /// # Errors
    /// [`AppendError::Full`] or [`AppendError::NoRoom`]: wait for a commit. The journal is unchanged.
    pub fn append(&mut self, record: &Record, payload: &[u8]) -> Result<Appended, AppendError> {
        self.append_noted(record, payload, &[])
    }

    /// As [`Journal::append`], with a note behind the payload that no effect refers to.
    ///
    /// # Errors
    /// As [`Journal::append`].
    pub fn append_noted(
        &mut self,
        record: &Record,
        payload: &[u8],
        note: &[u8],
    ) -> Result<Appended, AppendError> {
        let mut body = std::mem::take(&mut self.scratch);
        body.clear();
        effect_codec::encode(record, &mut body);
        let appended = self.append_encoded(record.unique, &body, [payload, note]);
        self.scratch = body;
        appended
    }

    fn append_encoded(
        &mut self,
        unique: u64,
        body: &[u8],
        payload: [&[u8]; 2],
    ) -> Result<Appended, AppendError> {
        let nonce = self.shared.nonce;
        let len: usize = payload.iter().map(|piece| piece.len()).sum();
        // A segment answers requests of one connection only, and is of one format throughout.
        let fits = |tail: &Tail| {
            let segment = tail.segment();
            let is_ours = segment.nonce() == nonce && segment.format() == FORMAT.written();
            is_ours && tail.fits(body.len(), len)
        };
        if !self.tail.as_ref().is_some_and(fits) {
            self.rotate(body.len(), len)?;
        }
        let seq = self.last_seq() + 1;
        let tail = self.tail.as_mut().expect("rotate leaves a tail that fits");
        let at = tail.append(seq, unique, body, payload);
        let payload = Payload::new(tail.segment(), at, len);
        self.shared.last_seq.store(seq, Ordering::Release);
        self.control.reach(seq);
        self.note_age(seq);
        Ok(Appended { seq, payload })
    }

    /// Goes on in another segment, in which a frame of these lengths fits.
    fn rotate(&mut self, record: usize, payload: usize) -> Result<(), AppendError> {
        let bytes = format::frame_bytes(record, payload) as u64;
        let limit = self.shared.segment_bytes - format::SEGMENT_HEADER as u64;
        if bytes > limit {
            return Err(AppendError::TooLarge { bytes, limit });
        }
        let spare = self.next_spare(bytes)?;
        let header = format::SegmentHeader {
            format: FORMAT.written(),
            journal: self.id,
            ordinal: self.next_ordinal,
            first_seq: self.last_seq() + 1,
            bytes: spare.len(),
            salt: recovery::random() as u64,
            nonce: self.shared.nonce,
        };
        let (segment, tail) = spare.activate(header);
        self.next_ordinal += 1;
        let mut chain = self.shared.chain.lock();
        chain.in_hand -= segment.len();
        chain.used.push_back(segment);
        drop(chain);
        self.tail = Some(tail);
        Ok(())
    }

    /// A segment to go on in: a spare one, the oldest recycled, or a new one.
    fn next_spare(&mut self, bytes: u64) -> Result<segment::Spare, AppendError> {
        let fits = |spare: &segment::Spare| spare.len() >= bytes + format::SEGMENT_HEADER as u64;
        {
            let mut chain = self.shared.chain.lock();
            chain.unpin();
            if let Some(spare) = chain.take_spare(fits) {
                return Ok(spare);
            }
            let is_last = chain.used.len() == 1;
            if is_last && self.shared.is_free(&chain.used[0]) {
                // The only segment can be recycled too, once nobody can append to it.
                self.tail = None;
            }
            if (!is_last || self.tail.is_none())
                && self.shared.retire_oldest(&mut chain)
                && let Some(spare) = chain.take_spare(fits)
            {
                return Ok(spare);
            }
        }
        match self.shared.allocate() {
            Ok(Some(spare)) => Ok(spare),
            Ok(None) => Err(AppendError::Full { max_bytes: self.shared.max_bytes }),
            Err(error) => Err(AppendError::NoRoom(error)),
        }
    }

    fn note_age(&mut self, seq: Seq) {
        let now = Instant::now();
        if self.last_age.is_none_or(|last| now.duration_since(last) >= AGE_STEP) {
            self.last_age = Some(now);
            self.shared.chain.lock().note_age(seq, now);
        }
    }

    /// The handle for everybody else.
    #[must_use]
    pub fn reader(&self) -> JournalReader {
        JournalReader { shared: Arc::clone(&self.shared) }
    }

    /// [`JournalReader::last_seq`].
    #[must_use]
    pub fn last_seq(&self) -> Seq {
        self.shared.last_seq.load(Ordering::Acquire)
    }

    /// Ends the journal: when everything is committed its files and its directory are removed, else they stay for a successor.
    /// Whether they were removed.
    pub fn close(self) -> bool {
        let reader = self.reader();
        if reader.committed_seq() < reader.last_seq() {
            return false;
        }
        let mut chain = self.shared.chain.lock();
        // A kill in between leaves a journal with nothing to replay: the control file goes last.
        for segment in chain.used.drain(..) {
            segment.blank();
            let _ = std::fs::remove_file(segment.path());
        }
        for segment in chain.pinned.drain(..) {
            let _ = std::fs::remove_file(segment.path());
        }
        chain.spare.drain(..).for_each(segment::Spare::remove);
        drop(chain);
        let _ = std::fs::remove_file(control::path_in(&self.shared.dir));
        std::fs::remove_dir(&self.shared.dir).is_ok()
    }
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").field("dir", &self.shared.dir).field("last_seq", &self.last_seq()).finish()
    }
}

#[cfg(test)]
mod tests;
