//! What a process left in its slots: asked of the kernel, answered or done, before anybody reads a new request.
//!
//! The caller has made sure that the process is dead. Runs in one thread; a kill in the middle of it just repeats it.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::sync::Arc;

use fuse3::raw::Filesystem;

use crate::abi::{UNIQUE_RESEND, notify, opcode as op};
use crate::decode::Header;
use crate::link::Link;
use crate::opcode;
use crate::serve::{Origin, Server};
use crate::slots::{RESULT_CAPACITY, Slot, State};
use crate::sweep;

/// What recovery found and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Requests found in slots.
    pub found: usize,
    /// Of those: already answered, or given up by their callers.
    pub settled: usize,
    /// Done before; only the reply was missing.
    pub replied: usize,
    /// Done now, or being done.
    pub dispatched: usize,
    /// Whether the kernel was asked to send again what else is unanswered.
    pub resent: bool,
    /// Requests that no slot held, answered with EIO because the kernel cannot send them again.
    pub swept: usize,
}

/// What a process left.
pub(crate) struct Left {
    /// The slots that hold a request.
    pub(crate) slots: Vec<Slot>,
    /// The highest `unique` known to have been read.
    pub(crate) highest: u64,
}

/// The slots that hold a request; all others become free.
pub(crate) fn collect_left(link: &Link) -> io::Result<Left> {
    let mut slots = link.slots.take_all()?;
    let highest = sweep::highest(slots.iter().map(Slot::last_unique));
    slots.retain_mut(|slot| slot.find_left().is_some());
    Ok(Left { slots, highest })
}

/// What is done about requests that no slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Net {
    /// The kernel is asked to send them again.
    Resend,
    /// They are looked for and answered with EIO.
    Sweep,
    /// Nothing: there are none.
    None,
}

/// A request's `unique` without the bits that its copies may differ in.
fn identity(slot: &Slot) -> u64 {
    slot.reply_unique() & !UNIQUE_RESEND
}

/// Settles what is in `left`, then does about the rest what `net` says, or the next best that the kernel can.
pub(crate) fn recover<F>(server: &Arc<Server<F>>, left: Left, net: Net) -> io::Result<Recovered>
where
    F: Filesystem + Send + Sync + 'static,
{
    let mut recovered = Recovered::default();
    // In the order in which the kernel numbered them, which is that of their callers.
    let mut requests: BTreeMap<u64, Vec<Slot>> = BTreeMap::new();
    for slot in left.slots {
        requests.entry(identity(&slot)).or_default().push(slot);
    }
    recovered.found = requests.len();
    let known: HashSet<u64> = requests.keys().copied().collect();
    let origin = if net == Net::Resend { Origin::SlotBeforeResend } else { Origin::Device };
    let mut interrupts = Vec::new();
    for copies in requests.into_values() {
        let opcode = copies
            .first()
            .and_then(|slot| Header::parse(slot.request()).ok())
            .map_or(0, |header| header.opcode);
        if opcode == op::INTERRUPT {
            interrupts.extend(copies.into_iter().take(1));
        } else if opcode::replies(opcode) {
            settle(server, copies, origin, &mut recovered)?;
        } else {
            repeat_unanswered(server, copies, &mut recovered);
        }
    }
    // After the requests that they are about have been registered.
    for slot in interrupts {
        recovered.dispatched += 1;
        drop(server.take(slot, origin));
    }
    if net == Net::Resend {
        recovered.resent = ask_to_resend(&server.link)?;
    }
    if net != Net::None && !recovered.resent {
        recovered.swept = sweep::sweep(&server.link, &known, left.highest)?;
    }
    Ok(recovered)
}

/// Answers a request, of which there may be several copies (moved between slots, or sent again), or does it.
fn settle<F>(
    server: &Arc<Server<F>>,
    mut copies: Vec<Slot>,
    origin: Origin,
    recovered: &mut Recovered,
) -> io::Result<()>
where
    F: Filesystem + Send + Sync + 'static,
{
    let mut pending = None;
    for (at, slot) in copies.iter().enumerate() {
        if server.link.device(slot.device()).probe(slot.reply_unique())? {
            pending = Some(at);
            break;
        }
    }
    let Some(at) = pending else {
        recovered.settled += 1;
        return Ok(());
    };
    let pending = copies.swap_remove(at);
    let done = if pending.state() == State::Applied {
        Some(&pending)
    } else {
        copies.iter().find(|slot| slot.state() == State::Applied)
    };
    if let Some(done) = done {
        recovered.replied += 1;
        reply_again(&server.link, &pending, done.result());
        return Ok(());
    }
    recovered.dispatched += 1;
    drop(server.take(pending, origin));
    Ok(())
}

/// Sends the stored reply, for the `unique` under which the kernel knows the request now.
fn reply_again(link: &Link, pending: &Slot, stored: &[u8]) {
    let mut reply = [0; RESULT_CAPACITY];
    let reply = &mut reply[..stored.len()];
    reply.copy_from_slice(stored);
    if let Some(unique) = reply.get_mut(8..16) {
        unique.copy_from_slice(&pending.reply_unique().to_ne_bytes());
    }
    if let Err(error) = link.device(pending.device()).send(reply, &[]) {
        tracing::warn!(%error, unique = pending.reply_unique(), "a stored reply was not accepted");
    }
}

/// FORGET and the like: the kernel does not know whether they are done, the slot does.
fn repeat_unanswered<F>(server: &Arc<Server<F>>, mut copies: Vec<Slot>, recovered: &mut Recovered)
where
    F: Filesystem + Send + Sync + 'static,
{
    if copies.iter().any(|slot| slot.state() == State::Applied) {
        recovered.settled += 1;
    } else if let Some(slot) = copies.pop() {
        recovered.dispatched += 1;
        drop(server.take(slot, Origin::Device));
    }
}

/// Asks the kernel for all that is still unanswered: what a slot did not hold. False where it cannot (before 6.9).
fn ask_to_resend(link: &Link) -> io::Result<bool> {
    let Err(error) = link.devices[0].notify(notify::RESEND, &[]) else { return Ok(true) };
    for (slot, encoded) in link.resends.give_up() {
        link.write(slot.device(), &encoded);
    }
    if error.raw_os_error() == Some(libc::EINVAL) { Ok(false) } else { Err(error) }
}
