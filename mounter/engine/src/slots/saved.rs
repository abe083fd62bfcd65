//! [`SavedInit`] in the header page.

use super::SavedInit;

pub(super) const OFFSET: usize = 64;
pub(super) const LENGTH: usize = 40;

/// The first word says that the rest is there; a version of its own, as the file's may go on without it.
const PRESENT: u32 = 1;

pub(super) fn write(init: &SavedInit) -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    bytes[0..4].copy_from_slice(&PRESENT.to_ne_bytes());
    bytes[4..8].copy_from_slice(&init.kernel_minor.to_ne_bytes());
    bytes[8..16].copy_from_slice(&init.offered.to_ne_bytes());
    bytes[16..24].copy_from_slice(&init.flags.to_ne_bytes());
    bytes[24..28].copy_from_slice(&init.max_write.to_ne_bytes());
    bytes[28..32].copy_from_slice(&init.max_readahead.to_ne_bytes());
    bytes[32..34].copy_from_slice(&init.max_background.to_ne_bytes());
    bytes[34..36].copy_from_slice(&init.congestion_threshold.to_ne_bytes());
    bytes[36..38].copy_from_slice(&init.max_pages.to_ne_bytes());
    bytes
}

pub(super) fn read(bytes: &[u8; LENGTH]) -> Option<SavedInit> {
    let u16_at = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
    let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
    let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
    (u32_at(0) == PRESENT).then(|| SavedInit {
        kernel_minor: u32_at(4),
        offered: u64_at(8),
        flags: u64_at(16),
        max_write: u32_at(24),
        max_readahead: u32_at(28),
        max_background: u16_at(32),
        congestion_threshold: u16_at(34),
        max_pages: u16_at(36),
    })
}
