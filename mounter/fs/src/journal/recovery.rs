//! Opening a journal: whose it is, what can be read, and what follows from it.

use std::{
    collections::VecDeque,
    fs::File,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64},
    },
    time::Instant,
};

use parking_lot::Mutex;
use tarbox_types::{Connection, Epoch, Seq, TenantId};

use super::{
    Identity, Journal, JournalConfig, JournalError, JournalReader, MAX_SEGMENT_BYTES, MIN_SEGMENT_BYTES,
    Records,
    control::{self, Control, Owner},
    directory::{highest_file, lock_directory, look, segment_files, set_aside},
    format::{self, Frame, HeaderFound, SEGMENT_HEADER, SegmentHeader},
    reader::{Chain, Shared},
    segment::{DirectoryLock, Frames, NO_UNIQUES, Spare, io_error, is_indexed},
};
use crate::{effect::Outcome, effect_codec};

/// An open journal, and what was found.
#[derive(Debug)]
pub struct Opened {
    /// The journal.
    pub journal: Journal,
    /// Records to be replayed: `(after, to)` for [`JournalReader::read_range`]; empty where they are equal.
    pub replay: (Seq, Seq),
    /// A journal that was set aside.
    pub rejected: Option<Rejected>,
    /// A torn tail that was cut off.
    pub cut: Option<Cut>,
    /// Requests left on the connection that have been done: these records made them, committed or not.
    pub told: Vec<Told>,
    /// Requests left on the connection that have changed nothing, and whose audit is in the journal already.
    pub audited: Vec<u64>,
}

/// What a request that was left has been told, or was to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Its `unique`.
    pub unique: u64,
    /// Number of the record that it made.
    pub seq: Seq,
    /// What its caller is told.
    pub outcome: Outcome,
}

impl Opened {
    /// The records to be replayed, in order; their checksums were verified. They are not collected because there may be millions.
    #[must_use]
    pub fn recovered(&self) -> Records {
        self.journal.reader().read_range(self.replay.0, self.replay.1)
    }
}

/// A journal that was set aside: its records were acknowledged, and are not replayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Where it is now.
    pub path: PathBuf,
    /// Why.
    pub reason: Reason,
}

/// Why a journal was set aside.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// It belongs to another tenant.
    #[error("it belongs to tenant {0}")]
    Tenant(TenantId),
    /// It was written under a lease that is neither ours nor the one before.
    #[error(
        "it was written under the lease of epoch {epoch}, which is not the one before ours: others may have written since"
    )]
    Fence {
        /// Epoch of that lease.
        epoch: Epoch,
    },
    /// Records between the database's position and its first one are missing.
    #[error(
        "it begins with record {first}, but the database stands at {database}: records between are missing"
    )]
    Gap {
        /// First record.
        first: Seq,
        /// The database's position.
        database: Seq,
    },
}

/// A tail that was cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// File.
    pub file: PathBuf,
    /// From this byte on.
    pub offset: u64,
    /// First record that is gone.
    pub seq: Seq,
}

/// A number that nobody else has.
pub(super) fn random() -> u128 {
    TenantId::random().0.as_u128()
}

pub(super) fn open(
    config: &JournalConfig,
    identity: &Identity,
    connection: &Connection,
) -> Result<Opened, JournalError> {
    let mut lock = lock_directory(&config.dir)?;
    let mut rejected = None;
    let mut found = Found::default();
    if let Some((control, files)) = look(&config.dir)? {
        if let Some(reason) = foreign(&control, identity) {
            (lock, rejected) = set_aside(&config.dir, lock, &files, control.owner.epoch, reason)?;
        } else {
            match take_up(config, identity, connection, &control, files, &lock)? {
                Ok(taken) => found = taken,
                Err(reason) => {
                    let files = segment_files(&config.dir)?;
                    (lock, rejected) = set_aside(&config.dir, lock, &files, control.owner.epoch, reason)?;
                }
            }
        }
    }
    let (cut, replay) = (found.cut.clone(), (identity.seq, found.last_seq.max(identity.seq)));
    let told = std::mem::take(&mut found.told);
    let audited = std::mem::take(&mut found.audited);
    let journal = begin(config, identity, connection, lock, found)?;
    Ok(Opened { journal, replay, rejected, cut, told, audited })
}

fn foreign(control: &Control, identity: &Identity) -> Option<Reason> {
    let owner = control.owner;
    if owner.tenant != identity.fence.tenant.0.as_u128() {
        return Some(Reason::Tenant(owner.tenant()));
    }
    let known = [&identity.fence, &identity.previous].map(Owner::of);
    // A lease whose holder died before it opened the journal stands between the journal's and ours, and committed nothing.
    let is_between = (identity.committed_epoch..identity.previous.epoch).contains(&owner.epoch);
    (!known.contains(&owner) && !is_between).then_some(Reason::Fence { epoch: owner.epoch })
}

// === Reading ===

/// What an earlier process left.
#[derive(Default)]
struct Found {
    /// Segments in order, each with what was verified.
    used: VecDeque<Verified>,
    spare: Vec<Spare>,
    last_seq: Seq,
    cut: Option<Cut>,
    /// Behind the last frame there may be others.
    wipe: bool,
    journal: Option<u128>,
    told: Vec<Told>,
    audited: Vec<u64>,
}

struct Verified {
    spare: Spare,
    header: SegmentHeader,
    end: usize,
    last_seq: Seq,
    index: Vec<(Seq, u32)>,
    uniques: (u64, u64),
    unverified: Seq,
}

/// Reads a journal that is ours. The inner error is a reason to set it aside.
fn take_up(
    config: &JournalConfig,
    identity: &Identity,
    connection: &Connection,
    control: &Control,
    files: Vec<PathBuf>,
    lock: &DirectoryLock,
) -> Result<Result<Found, Reason>, JournalError> {
    let same_boot = control.boot == control::this_boot();
    // First of all it becomes ours: should anything below fail, the next lease's holder finds its predecessor's journal.
    control::replace(&config.dir, &Control { owner: Owner::of(&identity.fence), ..*control })?;
    // What a node that went down had written of its page cache, and in which order, is unknown.
    let known = if same_boot { control.last_seq } else { 0 };

    let (mut segments, spare) = load(&files, control.journal, lock)?;
    let mut found = Found { spare, journal: Some(control.journal), ..Found::default() };
    if let Some(gap) = missing_between(&segments) {
        if same_boot {
            return Err(gap);
        }
        let keep = segments.windows(2).position(|pair| pair[1].1.ordinal != pair[0].1.ordinal + 1);
        let lost = segments.split_off(keep.map_or(0, |at| at + 1));
        found.spare.extend(lost.into_iter().map(|(spare, _)| spare));
    }
    let Some(first) = segments.first().map(|(_, header)| header.first_seq) else {
        return match known > identity.seq {
            true => Err(lost_records(&config.dir, 0, identity.seq + 1)),
            false => Ok(Ok(found)),
        };
    };
    let unverified = if same_boot { identity.seq } else { 0 };
    let reading = Reading { same_boot, known, unverified, connection };
    verify_all(segments, &reading, &mut found)?;
    if found.last_seq < known && known > identity.seq {
        let last =
            found.used.back().map_or((config.dir.as_path(), 0), |last| (last.spare.path(), last.end as u64));
        return Err(lost_records(last.0, last.1, found.last_seq + 1));
    }
    if first > identity.seq + 1 {
        return Ok(Err(Reason::Gap { first, database: identity.seq }));
    }
    if found.last_seq < identity.seq {
        // Everything in it was committed under its own fence: nothing is lost by using the segments again.
        let used = std::mem::take(&mut found.used);
        found.spare.extend(used.into_iter().map(|verified| verified.spare));
    }
    Ok(Ok(found))
}

fn lost_records(file: &Path, offset: u64, seq: Seq) -> JournalError {
    let what = "records that were acknowledged are missing at its end";
    JournalError::Damaged { file: file.to_owned(), offset, seq, what }
}

type Loaded = (Vec<(Spare, SegmentHeader)>, Vec<Spare>);

/// Maps all segment files: those in use in order, and the spare ones.
fn load(files: &[PathBuf], journal: u128, lock: &DirectoryLock) -> Result<Loaded, JournalError> {
    let (mut used, mut spare) = (Vec::new(), Vec::new());
    for path in files {
        let file = File::options().read(true).write(true).open(path).map_err(io_error("open", path))?;
        let bytes = file.metadata().map_err(io_error("stat", path))?.len();
        let damaged = |what| JournalError::Damaged { file: path.clone(), offset: bytes, seq: 0, what };
        if !(SEGMENT_HEADER as u64..=MAX_SEGMENT_BYTES).contains(&bytes) {
            return Err(damaged("a segment has the wrong size"));
        }
        let found = Spare::found(path.clone(), &file, bytes as usize, Arc::clone(lock))
            .map_err(io_error("map", path))?;
        match format::decode_header(found.bytes()) {
            HeaderFound::Spare => spare.push(found),
            HeaderFound::Used(header) if header.journal != journal => {
                return Err(damaged("a segment belongs to another journal"));
            }
            HeaderFound::Used(header) if header.bytes != bytes => {
                return Err(damaged("a segment has the wrong size"));
            }
            HeaderFound::Used(header) => used.push((found, header)),
            HeaderFound::OtherFormat(found) => return Err(JournalError::incompatible(path, found)),
            HeaderFound::Damaged => return Err(damaged("the header of a segment is no such")),
        }
    }
    used.sort_by_key(|(_, header)| header.ordinal);
    Ok((used, spare))
}

fn missing_between(segments: &[(Spare, SegmentHeader)]) -> Option<JournalError> {
    let gap = segments.windows(2).find(|pair| pair[1].1.ordinal != pair[0].1.ordinal.wrapping_add(1))?;
    let (spare, header) = &gap[1];
    let what = "the segment before it is missing";
    Some(JournalError::Damaged { file: spare.path().to_owned(), offset: 0, seq: header.first_seq, what })
}

/// What is known of a journal before it is read.
struct Reading<'a> {
    same_boot: bool,
    /// So far its records must reach; 0 = unknown.
    known: Seq,
    /// Up to here, where the database stands, frames are taken by their layout: nobody needs them unless the database is set back, and whoever
    /// reads one then verifies it ([`Segment::is_sound`](super::segment::Segment::is_sound)). What a node that went down left is verified all.
    unverified: Seq,
    connection: &'a Connection,
}

impl Reading<'_> {
    /// Whether the database has all of a segment, before the one that begins with record `following`, and nobody waits for an answer that may
    /// stand in it.
    fn is_of_no_interest(&self, header: &SegmentHeader, following: Seq) -> bool {
        (header.first_seq..=self.unverified + 1).contains(&following) && self.left_in(header).is_empty()
    }

    /// The requests whose records may stand in a segment.
    fn left_in(&self, header: &SegmentHeader) -> &[u64] {
        let is_of_connection = header.nonce != 0 && header.nonce == self.connection.nonce;
        if is_of_connection { &self.connection.left } else { &[] }
    }
}

/// A segment that nobody has to look into before it is read: what is behind its last frame is none, and ends whoever reads. Requests that it
/// answers are answered, or of another connection: nobody asks it for one.
fn untouched(spare: Spare, header: SegmentHeader, following: Seq) -> Verified {
    let (end, last_seq) = (spare.bytes().len(), following - 1);
    Verified { spare, header, end, last_seq, index: Vec::new(), uniques: NO_UNIQUES, unverified: last_seq }
}

/// Verifies the frames of all segments in order, into `found`.
fn verify_all(
    segments: Vec<(Spare, SegmentHeader)>,
    reading: &Reading<'_>,
    found: &mut Found,
) -> Result<(), JournalError> {
    let (same_boot, known) = (reading.same_boot, reading.known);
    let mut segments = segments.into_iter().peekable();
    while let Some((spare, header)) = segments.next() {
        let following = segments.peek().map(|(_, following)| following.first_seq);
        let verified = match following {
            Some(following) if reading.is_of_no_interest(&header, following) => {
                untouched(spare, header, following)
            }
            _ => verify(spare, header, reading, found)?,
        };
        let (end, next) = (verified.end, verified.last_seq + 1);
        let path = verified.spare.path().to_owned();
        let bytes = verified.spare.bytes();
        let dirty = end + 8 <= bytes.len() && format::word(bytes, end) != 0;
        let whole = match following {
            Some(following) => following == next,
            // Everything that was acknowledged is there: the rest of the segment need not be searched, which takes longest.
            None if known > 0 && verified.last_seq >= known => true,
            None => !format::has_later_frame(bytes, end, header.salt, verified.last_seq),
        };
        let is_last = following.is_none();
        found.last_seq = verified.last_seq;
        found.used.push_back(verified);
        if !whole && same_boot {
            let what = "a record cannot be read, but later ones can";
            return Err(JournalError::Damaged { file: path, offset: end as u64, seq: next, what });
        }
        if !whole || (is_last && dirty) {
            found.cut = Some(Cut { file: path, offset: end as u64, seq: next });
            found.spare.extend(segments.by_ref().map(|(spare, _)| spare));
        }
    }
    found.wipe = found.cut.is_some() || !same_boot;
    Ok(())
}

/// Verifies the frames of a segment up to the first that is not right.
fn verify(
    spare: Spare,
    header: SegmentHeader,
    reading: &Reading<'_>,
    found: &mut Found,
) -> Result<Verified, JournalError> {
    let (left, unverified) = (reading.left_in(&header), reading.unverified);
    let mut uniques = NO_UNIQUES;
    let bytes = spare.bytes();
    let is_sound = |frame: &Frame, at: usize| format::is_sound(&bytes[at..frame.payload.end], header.salt);
    let (mut at, mut last_seq, mut index) = (SEGMENT_HEADER, header.first_seq.wrapping_sub(1), Vec::new());
    while let Some(frame) = format::frame_layout(bytes, at)
        && frame.seq == last_seq.wrapping_add(1)
        && (frame.seq <= unverified || is_sound(&frame, at))
    {
        // Decoded as a whole is only what is asked for here: applications wait meanwhile.
        let undecodable = |source| {
            let (file, offset) = (spare.path().to_owned(), at as u64);
            JournalError::Undecodable { file, offset, seq: frame.seq, source }
        };
        let record = &bytes[frame.record.clone()];
        let made_by = effect_codec::unique_of(record).map_err(undecodable)?;
        let unique = effect_codec::request_of(made_by);
        if unique != 0 {
            uniques = (uniques.0.min(unique), uniques.1.max(unique));
        }
        if unique != 0 && left.contains(&unique) {
            if !is_sound(&frame, at) {
                return Err(JournalError::unsound(spare.path(), at, frame.seq));
            }
            if made_by == unique {
                let outcome = effect_codec::decode(record).map_err(undecodable)?.outcome;
                found.told.push(Told { unique, seq: frame.seq, outcome });
            } else {
                found.audited.push(unique);
            }
        }
        if is_indexed(frame.seq) {
            index.push((frame.seq, at as u32));
        }
        (at, last_seq) = (frame.next, frame.seq);
    }
    Ok(Verified { spare, header, end: at, last_seq, index, uniques, unverified })
}

// === Beginning ===

/// Makes the journal out of what was found; allocates the first segment where there is none.
fn begin(
    config: &JournalConfig,
    identity: &Identity,
    connection: &Connection,
    lock: DirectoryLock,
    found: Found,
) -> Result<Journal, JournalError> {
    let last_seq = found.last_seq.max(identity.seq);
    let id = found.journal.unwrap_or_else(random);
    let owner = Owner::of(&identity.fence);
    let control = Control { journal: id, owner, boot: control::this_boot(), last_seq };
    let next_ordinal = found.used.back().map_or(1, |last| last.header.ordinal + 1);
    let mut chain = Chain {
        used: VecDeque::new(),
        pinned: Vec::new(),
        spare: found.spare,
        next_file: highest_file(&config.dir)?,
        in_hand: 0,
        ages: VecDeque::from([(identity.seq + 1, Instant::now())]),
    };
    chain.spare.iter_mut().for_each(Spare::blank);
    let mut tail = None;
    for verified in found.used {
        let Verified { mut spare, header, end, last_seq, index, uniques, unverified } = verified;
        if found.wipe {
            spare.wipe(end);
        }
        let frames = Frames { end, last_seq, index, uniques, unverified };
        let (segment, its_tail) = spare.resume(header, frames);
        chain.used.push_back(segment);
        tail = Some(its_tail);
    }
    let control = control::replace(&config.dir, &control)?;
    let (segment_bytes, max_bytes) = sizes(config);
    let shared = Arc::new(Shared {
        dir: config.dir.clone(),
        lock,
        segment_bytes,
        max_bytes,
        chain: Mutex::new(chain),
        last_seq: AtomicU64::new(last_seq),
        committed: AtomicU64::new(identity.seq),
        retain_from: AtomicU64::new(Seq::MAX),
        nonce: connection.nonce,
        recovering: AtomicBool::new(!connection.left.is_empty()),
        unanswered: OnceLock::new(),
    });
    let reader = JournalReader { shared: Arc::clone(&shared) };
    if reader.bytes_allocated() == 0 {
        reader.add_spare()?;
    }
    Ok(Journal { shared, control, id, tail, next_ordinal, last_age: None, scratch: Vec::new() })
}

/// Bytes per segment and of all.
fn sizes(config: &JournalConfig) -> (u64, u64) {
    let wanted = config.segment_bytes.min(config.max_bytes / 4);
    let segment = wanted.clamp(MIN_SEGMENT_BYTES, MAX_SEGMENT_BYTES).next_multiple_of(4096);
    (segment, config.max_bytes.max(segment))
}
