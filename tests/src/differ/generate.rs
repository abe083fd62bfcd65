//! Draws a sequence from a seed. Few names and few slots, so that steps meet each other.

use nix::libc;

use super::ops::{Op, Step};
use crate::rng::Rng;

const SLOTS: u64 = 6;
const MODES: [u32; 12] =
    [0o644, 0o600, 0o755, 0o777, 0o700, 0o000, 0o4755, 0o2755, 0o6777, 0o1777, 0o444, 0o2775];
const DIRS: [&str; 6] = ["", "d0", "d1", "d0/d2", "d1/d3", "d2"];
const XATTRS: [&str; 6] = ["user.a", "user.b", "trusted.t", "security.s", "user.", "nonsense"];

/// So many steps of a seed.
#[must_use]
pub fn generate(seed: u64, steps: usize) -> Vec<Step> {
    let mut rng = Rng::new(seed);
    (0..steps).map(|i| next(&mut rng, i)).collect()
}

// Now and then the directories are put right: after a random chmod or rename nearly everything would fail for ever.
fn next(rng: &mut Rng, i: usize) -> Step {
    let path = DIRS[1 + (i / 2) % 4].to_owned();
    let op = match (i % 150, i % 2) {
        (0..8, 0) => Op::Mkdir { path, mode: 0o777 },
        (0..8, _) => Op::Chmod { path, mode: 0o777 },
        _ => return by_owner_of_nothing(Step { uid: user(rng), op: op(rng) }),
    };
    Step { uid: 0, op }
}

fn user(rng: &mut Rng) -> u32 {
    match rng.below(10) {
        0 => 65534,
        1 => 1,
        _ => 0,
    }
}

fn op(rng: &mut Rng) -> Op {
    if rng.one_in(2) { on_slots(rng) } else { on_names(rng) }
}

fn on_slots(rng: &mut Rng) -> Op {
    let slot = slot(rng);
    match rng.below(30) {
        0..=5 => Op::Open { path: path(rng), flags: open_flags(rng), mode: *rng.pick(&MODES), slot },
        6 => Op::Tmpfile { dir: dir(rng), mode: *rng.pick(&MODES), slot },
        7 => Op::LinkSlot { slot, path: path(rng) },
        8 => Op::Close { slot },
        9..=12 => Op::Write { slot, off: offset(rng), len: length(rng), seed: rng.next_u64() },
        13 | 14 => Op::WriteAtPosition { slot, len: length(rng), seed: rng.next_u64() },
        15..=17 => Op::Read { slot, off: offset(rng), len: length(rng) },
        18 => Op::CopyRange {
            from: slot,
            to: self::slot(rng),
            from_off: offset(rng),
            to_off: offset(rng),
            len: length(rng),
        },
        19..=21 => {
            Op::Fallocate { slot, mode: fallocate_mode(rng), off: offset(rng), len: length(rng) as u64 }
        }
        22 => Op::SeekData { slot, off: offset(rng) },
        23 => Op::SeekHole { slot, off: offset(rng) },
        24 | 25 => Op::TruncateSlot { slot, len: offset(rng) },
        26 => Op::StatSlot { slot },
        27 => Op::Fsync { slot, data_only: rng.one_in(2) },
        28 => Op::TryLock { slot, shared: rng.one_in(2) },
        _ => Op::Unlock { slot },
    }
}

fn on_names(rng: &mut Rng) -> Op {
    match rng.below(34) {
        0..=2 => Op::Mkdir { path: path(rng), mode: *rng.pick(&MODES) },
        3 => Op::Rmdir { path: path(rng) },
        4 => Op::Mknod {
            path: path(rng),
            kind: *rng.pick(&[libc::S_IFIFO, libc::S_IFSOCK, libc::S_IFCHR, libc::S_IFBLK, libc::S_IFREG]),
            mode: *rng.pick(&MODES),
        },
        5..=7 => Op::Unlink { path: path(rng) },
        8 | 9 => Op::Symlink { target: path(rng), path: path(rng) },
        10 => Op::Readlink { path: path(rng) },
        11 | 12 => Op::Link { from: path(rng), to: path(rng) },
        13..=17 => Op::Rename {
            from: path(rng),
            to: path(rng),
            flags: *rng.pick(&[
                0,
                0,
                0,
                libc::RENAME_NOREPLACE,
                libc::RENAME_EXCHANGE,
                libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE,
            ]),
        },
        18 | 19 => Op::Chmod { path: path(rng), mode: *rng.pick(&MODES) },
        20 | 21 => Op::Chown { path: path(rng), uid: owner(rng), gid: owner(rng), follow: rng.one_in(2) },
        22 => Op::SetTimes {
            path: path(rng),
            atime: time(rng),
            mtime: time(rng),
            nsec: (rng.below(1_000_000_000)).cast_signed(),
            follow: rng.one_in(2),
        },
        23..=25 => Op::Stat { path: path(rng), follow: rng.one_in(3) },
        26 | 27 => Op::List { path: dir(rng) },
        28 => Op::SetXattr {
            path: path(rng),
            name: (*rng.pick(&XATTRS)).into(),
            len: rng.below(300) as usize,
            seed: rng.next_u64(),
        },
        29 => Op::GetXattr { path: path(rng), name: (*rng.pick(&XATTRS)).into() },
        30 => Op::RemoveXattr { path: path(rng), name: (*rng.pick(&XATTRS)).into() },
        31 => Op::Truncate { path: path(rng), len: offset(rng) },
        _ => {
            Op::Access { path: path(rng), mode: *rng.pick(&[libc::F_OK, libc::R_OK, libc::W_OK, libc::X_OK]) }
        }
    }
}

fn slot(rng: &mut Rng) -> usize {
    rng.below(SLOTS) as usize
}

fn dir(rng: &mut Rng) -> String {
    (if rng.one_in(3) { "" } else { *rng.pick(&DIRS) }).into()
}

fn path(rng: &mut Rng) -> String {
    if rng.one_in(60) {
        return (*rng.pick(&["d0/..", ".", "d0/.", "nowhere/x", "f0/x", "d0/", "f0/"])).into();
    }
    if rng.one_in(80) {
        return "n".repeat(*rng.pick(&[255, 256]));
    }
    let (dir, name) = (dir(rng), format!("{}{}", rng.pick(&["f", "f", "f", "f", "d"]), rng.below(4)));
    if dir.is_empty() { name } else { format!("{dir}/{name}") }
}

fn open_flags(rng: &mut Rng) -> i32 {
    let mut flags = *rng.pick(&[libc::O_RDWR, libc::O_RDWR, libc::O_RDWR, libc::O_RDONLY, libc::O_WRONLY]);
    if !rng.one_in(4) {
        flags |= libc::O_CREAT;
    }
    for (flag, n) in [
        (libc::O_EXCL, 8),
        (libc::O_TRUNC, 6),
        (libc::O_APPEND, 6),
        (libc::O_NOFOLLOW, 8),
        (libc::O_DIRECTORY, 20),
        (libc::O_SYNC, 20),
    ] {
        if rng.one_in(n) {
            flags |= flag;
        }
    }
    // Opening a FIFO would wait for the other end.
    flags | libc::O_NONBLOCK
}

fn fallocate_mode(rng: &mut Rng) -> i32 {
    let (keep, punch, zero) =
        (libc::FALLOC_FL_KEEP_SIZE, libc::FALLOC_FL_PUNCH_HOLE, libc::FALLOC_FL_ZERO_RANGE);
    *rng.pick(&[0, keep, keep | punch, keep | punch, zero, zero | keep, punch])
}

// Around the edges of pages, units and blocks as well as anywhere.
fn offset(rng: &mut Rng) -> u64 {
    match rng.below(6) {
        0 => 0,
        1 => rng.below(5000),
        2 => (rng.below(64) * 4096 + rng.below(3)).saturating_sub(1),
        3 => (rng.below(5) * 131_072 + rng.below(3)).saturating_sub(1),
        4 => rng.below(600_000),
        _ => {
            if rng.one_in(8) {
                (40 << 20) + rng.below(10_000)
            } else {
                rng.below(20_000)
            }
        }
    }
}

fn length(rng: &mut Rng) -> usize {
    (match rng.below(5) {
        0 => rng.below(100),
        1 => rng.below(5000),
        2 => 4096 * rng.below(8),
        3 => rng.below(150_000),
        _ => rng.below(400_000),
    }) as usize
}

/// `chown(path, -1, -1)` is left to root: SEMANTICS.md says what FUSE makes of it for those who do not own the file.
fn by_owner_of_nothing(mut step: Step) -> Step {
    if let Op::Chown { uid: None, gid: None, .. } = step.op {
        step.uid = 0;
    }
    step
}

fn owner(rng: &mut Rng) -> Option<u32> {
    *rng.pick(&[None, Some(0), Some(1), Some(65534), Some(1234)])
}

// Never today: what the kernel sets to the present time is told apart by that.
fn time(rng: &mut Rng) -> i64 {
    *rng.pick(&[0, 1, 981_173_106, 1_000_000_000, 4_102_444_800, -86_400])
}
