//! The connection as this process holds it: descriptors, slots, what is in flight; and how a reply goes out.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fuse3::Errno;
use tarbox_types::Unanswered;

use crate::device::Device;
use crate::encode::{Encoded, Reply};
use crate::flight::Flights;
use crate::opcode;
use crate::readers::Readers;
use crate::resend::Resends;
use crate::slots::{Slot, Slots};
use crate::statistics::Statistics;
use crate::sweep::Waterline;

#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) devices: Vec<Arc<Device>>,
    pub(crate) slots: Arc<Slots>,
    pub(crate) flights: Flights,
    pub(crate) statistics: Statistics,
    pub(crate) stopping: AtomicBool,
    pub(crate) readers: Readers,
    pub(crate) resends: Resends,
    pub(crate) waterline: Waterline,
}

impl Unanswered for Link {
    fn any(&self, wanted: &mut dyn FnMut(u64) -> bool) -> bool {
        self.flights.any(wanted)
    }
}

impl Link {
    pub(crate) fn new(devices: Vec<Arc<Device>>, slots: Arc<Slots>) -> Self {
        let flights = Flights::new(slots.count());
        Self {
            devices,
            slots,
            flights,
            statistics: Statistics::default(),
            stopping: AtomicBool::new(false),
            readers: Readers::default(),
            resends: Resends::default(),
            waterline: Waterline::default(),
        }
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// The descriptor `index`. One that is missing (fewer were handed over than the request's slot names) is replaced by
    /// the first, whose probe then says that the request is not there.
    pub(crate) fn device(&self, index: usize) -> &Device {
        self.devices.get(index).unwrap_or(&self.devices[0])
    }

    /// Answers the request in `slot` and takes it off the list: result into the slot, then the reply, then the slot is free.
    ///
    /// Returns the slot, cleared, unless the reply has to wait for the kernel's repetition of the request.
    pub(crate) fn answer(&self, mut slot: Slot, outcome: Result<Reply, Errno>) -> Option<Slot> {
        let index = slot.index();
        let (operation, took) = self.flights.done(index);
        let failed = outcome.is_err();
        self.statistics.record(operation, took, failed);
        let encoded = Encoded::new(slot.reply_unique(), outcome);
        slot.store_result(encoded.head(), encoded.body());
        self.flights.end_of(index);
        let sent = if opcode::replies(operation) { self.send(slot, encoded) } else { Some(slot) };
        let sent = sent.map(|mut slot| {
            slot.clear();
            slot
        });
        self.flights.end();
        sent
    }

    fn send(&self, slot: Slot, encoded: Encoded) -> Option<Slot> {
        let (slot, encoded) = self.resends.done(slot, encoded)?;
        self.write(slot.device(), &encoded);
        Some(slot)
    }

    /// Writes a reply from where it was laid out.
    pub(crate) fn write(&self, device: usize, encoded: &Encoded) {
        let Err(error) = self.device(device).send(encoded.head(), encoded.body()) else { return };
        match error.raw_os_error() {
            // ENOENT: the caller was killed meanwhile. ENODEV: so was the mount.
            Some(libc::ENOENT | libc::ENODEV | libc::ECONNABORTED | libc::ENOTCONN) => {}
            _ => self.write_error(device, encoded, &error),
        }
    }

    /// The kernel refuses the reply (a length or an attribute it does not accept): the caller must get some answer.
    fn write_error(&self, device: usize, refused: &Encoded, error: &io::Error) {
        tracing::error!(%error, unique = refused.unique(), "the kernel refused a reply");
        let instead = Encoded::new(refused.unique(), Err(libc::EIO.into()));
        if let Err(error) = self.device(device).send(instead.head(), instead.body()) {
            tracing::error!(%error, unique = refused.unique(), "the kernel refused an error, too");
        }
    }
}
