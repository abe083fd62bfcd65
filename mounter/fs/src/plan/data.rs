//! Content: write, read, fallocate, lseek.

use std::ops::Range;

use tarbox_store::{InodeRow, UNIT};
use tarbox_types::{DataId, Ino};

use super::{Caller, Draft, Planned, check_regular, is_dir};
use crate::{
    effect::{Effect, Outcome, Record},
    error::FsError,
    tree::{Piece, Tree},
};

/// The most that is read or copied at once.
pub(crate) const READ_MAX: u64 = 1 << 20;

/// What fallocate is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fallocate {
    Allocate,
    PunchHole,
    ZeroRange,
}

/// What lseek looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seek {
    Data,
    Hole,
}

/// What a read consists of.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    pub did: DataId,
    /// Version of the content's committed part: blocks loaded under another one do not count.
    pub version: u64,
    pub pieces: Vec<Piece>,
    pub len: u64,
}

/// So many ranges of a file may be reserved: its row, of which each record of the journal has a copy, holds them all.
const RESERVED_RANGES: usize = 4096;

impl Tree {
    /// pwrite: `len` bytes of the record's payload, from its beginning. Where the quota or the largest file
    /// leaves room for a part only, that part is written.
    pub(crate) fn write(
        &self,
        caller: &Caller,
        ino: Ino,
        offset: u64,
        len: u64,
        kill: bool,
    ) -> Planned<Record> {
        let mut draft = Draft::new(self);
        let mut row = self.node(ino)?.row.clone();
        check_regular(&row)?;
        let largest = draft.largest_file();
        if offset >= largest && len > 0 {
            return Err(FsError::FileTooLarge.into());
        }
        let end = draft.allocate(&mut row, offset..(offset + len).min(largest))?;
        if end == offset && len > 0 {
            return Err(draft.out_of_space());
        }
        row.size = row.size.max(end);
        row.mtime = caller.now;
        row.ctime = caller.now;
        draft.push(Effect::Write { did: row.did, offset, at: 0, len: (end - offset) as u32 });
        draft.drop_privileges(&mut row, kill)?;
        draft.effects.insert(0, Effect::Inode(row));
        Ok(draft.finish(caller, Outcome::Count(end - offset)))
    }

    /// pread.
    pub(crate) fn read(&self, ino: Ino, offset: u64, len: u64) -> Planned<Reading> {
        let row = &self.node(ino)?.row;
        check_regular(row)?;
        let end = (offset + len.min(READ_MAX)).min(row.size);
        let content = self.content_of(row)?;
        let range = offset.min(end)..end;
        Ok(Reading {
            did: row.did,
            version: content.version,
            len: range.end - range.start,
            pieces: content.pieces(row.did, range)?,
        })
    }

    /// fallocate(2).
    pub(crate) fn fallocate(
        &self,
        caller: &Caller,
        ino: Ino,
        bytes: Range<u64>,
        what: Fallocate,
        keep_size: bool,
    ) -> Planned<Record> {
        let mut draft = Draft::new(self);
        let mut row = self.node(ino)?.row.clone();
        if is_dir(&row) {
            return Err(FsError::IsDirectory.into());
        }
        check_regular(&row)?;
        if bytes.end > draft.largest_file() && what != Fallocate::PunchHole {
            return Err(FsError::FileTooLarge.into());
        }
        match what {
            Fallocate::PunchHole => draft.punch(&mut row, bytes)?,
            Fallocate::ZeroRange => {
                draft.preallocate(&mut row, bytes.clone())?;
                draft.push(Effect::Zero {
                    did: row.did,
                    from: bytes.start,
                    to: bytes.end,
                    deallocate: false,
                });
                row.size = if keep_size { row.size } else { row.size.max(bytes.end) };
            }
            Fallocate::Allocate => {
                draft.preallocate(&mut row, bytes.clone())?;
                row.size = if keep_size { row.size } else { row.size.max(bytes.end) };
            }
        }
        row.mtime = caller.now;
        row.ctime = caller.now;
        // FALLOCATE has no flag for it: only root is taken to have CAP_FSETID.
        draft.drop_privileges(&mut row, caller.uid != 0)?;
        draft.effects.insert(0, Effect::Inode(row));
        Ok(draft.finish(caller, Outcome::Done))
    }

    /// lseek(2) with SEEK_DATA or SEEK_HOLE. What is preallocated and not written is a hole.
    pub(crate) fn seek(&self, ino: Ino, offset: u64, what: Seek) -> Planned<u64> {
        let row = &self.node(ino)?.row;
        check_regular(row)?;
        if offset >= row.size {
            return Err(FsError::NoData.into());
        }
        let content = self.content_of(row)?;
        let end = row.size.div_ceil(UNIT);
        let mut at = offset / UNIT;
        // Looked at in growing windows: the answer is mostly near, and a large file's extents are many.
        let mut window = 64 * self.block_size / UNIT;
        while at < end {
            let next = (at + window).min(end);
            for (run, written) in content.runs(row.did, at..next)? {
                if written == (what == Seek::Data) {
                    return Ok((run.start * UNIT).max(offset).min(row.size));
                }
            }
            at = next;
            window *= 4;
        }
        match what {
            Seek::Data => Err(FsError::NoData.into()),
            Seek::Hole => Ok(row.size),
        }
    }
}

impl Draft<'_> {
    /// Charges what a write to `bytes` allocates newly; returns the end of what there is room for.
    fn allocate(&mut self, row: &mut InodeRow, bytes: Range<u64>) -> Planned<u64> {
        let content = self.tree.content_of(row)?;
        let units = bytes.start / UNIT..bytes.end.div_ceil(UNIT);
        let mut end = bytes.end;
        let mut new = (units.end - units.start) - content.allocated(row.did, units.clone(), &row.prealloc)?;
        let room = self.room();
        if new > room {
            if self.tree.may_have_orphans() {
                return Err(self.out_of_space());
            }
            let fitting = fitting_units(content.runs(row.did, units.clone())?, &row.prealloc, room);
            end = end.min(fitting * UNIT).max(bytes.start);
            new = room;
        }
        if end > bytes.start {
            // What was reserved stays so, written or not: taken out page by page, the row would grow with every random
            // write, and each record of the journal holds it.
            self.charge(row, new)?;
        }
        Ok(end)
    }

    /// Reserves a range, and charges what of it is not allocated.
    fn preallocate(&mut self, row: &mut InodeRow, bytes: Range<u64>) -> Planned<()> {
        let content = self.tree.content_of(row)?;
        let units = bytes.start / UNIT..bytes.end.div_ceil(UNIT);
        let new = (units.end - units.start) - content.allocated(row.did, units.clone(), &row.prealloc)?;
        self.charge(row, new)?;
        insert(&mut row.prealloc, units);
        if row.prealloc.len() > RESERVED_RANGES {
            return Err(FsError::NoSpace.into());
        }
        Ok(())
    }

    /// Makes a hole: units wholly inside are free, the rest of the range is zeroed.
    fn punch(&mut self, row: &mut InodeRow, bytes: Range<u64>) -> Planned<()> {
        let content = self.tree.content_of(row)?;
        // The last unit of the file ends with the file.
        let end = if bytes.end >= row.size { bytes.end.next_multiple_of(UNIT) } else { bytes.end };
        let start = bytes.start.div_ceil(UNIT);
        let units = start..(end / UNIT).max(start);
        let freed = content.allocated(row.did, units.clone(), &row.prealloc)?;
        self.set_charge(row, (row.charge / UNIT).saturating_sub(freed));
        subtract(&mut row.prealloc, units);
        if row.prealloc.len() > RESERVED_RANGES {
            self.give_up_smallest(row)?;
        }
        self.push(Effect::Zero { did: row.did, from: bytes.start, to: end, deallocate: true });
        Ok(())
    }

    /// What is reserved and not written in the smallest range is so no longer.
    fn give_up_smallest(&mut self, row: &mut InodeRow) -> Planned<()> {
        let sizes = row.prealloc.iter().map(|range| range.end - range.start).enumerate();
        let Some((index, size)) = sizes.min_by_key(|(_, size)| *size) else { return Ok(()) };
        let range = row.prealloc.remove(index);
        let written = self.tree.content_of(row)?.allocated(row.did, range, &[])?;
        self.set_charge(row, (row.charge / UNIT).saturating_sub(size - written));
        Ok(())
    }
}

/// The unit before which `room` units that are neither written nor reserved have been passed.
fn fitting_units(runs: Vec<(Range<u64>, bool)>, reserved: &[Range<u64>], mut room: u64) -> u64 {
    let mut at = runs.first().map_or(0, |(run, _)| run.start);
    for (run, written) in runs {
        for unit in run.clone() {
            let free = written || reserved.iter().any(|range| range.contains(&unit));
            if !free && room == 0 {
                return unit;
            }
            room -= u64::from(!free);
        }
        at = run.end;
    }
    at
}

/// Takes `range` out of sorted, disjoint ranges.
fn subtract(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    if !ranges.iter().any(|r| r.start < range.end && range.start < r.end) {
        return;
    }
    *ranges = ranges
        .iter()
        .flat_map(|r| [r.start..r.end.min(range.start), r.start.max(range.end)..r.end])
        .filter(|r| !r.is_empty())
        .collect();
}

/// Adds `range` to sorted, disjoint ranges that do not touch.
fn insert(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    if range.is_empty() {
        return;
    }
    let mut merged = range;
    ranges.retain(|r| {
        let apart = r.end < merged.start || merged.end < r.start;
        if !apart {
            merged = merged.start.min(r.start)..merged.end.max(r.end);
        }
        apart
    });
    let at = ranges.partition_point(|r| r.start < merged.start);
    ranges.insert(at, merged);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_ranges_stay_sorted_and_disjoint() {
        let mut ranges = Vec::new();
        for range in [4..6, 10..12, 6..7, 1..2, 0..1, 11..15] {
            insert(&mut ranges, range);
        }
        assert_eq!(ranges, [0..2, 4..7, 10..15]);
        subtract(&mut ranges, 5..11);
        assert_eq!(ranges, [0..2, 4..5, 11..15]);
    }

    #[test]
    fn a_write_stops_where_the_room_ends() {
        // Units 0-1 written, 2 reserved, 3-9 new.
        let runs = vec![(0..2, true), (2..10, false)];
        let reserved = vec![std::ops::Range { start: 2, end: 3 }];
        assert_eq!(fitting_units(runs.clone(), &reserved, 4), 7);
        assert_eq!(fitting_units(runs, &reserved, 0), 3);
    }
}
