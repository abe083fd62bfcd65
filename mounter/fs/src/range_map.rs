//! Values and sets over ranges of `u64`: what is dirty where, which units are allocated.

use std::ops::Range;

use smallvec::SmallVec;
use tarbox_store::AllocMap;

use crate::small_map::SmallMap;

/// A value that stands for a range and can be cut.
pub trait Slice: Clone {
    /// The value of what is left when the first `offset` positions of its range are cut off.
    /// (What is cut off at the end, the range alone says.)
    #[must_use]
    fn slice(&self, offset: u64) -> Self;
}

/// Disjoint ranges with a value each. Later ones replace earlier ones where they overlap.
#[derive(Clone, Debug)]
pub struct RangeMap<V> {
    /// By first position: position after the last, and the value.
    ranges: SmallMap<u64, (u64, V)>,
}

impl<V> Default for RangeMap<V> {
    fn default() -> Self {
        Self { ranges: SmallMap::default() }
    }
}

impl<V: Slice> RangeMap<V> {
    /// An empty map.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many ranges it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Position after the last one; 0 where there is none.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.ranges.last_key_value().map_or(0, |(_, (end, _))| *end)
    }

    /// Puts `value` at `range`, in place of what is there.
    pub fn insert(&mut self, range: Range<u64>, value: V) {
        if range.start < range.end {
            self.remove(range.clone());
            self.ranges.insert(range.start, (range.end, value));
        }
    }

    /// Takes away what is in `range`.
    pub fn remove(&mut self, range: Range<u64>) {
        if range.start >= range.end {
            return;
        }
        self.split(range.start);
        self.split(range.end);
        // The common case first: one range, or none.
        while let Some(start) = self.first_in(&range) {
            self.ranges.remove(&start);
        }
    }

    /// Takes away what is at or behind `from`.
    pub fn truncate(&mut self, from: u64) {
        self.split(from);
        self.ranges.truncate(&from);
    }

    /// Takes away everything.
    pub fn clear(&mut self) {
        self.ranges.clear();
    }

    /// Keeps the ranges for which `keep` says so.
    pub fn retain(&mut self, mut keep: impl FnMut(Range<u64>, &mut V) -> bool) {
        self.ranges.retain(|&start, (end, value)| keep(start..*end, value));
    }

    /// All ranges, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (Range<u64>, &V)> {
        self.ranges.iter().map(|(&start, (end, value))| (start..*end, value))
    }

    /// The ranges that overlap `range`, whole and in order, without the gaps.
    pub fn overlapping(&self, range: Range<u64>) -> impl Iterator<Item = (Range<u64>, &V)> {
        let first = match self.before(range.start) {
            Some((start, end)) if end > range.start && !range.is_empty() => start,
            _ => range.start,
        };
        self.ranges.range(first..range.end.max(first)).map(|(&start, (end, value))| (start..*end, value))
    }

    /// `range` in pieces, in order and without a hole: each with its value, cut to begin where the piece begins,
    /// or `None` for a gap.
    pub fn pieces(&self, range: Range<u64>) -> impl Iterator<Item = (Range<u64>, Option<V>)> {
        let mut at = range.start;
        let mut overlapping = self.overlapping(range.clone()).peekable();
        std::iter::from_fn(move || {
            if at >= range.end {
                return None;
            }
            let from = at;
            match overlapping.peek() {
                Some((next, value)) if next.start <= from => {
                    at = next.end.min(range.end);
                    let value = value.slice(from - next.start);
                    overlapping.next();
                    Some((from..at, Some(value)))
                }
                next => {
                    at = next.map_or(range.end, |(next, _)| next.start);
                    Some((from..at, None))
                }
            }
        })
    }

    /// Whether all of `range` has values.
    #[must_use]
    pub fn covers(&self, range: Range<u64>) -> bool {
        let mut at = range.start;
        for (piece, _) in self.overlapping(range.clone()) {
            if piece.start > at {
                return false;
            }
            at = piece.end;
        }
        at >= range.end
    }

    /// Where the first range begins that begins in `range`.
    fn first_in(&self, range: &Range<u64>) -> Option<u64> {
        self.ranges.range(range.clone()).next().map(|(&start, _)| start)
    }

    /// The range that begins at or before `at`.
    fn before(&self, at: u64) -> Option<(u64, u64)> {
        self.ranges.range(..=at).next_back().map(|(&start, &(end, _))| (start, end))
    }

    /// Makes `at` a boundary.
    fn split(&mut self, at: u64) {
        if let Some((start, end)) = self.before(at)
            && start < at
            && at < end
            && let Some((old_end, value)) = self.ranges.get_mut(&start)
        {
            *old_end = at;
            let rest = value.slice(at - start);
            self.ranges.insert(at, (end, rest));
        }
    }
}

/// A set of `u64`, kept as ranges: sorted, disjoint, not adjacent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnitSet {
    ranges: SmallMap<u64, u64>,
    total: u64,
}

impl UnitSet {
    /// An empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many units are in it.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Sets `range`, and returns how many of it were not set before.
    pub fn insert(&mut self, range: Range<u64>) -> u64 {
        if range.start >= range.end {
            return 0;
        }
        let (mut start, mut end) = (range.start, range.end);
        let mut had = 0;
        // Everything that overlaps or touches becomes one range.
        while let Some((from, to)) = self.last_in(..=end)
            && to >= start
        {
            had += to.min(range.end).saturating_sub(from.max(range.start));
            (start, end) = (start.min(from), end.max(to));
            self.ranges.remove(&from);
        }
        self.ranges.insert(start, end);
        let new = range.end - range.start - had;
        self.total += new;
        new
    }

    /// The last range that begins in `bounds`.
    fn last_in(&self, bounds: impl std::ops::RangeBounds<u64>) -> Option<(u64, u64)> {
        self.ranges.range(bounds).next_back().map(|(&start, &end)| (start, end))
    }

    /// Clears `range`, and returns how many of it were set before.
    pub fn remove(&mut self, range: Range<u64>) -> u64 {
        let mut had = 0;
        while range.start < range.end
            && let Some((from, to)) = self.last_in(..range.end)
            && to > range.start
        {
            self.ranges.remove(&from);
            if from < range.start {
                self.ranges.insert(from, range.start);
            }
            if to > range.end {
                self.ranges.insert(range.end, to);
            }
            had += to.min(range.end) - from.max(range.start);
        }
        self.total -= had;
        had
    }

    /// Clears everything at or behind `from`, and returns how many were set.
    pub fn truncate(&mut self, from: u64) -> u64 {
        self.remove(from..u64::MAX)
    }

    /// Whether `unit` is set.
    #[must_use]
    pub fn contains(&self, unit: u64) -> bool {
        self.ranges.range(..=unit).next_back().is_some_and(|(_, &end)| unit < end)
    }

    /// How many of `range` are set.
    #[must_use]
    pub fn count(&self, range: Range<u64>) -> u64 {
        self.overlapping(range).map(|part| part.end - part.start).sum()
    }

    /// The first set unit at or behind `from`.
    #[must_use]
    pub fn next_set(&self, from: u64) -> Option<u64> {
        if self.contains(from) {
            return Some(from);
        }
        self.ranges.range(from..).next().map(|(&start, _)| start)
    }

    /// The first unit at or behind `from` that is not set.
    #[must_use]
    pub fn next_clear(&self, from: u64) -> u64 {
        match self.ranges.range(..=from).next_back() {
            Some((_, &end)) if end > from => end,
            _ => from,
        }
    }

    /// The ranges, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Range<u64>> {
        self.ranges.iter().map(|(&start, &end)| start..end)
    }

    /// What of `range` is set, in order.
    pub fn overlapping(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let first = self.ranges.range(..range.start).next_back().map_or(range.start, |(&start, _)| start);
        let parts = self.ranges.range(first..range.end.max(first));
        parts
            .map(move |(&start, &end)| start.max(range.start)..end.min(range.end))
            .filter(|part| part.start < part.end)
    }

    /// The allocation map of the block of `units` units that begins with unit `first`.
    #[must_use]
    pub fn alloc_map(&self, first: u64, units: u64) -> AllocMap {
        let mut bits = SmallVec::new();
        for unit in self.overlapping(first..first.saturating_add(units)).flatten() {
            let bit = (unit - first) as usize;
            if bits.len() <= bit / 8 {
                bits.resize(bit / 8 + 1, 0);
            }
            bits[bit / 8] |= 1 << (bit % 8);
        }
        AllocMap(bits)
    }

    /// Sets the units of a block's allocation map, and returns how many were not set before.
    /// Bits beyond `units` are none of the block.
    pub fn insert_map(&mut self, first: u64, units: u64, map: &AllocMap) -> u64 {
        let is_set = |bit: u64| map.0.get((bit / 8) as usize).is_some_and(|byte| byte >> (bit % 8) & 1 == 1);
        let end = units.min(map.0.len() as u64 * 8);
        let (mut bit, mut new) = (0, 0);
        while bit < end {
            let from = bit;
            while bit < end && is_set(bit) {
                bit += 1;
            }
            new += self.insert(first + from..first + bit);
            bit += 1;
        }
        new
    }

    /// Makes a block's units what its allocation map says; returns how many were set, and how many cleared.
    pub fn replace_map(&mut self, first: u64, units: u64, map: &AllocMap) -> (u64, u64) {
        let before = self.remove(first..first + units);
        let after = self.insert_map(first, units, map);
        (after, before)
    }
}

impl FromIterator<Range<u64>> for UnitSet {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(ranges: I) -> Self {
        let mut set = Self::new();
        ranges.into_iter().for_each(|range| {
            set.insert(range);
        });
        set
    }
}

#[cfg(test)]
mod tests;
