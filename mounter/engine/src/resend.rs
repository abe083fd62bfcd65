//! Requests that the kernel is about to send a second time, while the first copy is being worked on.
//!
//! After `FUSE_NOTIFY_RESEND` everything unanswered comes again, with bit 63 in its `unique`, and a reply to the old `unique` is
//! refused. What recovery took from a slot and has not yet answered must not be done twice: whichever comes second, its end or
//! its repetition, sends the reply.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::abi::UNIQUE_RESEND;
use crate::encode::Encoded;
use crate::slots::{Slot, Slots};

#[derive(Debug)]
enum Awaited {
    /// Being worked on in the slot with this index; the repetition has not come.
    Working(usize),
    /// Done; the repetition has not come. The slot keeps the result for a successor.
    Parked(Box<(Slot, Encoded)>),
}

/// The requests whose repetition is awaited, by `unique` without bit 63.
#[derive(Debug, Default)]
pub(crate) struct Resends {
    /// Whether there are any, so that the usual request takes no lock.
    any: AtomicBool,
    awaited: Mutex<HashMap<u64, Awaited>>,
}

impl Resends {
    /// Awaits the repetition of a request that is being worked on in the slot `index`. To be called before RESEND is sent,
    /// and while nobody works on the request.
    pub(crate) fn expect(&self, unique: u64, index: usize) {
        let mut awaited = self.awaited.lock();
        awaited.insert(unique & !UNIQUE_RESEND, Awaited::Working(index));
        self.any.store(true, Ordering::Release);
    }

    /// Awaits nothing any more: the kernel knows no RESEND. Returns what was done meanwhile, to be sent after all.
    pub(crate) fn give_up(&self) -> Vec<(Slot, Encoded)> {
        self.any.store(false, Ordering::Release);
        let mut awaited = self.awaited.lock();
        let parked = awaited.drain().filter_map(|(_, awaited)| match awaited {
            Awaited::Parked(parked) => Some(*parked),
            Awaited::Working(_) => None,
        });
        parked.collect()
    }

    /// A request is done: gives its reply back to be sent, or keeps it for the repetition to send.
    pub(crate) fn done(&self, slot: Slot, mut encoded: Encoded) -> Option<(Slot, Encoded)> {
        if !self.any.load(Ordering::Acquire) {
            return Some((slot, encoded));
        }
        let mut awaited = self.awaited.lock();
        if let Some(line @ Awaited::Working(_)) = awaited.get_mut(&(encoded.unique() & !UNIQUE_RESEND)) {
            *line = Awaited::Parked(Box::new((slot, encoded)));
            return None;
        }
        // The repetition may have come between the encoding and now.
        encoded.set_unique(slot.reply_unique());
        Some((slot, encoded))
    }

    /// A repetition came, in a slot of `device`. Returns None if it is not awaited and has to be done;
    /// else what is to be sent for it, if it has been done already.
    pub(crate) fn arrived(
        &self,
        slots: &Arc<Slots>,
        device: usize,
        unique: u64,
    ) -> Option<Option<(Slot, Encoded)>> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let mut awaited = self.awaited.lock();
        let line = awaited.remove(&(unique & !UNIQUE_RESEND))?;
        self.any.store(!awaited.is_empty(), Ordering::Release);
        Some(match line {
            Awaited::Working(index) => {
                slots.redirect(index, device, unique);
                None
            }
            Awaited::Parked(parked) => {
                let (slot, mut encoded) = *parked;
                encoded.set_unique(unique);
                Some((slot, encoded))
            }
        })
    }
}
