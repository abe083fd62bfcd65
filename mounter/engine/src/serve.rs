//! A reading thread's life: read a request into a slot, poll its future once in place, hand it to tokio only if it waits.

use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use fuse3::Errno;
use fuse3::raw::{Filesystem, Request};
use tokio::runtime::Handle;

use crate::abi::{UNIQUE_RESEND, opcode as op};
use crate::decode::{DecodeError, Frame, Header, Operation};
use crate::device::Received;
use crate::dispatch;
use crate::encode::Reply;
use crate::flight::Activity;
use crate::init::SavedInit;
use crate::link::Link;
use crate::opcode;
use crate::readers::Reading;
use crate::slots::{SMALL_REQUEST, Slot};
use crate::sweep::NOTE_EVERY;

/// Why a thread no longer reads.
#[derive(Debug)]
pub(crate) enum Left {
    /// The session is being stopped.
    Stopped,
    /// The kernel has no file system any more.
    Gone,
    /// The descriptor fails in a way that reading again will not mend.
    Failed(io::Error),
}

/// A file system and the connection it is served on.
#[derive(Debug)]
pub(crate) struct Server<F> {
    pub(crate) fs: Arc<F>,
    pub(crate) link: Arc<Link>,
    pub(crate) agreed: SavedInit,
    pub(crate) runtime: Handle,
}

/// What becomes of a request that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Read from the device.
    Device,
    /// Found in a slot, and the kernel will be asked to send it again.
    SlotBeforeResend,
}

impl<F> Server<F>
where
    F: Filesystem + Send + Sync + 'static,
{
    /// Reads and serves until the session stops or the mount is gone.
    pub(crate) fn read_requests(self: &Arc<Self>, device: usize, reading: &Reading<'_>) -> Left {
        let mut receiving = self.link.slots.take_big();
        let mut small = self.link.slots.take_small();
        let mut count = 0_u32;
        loop {
            if self.link.is_stopping() {
                return Left::Stopped;
            }
            let buffer = receiving.buffer(device);
            let length = match reading.interruptibly(|| self.link.device(device).receive(buffer)) {
                Ok(Received::Request(length)) => length,
                Ok(Received::Again) => continue,
                Ok(Received::Gone) => return Left::Gone,
                Err(error) => return Left::Failed(error),
            };
            receiving.set_received(length);
            count = count.wrapping_add(1);
            if count.is_multiple_of(NOTE_EVERY) {
                self.link.waterline.note(&self.link, receiving.last_unique());
            }
            if length <= SMALL_REQUEST {
                small.move_from(&mut receiving);
                small = self.take(small, Origin::Device).unwrap_or_else(|| self.link.slots.take_small());
            } else {
                receiving =
                    self.take(receiving, Origin::Device).unwrap_or_else(|| self.link.slots.take_big());
            }
        }
    }

    /// Serves the request in `slot`. Gives the slot back, cleared, if the request was done at once.
    pub(crate) fn take(self: &Arc<Self>, mut slot: Slot, origin: Origin) -> Option<Slot> {
        let header = match Header::parse(slot.request()) {
            Ok(header) => header,
            Err(error) => {
                tracing::error!(%error, "what the kernel sent is no request");
                return Some(slot);
            }
        };
        let repeated = header.unique & UNIQUE_RESEND != 0 && header.opcode != op::INTERRUPT;
        if repeated && self.is_repetition(&slot, header.unique) {
            slot.clear();
            return Some(slot);
        }
        if header.opcode != op::INTERRUPT {
            return self.start(slot, &header, origin);
        }
        self.interrupt(&slot);
        slot.clear();
        Some(slot)
    }

    /// Whether the request in `slot` is being done already; if it is done, answers it.
    fn is_repetition(&self, slot: &Slot, unique: u64) -> bool {
        let Some(first) = self.link.resends.arrived(&self.link.slots, slot.device(), unique) else {
            return false;
        };
        if let Some((_slot_of_first, reply)) = first {
            self.link.write(slot.device(), &reply);
        }
        true
    }

    fn start(self: &Arc<Self>, slot: Slot, header: &Header, origin: Origin) -> Option<Slot> {
        let index = slot.index();
        if self.link.flights.begin(index, header.request_id(), header.opcode) {
            self.tell_interrupt(header.unique, header);
        }
        let mut work =
            Box::pin(Work { inner: Arc::clone(self).serve(slot), link: Arc::clone(&self.link), index });
        // No waker: whoever gives Pending is polled again by tokio before it is waited for.
        match work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(slot) => slot,
            Poll::Pending => {
                if origin == Origin::SlotBeforeResend && opcode::replies(header.opcode) {
                    self.link.resends.expect(header.unique, index);
                }
                self.runtime.spawn(work);
                None
            }
        }
    }

    async fn serve(self: Arc<Self>, slot: Slot) -> Option<Slot> {
        let mut duty = Duty { link: Arc::clone(&self.link), slot: Some(slot) };
        let outcome = match &duty.slot {
            Some(slot) => self.call(slot.request()).await,
            None => Ok(Reply::Empty),
        };
        duty.slot.take().and_then(|slot| self.link.answer(slot, outcome))
    }

    async fn call(&self, request: &[u8]) -> Result<Reply, Errno> {
        let frame = match Frame::parse(request, self.agreed.dialect()) {
            Ok(frame) => frame,
            Err(DecodeError::Unknown { .. }) => return Err(libc::ENOSYS.into()),
            Err(error) => {
                tracing::error!(%error, "malformed request");
                return Err(libc::EIO.into());
            }
        };
        match frame.header.opcode {
            // Answered by a process that died before the reply was out: what was agreed holds.
            op::INIT => Ok(Reply::Init(self.agreed.reply())),
            op::DESTROY => Ok(Reply::Empty),
            _ => dispatch::call(&*self.fs, &self.agreed, &frame).await,
        }
    }

    fn interrupt(self: &Arc<Self>, slot: &Slot) {
        let Ok(frame) = Frame::parse(slot.request(), self.agreed.dialect()) else { return };
        let Ok(Operation::Interrupt { unique }) = frame.operation() else { return };
        self.link.statistics.record(op::INTERRUPT, Duration::ZERO, false);
        if self.link.flights.interrupt(unique & !UNIQUE_RESEND) {
            self.tell_interrupt(unique, &frame.header);
        }
    }

    /// Tells the file system. What it says to that is of no interest: the request itself will be answered.
    fn tell_interrupt(self: &Arc<Self>, unique: u64, header: &Header) {
        let unique = unique & !UNIQUE_RESEND;
        let req = Request { unique, uid: header.uid, gid: header.gid, pid: header.pid };
        let fs = Arc::clone(&self.fs);
        let mut telling = Box::pin(async move {
            let _ = fs.interrupt(req, unique).await;
        });
        if telling.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            self.runtime.spawn(telling);
        }
    }
}

/// The duty to answer the request in a slot.
struct Duty {
    link: Arc<Link>,
    slot: Option<Slot>,
}

impl Drop for Duty {
    fn drop(&mut self) {
        let Some(slot) = self.slot.take() else { return };
        if std::thread::panicking() {
            // The file system's code panicked: the caller must not hang for it.
            drop(self.link.answer(slot, Err(libc::EIO.into())));
        } else {
            // The runtime is being dropped: the request stays in its slot for a successor, and on the list, as what it may
            // have written must be found by that one.
            self.link.flights.end();
            slot.leave();
        }
    }
}

/// A request's future: keeps its line in the list of those in flight, and stops a panic.
struct Work<S> {
    inner: S,
    link: Arc<Link>,
    index: usize,
}

impl<S: Future<Output = Option<Slot>>> Future for Work<S> {
    type Output = Option<Slot>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let index = self.index;
        let link = Arc::clone(&self.link);
        // `begin` has set this for the first poll, which on the fast path is the only one.
        if link.flights.is_waiting(index) {
            link.flights.set_activity(index, Activity::Executing);
        }
        // SAFETY: `inner` is never moved out of the pinned `Work`, which has no `Drop` of its own.
        #[allow(unsafe_code)]
        let inner = unsafe { self.map_unchecked_mut(|work| &mut work.inner) };
        let polled = std::panic::catch_unwind(AssertUnwindSafe(|| inner.poll(context)));
        match polled {
            Ok(Poll::Ready(slot)) => Poll::Ready(slot),
            Ok(Poll::Pending) => {
                link.flights.set_activity(index, Activity::Waiting);
                Poll::Pending
            }
            Err(_) => {
                tracing::error!("the file system panicked; its caller got EIO");
                Poll::Ready(None)
            }
        }
    }
}
