//! INIT: the first request of a connection, before which there is nothing else.

use std::io;

use fuse3::raw::{Filesystem, Request};
use tokio::runtime::Handle;

use crate::abi::{init as flag, opcode as op};
use crate::decode::{Dialect, Frame, Header, InitIn, Operation};
use crate::device::Received;
use crate::encode::Reply;
use crate::init::{InitWishes, SavedInit, negotiate};
use crate::link::Link;
use crate::slots::Slot;

/// Answers INIT: the one in `left` (read by a process that died before it had agreed on anything), else the next request.
///
/// # Errors
/// Those of the device, of the file system's `init`, and of a kernel that is too old.
pub(crate) fn shake_hands<F>(
    fs: &F,
    link: &Link,
    left: &mut Vec<Slot>,
    wishes: &InitWishes,
    runtime: &Handle,
) -> io::Result<SavedInit>
where
    F: Filesystem + Sync,
{
    let found =
        left.iter().position(|slot| Header::parse(slot.request()).is_ok_and(|h| h.opcode == op::INIT));
    let slot = match found {
        Some(at) => left.swap_remove(at),
        None => receive_init(link)?,
    };
    let Some((header, init)) = parse_init(slot.request()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the first request is not INIT"));
    };
    link.flights.begin(slot.index(), header.request_id(), header.opcode);
    let agreed = agree(fs, &header, &init, wishes, runtime, link.slots.big_capacity());
    let outcome = match &agreed {
        Ok(agreed) => {
            link.slots.save_init(agreed);
            Ok(Reply::Init(agreed.reply()))
        }
        Err(_) => Err(libc::EPROTO.into()),
    };
    drop(link.answer(slot, outcome));
    agreed
}

fn receive_init(link: &Link) -> io::Result<Slot> {
    let mut slot = link.slots.take_big();
    let reading = link.readers.enter();
    loop {
        if link.is_stopping() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let buffer = slot.buffer(0);
        match reading.interruptibly(|| link.device(0).receive(buffer))? {
            Received::Request(length) => {
                slot.set_received(length);
                return Ok(slot);
            }
            Received::Again => {}
            Received::Gone => return Err(io::Error::from_raw_os_error(libc::ENODEV)),
        }
    }
}

fn parse_init(request: &[u8]) -> Option<(Header, InitIn)> {
    let frame = Frame::parse(request, Dialect::default()).ok()?;
    match frame.operation().ok()? {
        Operation::Init(init) => Some((frame.header, init)),
        _ => None,
    }
}

fn agree<F>(
    fs: &F,
    header: &Header,
    init: &InitIn,
    wishes: &InitWishes,
    runtime: &Handle,
    room: usize,
) -> io::Result<SavedInit>
where
    F: Filesystem + Sync,
{
    let req = Request { unique: header.request_id(), uid: header.uid, gid: header.gid, pid: header.pid };
    let reply = runtime.block_on(fs.init(req)).map_err(io::Error::from)?;
    // The longest write with its headers has to fit a slot, or the kernel refuses every read.
    let room =
        u32::try_from(room - crate::abi::IN_HEADER_SIZE - crate::abi::WRITE_IN_SIZE).unwrap_or(u32::MAX);
    let wishes = InitWishes {
        max_write: wishes.max_write.min(reply.max_write.get()).min(room),
        max_background: reply.max_background.unwrap_or(wishes.max_background),
        congestion_threshold: reply.congestion_threshold.unwrap_or(wishes.congestion_threshold),
        ..*wishes
    };
    let agreed =
        negotiate(init, &wishes).map_err(|error| io::Error::new(io::ErrorKind::Unsupported, error))?;
    tracing::info!(
        kernel_minor = agreed.kernel_minor,
        flags = format_args!("{:#x}", agreed.flags),
        max_write = agreed.max_write,
        resend = agreed.has(flag::HAS_RESEND),
        "FUSE connection agreed"
    );
    Ok(agreed)
}
