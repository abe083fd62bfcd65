//! Reading a journal, and saying what is committed, beside the one who appends.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;
use tarbox_types::{Seq, Unanswered};

use super::{
    JournalError, Payload,
    segment::{DirectoryLock, Segment, Spare},
};
use crate::{effect::Record, effect_codec};

/// So many moments are kept at most.
const AGES_MAX: usize = 4096;

/// A record as it stands in the journal.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// Its number.
    pub seq: Seq,
    /// The record.
    pub record: Record,
    /// Its payload, pinned.
    pub payload: Payload,
}

/// The segments of a journal.
pub(super) struct Chain {
    /// In use, ascending; the last is appended to.
    pub(super) used: VecDeque<Arc<Segment>>,
    /// Out of use, but somebody still holds a payload.
    pub(super) pinned: Vec<Arc<Segment>>,
    /// Ready to be used.
    pub(super) spare: Vec<Spare>,
    /// Number in the name of the next file.
    pub(super) next_file: u32,
    /// Bytes of segments that are being allocated or put to use, while the lock is not held.
    pub(super) in_hand: u64,
    /// When records were appended: from that number on, not before that moment.
    pub(super) ages: VecDeque<(Seq, Instant)>,
}

impl Chain {
    /// Bytes of all segment files.
    pub(super) fn allocated(&self) -> u64 {
        let held = self.used.iter().chain(&self.pinned).map(|segment| segment.len()).sum::<u64>();
        held + self.spare.iter().map(Spare::len).sum::<u64>() + self.in_hand
    }

    /// Takes a spare that satisfies `fits` into the hand.
    pub(super) fn take_spare(&mut self, fits: impl FnMut(&Spare) -> bool) -> Option<Spare> {
        let at = self.spare.iter().position(fits)?;
        let spare = self.spare.swap_remove(at);
        self.in_hand += spare.len();
        Some(spare)
    }

    /// Notes that a record was appended. Few moments are kept: where there are too many, every second one goes,
    /// and its records count as older than they are.
    pub(super) fn note_age(&mut self, seq: Seq, now: Instant) {
        self.ages.push_back((seq, now));
        if self.ages.len() > AGES_MAX {
            let mut keep = false;
            self.ages.retain(|_| {
                keep = !keep;
                keep
            });
        }
    }

    /// Segments that nobody holds any more become spares.
    pub(super) fn unpin(&mut self) {
        for segment in std::mem::take(&mut self.pinned) {
            match Arc::try_unwrap(segment) {
                Ok(segment) => self.spare.push(segment.into_spare()),
                Err(segment) => self.pinned.push(segment),
            }
        }
    }
}

/// What appender and readers share.
pub(super) struct Shared {
    pub(super) dir: PathBuf,
    pub(super) lock: DirectoryLock,
    pub(super) segment_bytes: u64,
    pub(super) max_bytes: u64,
    pub(super) chain: Mutex<Chain>,
    pub(super) last_seq: AtomicU64,
    pub(super) committed: AtomicU64,
    pub(super) retain_from: AtomicU64,
    /// The connection that is served; 0 = unknown.
    pub(super) nonce: u64,
    /// Requests that a dead process left may still ask what they have been told.
    pub(super) recovering: AtomicBool,
    /// Requests of ours whose result is not safe yet.
    pub(super) unanswered: OnceLock<Arc<dyn Unanswered>>,
}

impl Shared {
    /// Whether every record of a segment is committed, need not be retained, and answers nobody any more.
    pub(super) fn is_free(&self, segment: &Segment) -> bool {
        let last = segment.last_seq();
        last <= self.committed.load(Ordering::Acquire)
            && last < self.retain_from.load(Ordering::Acquire)
            && !self.is_awaited(segment)
    }

    /// Whether a record of the segment was made by a request whose result is nowhere else yet: should this process die now,
    /// its successor has to find that it was done.
    fn is_awaited(&self, segment: &Segment) -> bool {
        if self.nonce == 0 || segment.nonce() != self.nonce {
            return false;
        }
        self.recovering.load(Ordering::Acquire)
            || self
                .unanswered
                .get()
                .is_some_and(|requests| requests.any(&mut |unique| segment.answers(unique)))
    }

    /// Takes the oldest segment out of use if every record in it is committed and need not be retained.
    /// Whether it did.
    pub(super) fn retire_oldest(&self, chain: &mut Chain) -> bool {
        if !chain.used.front().is_some_and(|segment| self.is_free(segment)) {
            return false;
        }
        let Some(segment) = chain.used.pop_front() else { return false };
        segment.blank();
        match Arc::try_unwrap(segment) {
            Ok(segment) => chain.spare.push(segment.into_spare()),
            Err(segment) => chain.pinned.push(segment),
        }
        true
    }

    /// Allocates a segment file if the limit allows it; it is [`Chain::in_hand`] then.
    /// The lock is not held meanwhile: it can take milliseconds.
    pub(super) fn allocate(&self) -> Result<Option<Spare>, JournalError> {
        let path = {
            let mut chain = self.chain.lock();
            if chain.allocated() + self.segment_bytes > self.max_bytes.max(self.segment_bytes) {
                return Ok(None);
            }
            chain.in_hand += self.segment_bytes;
            chain.next_file += 1;
            self.dir.join(format!("segment-{:08x}", chain.next_file))
        };
        let made = Spare::create(path, self.segment_bytes, Arc::clone(&self.lock));
        made.map(Some).inspect_err(|_| self.chain.lock().in_hand -= self.segment_bytes)
    }
}

/// A handle to a journal for everybody but the one who appends. Cheap to clone; needs no lock of the caller.
///
/// While one exists, the journal's directory stays locked.
#[derive(Clone)]
pub struct JournalReader {
    pub(super) shared: Arc<Shared>,
}

impl JournalReader {
    /// Number of the last record; where there is none, of what the database has.
    #[must_use]
    pub fn last_seq(&self) -> Seq {
        self.shared.last_seq.load(Ordering::Acquire)
    }

    /// Up to where the records are committed.
    #[must_use]
    pub fn committed_seq(&self) -> Seq {
        self.shared.committed.load(Ordering::Acquire)
    }

    /// Says that the database holds all records up to `seq`: their segments may be used again.
    pub fn committed(&self, seq: Seq) {
        let seq = seq.min(self.last_seq());
        let done = self.shared.committed.fetch_max(seq, Ordering::AcqRel).max(seq);
        let ages = &mut self.shared.chain.lock().ages;
        while ages.get(1).is_some_and(|&(next, _)| next <= done + 1) {
            ages.pop_front();
        }
    }

    /// Keeps records from `seq` on readable even when they are committed (at the beginning: none has to be kept,
    /// though they are until their segment is needed). What is kept counts against the journal's size.
    pub fn retain_from(&self, seq: Seq) {
        self.shared.retain_from.store(seq, Ordering::Release);
    }

    /// Keeps committed records, too, as long as the request that made one may be asked for again.
    pub fn keep_for(&self, requests: Arc<dyn Unanswered>) {
        // Set once: a second session goes on with the same requests.
        let _ = self.shared.unanswered.set(requests);
    }

    /// Every request that a dead process left has been taken on.
    pub fn settled(&self) {
        self.shared.recovering.store(false, Ordering::Release);
    }

    /// Not earlier than this the oldest record was appended that is not committed (exact to 5 ms); `None` = all are.
    #[must_use]
    pub fn oldest_uncommitted_at(&self) -> Option<Instant> {
        let chain = self.shared.chain.lock();
        if self.last_seq() <= self.committed_seq() {
            return None;
        }
        let oldest = self.committed_seq() + 1;
        chain.ages.iter().take_while(|&&(from, _)| from <= oldest).last().map(|&(_, at)| at)
    }

    /// Bytes that only commits can free: from the beginning of the segment with the oldest uncommitted record on.
    #[must_use]
    pub fn bytes_in_use(&self) -> u64 {
        let chain = self.shared.chain.lock();
        let done = self.committed_seq();
        let waiting = chain.used.iter().filter(|segment| segment.last_seq() > done);
        let last = chain.used.len().saturating_sub(1);
        // All but the last are full as far as anybody is concerned.
        let room = |segment: &Arc<Segment>| match Arc::ptr_eq(segment, &chain.used[last]) {
            true => segment.end() as u64,
            false => segment.len(),
        };
        waiting.map(room).sum()
    }

    /// Bytes of all segment files.
    #[must_use]
    pub fn bytes_allocated(&self) -> u64 {
        self.shared.chain.lock().allocated()
    }

    /// The most bytes that the segment files may take.
    #[must_use]
    pub fn max_bytes(&self) -> u64 {
        self.shared.max_bytes
    }

    /// The records `after < seq <= to` that are there, in order.
    #[must_use]
    pub fn read_range(&self, after: Seq, to: Seq) -> Records {
        let to = to.min(self.last_seq());
        let chain = self.shared.chain.lock();
        let wanted =
            chain.used.iter().filter(|segment| segment.last_seq() > after && segment.first_seq() <= to);
        let segments = wanted.cloned().collect::<VecDeque<_>>();
        drop(chain);
        let at = segments.front().map_or(0, |first| first.locate(after.saturating_add(1)));
        Records { segments, at, to }
    }

    /// All records after `seq`; `None` where they are no longer all there.
    #[must_use]
    pub fn records_after(&self, seq: Seq) -> Option<Records> {
        let last = self.last_seq();
        if seq > last {
            return None;
        }
        // The segments are pinned first: what is in them can no longer go.
        let records = self.read_range(seq, last);
        let first = records.segments.front().map(|segment| segment.first_seq());
        (seq == last || first.is_some_and(|first| first <= seq + 1)).then_some(records)
    }

    /// Whether the segment that is appended to is more than half full and no other is ready.
    #[must_use]
    pub fn wants_spare(&self) -> bool {
        let mut chain = self.shared.chain.lock();
        chain.unpin();
        let filled = chain.used.back().is_some_and(|last| last.end() as u64 * 2 > last.len());
        filled && chain.spare.is_empty()
    }

    /// Makes a spare segment ready, so that no append has to wait for its allocation. To be called where it may take
    /// milliseconds, when [`JournalReader::wants_spare`] says so. Whether one is ready now.
    ///
    /// # Errors
    /// [`JournalError::NoRoom`]: the journal goes on with what it has.
    pub fn add_spare(&self) -> Result<bool, JournalError> {
        {
            let mut chain = self.shared.chain.lock();
            if !chain.spare.is_empty() || (chain.used.len() > 1 && self.shared.retire_oldest(&mut chain)) {
                return Ok(!chain.spare.is_empty());
            }
        }
        let Some(spare) = self.shared.allocate()? else { return Ok(false) };
        let mut chain = self.shared.chain.lock();
        chain.in_hand -= spare.len();
        chain.spare.push(spare);
        Ok(true)
    }

    /// Gives back segments whose records are committed and not retained, but for the last of them: from that one a database that was set
    /// back a little can be caught up with. Whoever takes the journal up reads all that is left in it, and applications wait meanwhile.
    pub fn retire(&self) {
        let mut chain = self.shared.chain.lock();
        while chain.used.len() > 2
            && self.shared.is_free(&chain.used[1])
            && self.shared.retire_oldest(&mut chain)
        {}
    }

    /// Frees what an idle journal does not need: all segments but the one that is appended to, as far as their records are
    /// committed and not retained.
    pub fn trim(&self) {
        let mut chain = self.shared.chain.lock();
        while chain.used.len() > 1 && self.shared.retire_oldest(&mut chain) {}
        chain.unpin();
        let keep = usize::from(chain.used.is_empty()).min(chain.spare.len());
        let surplus = chain.spare.split_off(keep);
        if self.committed_seq() == self.last_seq()
            && let Some(last) = chain.used.back()
        {
            last.release_pages();
        }
        drop(chain);
        surplus.into_iter().for_each(Spare::remove);
    }
}

/// Records in order; pins what it has still to read.
pub struct Records {
    segments: VecDeque<Arc<Segment>>,
    at: usize,
    to: Seq,
}

impl Records {
    fn read(
        segment: &Arc<Segment>,
        at: usize,
        frame: &super::format::Frame,
    ) -> Result<Recovered, JournalError> {
        let record =
            effect_codec::decode(segment.record(frame)).map_err(|source| JournalError::Undecodable {
                file: segment.path().to_owned(),
                offset: at as u64,
                seq: frame.seq,
                source,
            })?;
        let payload = Payload::new(segment, frame.payload.start, frame.payload.len());
        Ok(Recovered { seq: frame.seq, record, payload })
    }
}

impl Iterator for Records {
    type Item = Result<Recovered, JournalError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let segment = self.segments.front()?;
            match segment.frame(self.at) {
                Some(frame) if frame.seq > self.to => return None,
                Some(frame) if !segment.is_sound(self.at, &frame) => {
                    let damaged = JournalError::unsound(segment.path(), self.at, frame.seq);
                    self.segments.clear();
                    return Some(Err(damaged));
                }
                Some(frame) => {
                    let item = Self::read(segment, self.at, &frame);
                    self.at = frame.next;
                    return Some(item);
                }
                None => {
                    self.segments.pop_front();
                    self.at = super::format::SEGMENT_HEADER;
                }
            }
        }
    }
}
