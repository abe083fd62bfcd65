//! The net behind the slots where the kernel cannot send again (before 6.9): what is pending and in no slot would never be
//! answered. The kernel is asked for every `unique` that may be open; what nobody works on gets EIO.
//!
//! A connection's uniques are consecutive even numbers. The header page of the slots says below which none is open.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::abi::UNIQUE_RESEND;
use crate::encode::Encoded;
use crate::link::Link;

/// After so many requests that a thread read, it notes below which number nothing is open.
pub(crate) const NOTE_EVERY: u32 = 1024;
/// So far beyond the last number known it is looked: threads of the dead process may have read some more.
const BEYOND: u64 = 1 << 13;
/// The most numbers asked for, where little is known: a second's work.
const MOST: u64 = 1 << 20;

/// Where the numbers of open requests begin, roughly and never too high.
#[derive(Debug, Default)]
pub(crate) struct Waterline {
    /// What was read when it was noted last; 0 = never.
    before: AtomicU64,
}

impl Waterline {
    /// Notes that `unique` has just been read. What is not registered yet was read since the last note, so that
    /// the request read then is a bound for it.
    pub(crate) fn note(&self, link: &Link, unique: u64) {
        let mut lowest = self.before.swap(unique & !UNIQUE_RESEND, Ordering::Relaxed);
        if lowest == 0 {
            return;
        }
        link.flights.any(&mut |open| {
            lowest = lowest.min(open);
            false
        });
        link.slots.lowest_open().store(lowest, Ordering::Relaxed);
    }
}

/// The highest number that the process before is known to have read.
pub(crate) fn highest(uniques: impl Iterator<Item = u64>) -> u64 {
    uniques.map(|unique| unique & !UNIQUE_RESEND).max().unwrap_or(0)
}

/// Answers with EIO what is pending and not in `known`; returns how many. To be called before anybody reads.
///
/// # Errors
/// Those of the device.
pub(crate) fn sweep(link: &Link, known: &HashSet<u64>, highest: u64) -> io::Result<usize> {
    let end = highest.saturating_add(BEYOND);
    let start = link.slots.lowest_open().load(Ordering::Relaxed).max(end.saturating_sub(MOST)).max(2);
    let mut swept = 0;
    for unique in (start & !1..=end).step_by(2).filter(|unique| !known.contains(unique)) {
        for device in &link.devices {
            if device.probe(unique)? {
                let encoded = Encoded::new(unique, Err(libc::EIO.into()));
                device.send(encoded.head(), encoded.body())?;
                swept += 1;
                break;
            }
        }
    }
    if swept > 0 {
        tracing::error!(swept, "requests that no slot holds were answered with EIO");
    }
    Ok(swept)
}
