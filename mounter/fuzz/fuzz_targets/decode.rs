//! Whatever the bytes, decoding gives a value or an error: no panic, no read outside them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tarbox_engine::decode::{Dialect, Frame, Operation};

fuzz_target!(|bytes: &[u8]| {
    for setxattr_ext in [false, true] {
        let Ok(frame) = Frame::parse(bytes, Dialect { setxattr_ext }) else { continue };
        match frame.operation() {
            Ok(Operation::BatchForget(forgets)) => assert!(forgets.to_vec().len() * 16 < bytes.len()),
            Ok(Operation::Write { data, .. }) => assert!(data.len() < bytes.len()),
            _ => {}
        }
    }
    // The kernel's length field rarely comes out right by chance: set it, and try again.
    if bytes.len() >= 4 {
        let mut fixed = bytes.to_vec();
        fixed[0..4].copy_from_slice(&(bytes.len() as u32).to_ne_bytes());
        if fixed.len() >= 8 {
            let opcode = u32::from(fixed[4]) % 56;
            fixed[4..8].copy_from_slice(&opcode.to_ne_bytes());
        }
        let _ = Frame::parse(&fixed, Dialect::default()).map(|frame| frame.operation());
    }
});
