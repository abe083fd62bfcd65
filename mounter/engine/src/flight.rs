//! The requests that have been read and not yet answered: one line per slot, kept with atomics so that a request that is
//! answered at once takes no lock.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Whether a request is being worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// A thread is in it. That for long is a hang.
    Executing,
    /// It waits (for the database, a lock, room in the journal). That for long is none.
    Waiting,
}

/// A request that has been read and not yet answered.
#[derive(Clone, Copy, Debug)]
pub struct InFlight {
    /// The request, bit 63 cleared.
    pub unique: u64,
    /// Its operation; [`crate::opcode::name_of`] names it.
    pub opcode: u32,
    /// Since when.
    pub age: Duration,
    /// Since when it has been doing what `activity` says.
    pub activity_age: Duration,
    /// What it does.
    pub activity: Activity,
    /// Whether its caller got a signal.
    pub interrupted: bool,
}

#[derive(Debug, Default)]
struct Flight {
    /// 0 = none.
    unique: AtomicU64,
    opcode: AtomicU32,
    activity: AtomicU8,
    interrupted: AtomicBool,
    since: AtomicU64,
    activity_since: AtomicU64,
}

const EXECUTING: u8 = 0;
const WAITING: u8 = 1;
/// An interrupt that found no request is forgotten after this; it was late, not early.
const EARLY: Duration = Duration::from_secs(1);
/// Interrupts overtake their request only while another thread is between reading and registering it,
/// so no more can be early at a time than there are threads.
const MOST_EARLY: usize = 64;

/// All requests in flight.
#[derive(Debug)]
pub(crate) struct Flights {
    table: Box<[Flight]>,
    epoch: Instant,
    active: AtomicUsize,
    idle: Notify,
    early_count: AtomicUsize,
    early: Mutex<VecDeque<(u64, Instant)>>,
}

impl Flights {
    pub(crate) fn new(slots: usize) -> Self {
        Self {
            table: (0..slots).map(|_| Flight::default()).collect(),
            epoch: Instant::now(),
            active: AtomicUsize::new(0),
            idle: Notify::new(),
            early_count: AtomicUsize::new(0),
            early: Mutex::default(),
        }
    }

    fn nanos(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.epoch).as_nanos() as u64
    }

    /// Registers the request in the slot `index`. Returns whether its interrupt has been seen already.
    pub(crate) fn begin(&self, index: usize, unique: u64, opcode: u32) -> bool {
        let flight = &self.table[index];
        let now = self.nanos(Instant::now());
        flight.opcode.store(opcode, Ordering::Relaxed);
        flight.activity.store(EXECUTING, Ordering::Relaxed);
        flight.interrupted.store(false, Ordering::Relaxed);
        flight.since.store(now, Ordering::Relaxed);
        flight.activity_since.store(now, Ordering::Relaxed);
        self.active.fetch_add(1, Ordering::Relaxed);
        // Sequentially consistent with `early_count`: of `begin` and `interrupt` one sees the other.
        flight.unique.store(unique, Ordering::SeqCst);
        if self.early_count.load(Ordering::SeqCst) == 0 {
            return false;
        }
        let mut early = self.early.lock();
        early.retain(|(_, seen)| seen.elapsed() < EARLY);
        let before = early.len();
        early.retain(|(interrupted, _)| *interrupted != unique);
        self.early_count.store(early.len(), Ordering::SeqCst);
        let found = early.len() < before;
        flight.interrupted.store(found, Ordering::Relaxed);
        found
    }

    /// Notes the interrupt of `unique`. Returns whether the request is known.
    pub(crate) fn interrupt(&self, unique: u64) -> bool {
        if self.mark_interrupted(unique) {
            return true;
        }
        let mut early = self.early.lock();
        if early.len() == MOST_EARLY {
            early.pop_front();
        }
        early.push_back((unique, Instant::now()));
        self.early_count.store(early.len(), Ordering::SeqCst);
        // It may have been registered before it could see the line just added.
        if self.mark_interrupted(unique) {
            early.retain(|(interrupted, _)| *interrupted != unique);
            self.early_count.store(early.len(), Ordering::SeqCst);
            return true;
        }
        false
    }

    fn mark_interrupted(&self, unique: u64) -> bool {
        let found = self.table.iter().find(|flight| flight.unique.load(Ordering::SeqCst) == unique);
        found.inspect(|flight| flight.interrupted.store(true, Ordering::Relaxed)).is_some()
    }

    pub(crate) fn set_activity(&self, index: usize, activity: Activity) {
        let flight = &self.table[index];
        let number = if activity == Activity::Waiting { WAITING } else { EXECUTING };
        flight.activity.store(number, Ordering::Relaxed);
        flight.activity_since.store(self.nanos(Instant::now()), Ordering::Relaxed);
    }

    pub(crate) fn is_waiting(&self, index: usize) -> bool {
        self.table[index].activity.load(Ordering::Relaxed) == WAITING
    }

    /// The operation of a request that is done, and how long it took.
    pub(crate) fn done(&self, index: usize) -> (u32, Duration) {
        let flight = &self.table[index];
        let since = Duration::from_nanos(flight.since.load(Ordering::Relaxed));
        let took = self.epoch.elapsed().saturating_sub(since);
        (flight.opcode.load(Ordering::Relaxed), took)
    }

    /// Takes the request off the list, once its result is in its slot: from then on nobody has to ask the journal for it.
    /// It counts as in flight until [`Flights::end`].
    pub(crate) fn end_of(&self, index: usize) {
        self.table[index].unique.store(0, Ordering::Release);
    }

    /// Whether `wanted` holds for any request on the list.
    pub(crate) fn any(&self, wanted: &mut dyn FnMut(u64) -> bool) -> bool {
        self.table.iter().any(|flight| match flight.unique.load(Ordering::Acquire) {
            0 => false,
            unique => wanted(unique),
        })
    }

    /// The reply is out, or the request is somebody else's now.
    pub(crate) fn end(&self) {
        if self.active.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.idle.notify_waiters();
        }
    }

    /// Waits until nothing is in flight.
    pub(crate) async fn drained(&self) {
        loop {
            let idle = self.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            if self.active.load(Ordering::Acquire) == 0 {
                return;
            }
            idle.await;
        }
    }

    /// What is in flight now.
    pub(crate) fn snapshot(&self) -> Vec<InFlight> {
        let now = self.epoch.elapsed();
        let age = |since: &AtomicU64| now.saturating_sub(Duration::from_nanos(since.load(Ordering::Relaxed)));
        let known = self.table.iter().filter_map(|flight| {
            let unique = flight.unique.load(Ordering::Acquire);
            (unique != 0).then(|| InFlight {
                unique,
                opcode: flight.opcode.load(Ordering::Relaxed),
                age: age(&flight.since),
                activity_age: age(&flight.activity_since),
                activity: match flight.activity.load(Ordering::Relaxed) {
                    WAITING => Activity::Waiting,
                    _ => Activity::Executing,
                },
                interrupted: flight.interrupted.load(Ordering::Relaxed),
            })
        });
        known.collect()
    }
}
