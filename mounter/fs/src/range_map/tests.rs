//! Against arrays that hold one value per position.

use proptest::prelude::*;

use super::*;

/// A value that knows which insertion it is of, and how far into it it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    of: u32,
    offset: u64,
}

impl Slice for Mark {
    fn slice(&self, offset: u64) -> Self {
        Self { of: self.of, offset: self.offset + offset }
    }
}

const SPACE: usize = 64;

#[derive(Clone, Debug)]
enum Step {
    Insert(usize, usize),
    Remove(usize, usize),
    Truncate(usize),
    DropOdd,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let bounds = (0..=SPACE, 0..=SPACE).prop_map(|(a, b)| (a.min(b), a.max(b)));
    let step = prop_oneof![
        6 => bounds.clone().prop_map(|(a, b)| Step::Insert(a, b)),
        3 => bounds.prop_map(|(a, b)| Step::Remove(a, b)),
        1 => (0..=SPACE).prop_map(Step::Truncate),
        1 => Just(Step::DropOdd),
    ];
    proptest::collection::vec(step, 1..40)
}

fn ends(from: usize, to: usize) -> Range<u64> {
    from as u64..to as u64
}

proptest! {
    #[test]
    fn a_range_map_holds_what_an_array_would(steps in steps(), from in 0..SPACE, len in 0..SPACE) {
        let mut map = RangeMap::new();
        let mut model = [None::<Mark>; SPACE];
        for (of, step) in (0u32..).zip(&steps) {
            match *step {
                Step::Insert(a, b) => {
                    map.insert(ends(a, b), Mark { of, offset: 0 });
                    (a..b).for_each(|at| model[at] = Some(Mark { of, offset: (at - a) as u64 }));
                }
                Step::Remove(a, b) => {
                    map.remove(ends(a, b));
                    model[a..b].fill(None);
                }
                Step::Truncate(a) => {
                    map.truncate(a as u64);
                    model[a..].fill(None);
                }
                Step::DropOdd => {
                    map.retain(|_, mark| mark.of % 2 == 0);
                    model.iter_mut().for_each(|mark| *mark = mark.filter(|mark| mark.of % 2 == 0));
                }
            }
            let mut read = [None; SPACE];
            let mut last_end = 0;
            for (range, mark) in map.iter() {
                prop_assert!(last_end <= range.start && range.start < range.end);
                last_end = range.end;
                for at in range.clone() {
                    read[at as usize] = Some(mark.slice(at - range.start));
                }
            }
            prop_assert_eq!(read, model);
            prop_assert_eq!(map.end(), model.iter().rposition(Option::is_some).map_or(0, |at| at as u64 + 1));
        }
        let to = (from + len).min(SPACE);
        let mut at = from as u64;
        for (piece, mark) in map.pieces(ends(from, to)) {
            prop_assert!(piece.start == at && piece.end > at, "pieces follow each other");
            for unit in piece.clone() {
                prop_assert_eq!(mark.map(|mark| mark.slice(unit - piece.start)), model[unit as usize]);
            }
            at = piece.end;
        }
        prop_assert_eq!(at, from.max(to) as u64);
        prop_assert_eq!(map.covers(ends(from, to)), model[from..to].iter().all(Option::is_some));
        let overlapping = map.overlapping(ends(from, to)).map(|(range, _)| range).collect::<Vec<_>>();
        let expected = map.iter().map(|(range, _)| range);
        let expected = expected.filter(|range| range.start < to as u64 && range.end > from as u64 && from < to);
        prop_assert_eq!(overlapping, expected.collect::<Vec<_>>());
    }

    #[test]
    fn a_unit_set_holds_and_counts_what_an_array_would(steps in steps(), from in 0..SPACE, to in 0..SPACE) {
        let mut set = UnitSet::new();
        let mut model = [false; SPACE];
        for step in &steps {
            let count = |model: &[bool], value| model.iter().filter(|&&set| set == value).count() as u64;
            match *step {
                Step::Insert(a, b) => {
                    prop_assert_eq!(set.insert(ends(a, b)), count(&model[a..b], false));
                    model[a..b].fill(true);
                }
                Step::Remove(a, b) => {
                    prop_assert_eq!(set.remove(ends(a, b)), count(&model[a..b], true));
                    model[a..b].fill(false);
                }
                Step::Truncate(a) => {
                    prop_assert_eq!(set.truncate(a as u64), count(&model[a..], true));
                    model[a..].fill(false);
                }
                Step::DropOdd => {}
            }
            let mut read = [false; SPACE];
            let mut last_end = None;
            for range in set.iter() {
                prop_assert!(last_end.is_none_or(|end| end < range.start), "not adjacent");
                prop_assert!(range.start < range.end);
                last_end = Some(range.end);
                read[range.start as usize..range.end as usize].fill(true);
            }
            prop_assert_eq!(read, model);
            prop_assert_eq!(set.total(), count(&model, true));
        }
        prop_assert_eq!(set.contains(from as u64), model[from]);
        let next = |value| model[from..].iter().position(|&set| set == value).map(|at| (from + at) as u64);
        prop_assert_eq!(set.next_set(from as u64), next(true));
        prop_assert_eq!(set.next_clear(from as u64), next(false).unwrap_or(SPACE as u64));
        if from <= to {
            prop_assert_eq!(set.count(ends(from, to)), model[from..to].iter().filter(|&&set| set).count() as u64);
        }
        prop_assert_eq!(set.iter().collect::<UnitSet>(), set);
    }

    #[test]
    fn a_block_goes_into_an_alloc_map_and_back(steps in steps(), first in 0..SPACE as u64, units in 1u64..40) {
        let mut set = UnitSet::new();
        for step in &steps {
            match *step {
                Step::Insert(a, b) => { set.insert(ends(a, b)); }
                Step::Remove(a, b) => { set.remove(ends(a, b)); }
                Step::Truncate(_) | Step::DropOdd => {}
            }
        }
        let map = set.alloc_map(first, units);
        prop_assert!(map.0.last().is_none_or(|&byte| byte != 0), "trailing zero bytes are left out");
        for bit in 0..units {
            let byte = map.0.get((bit / 8) as usize).copied().unwrap_or(0);
            prop_assert_eq!(byte >> (bit % 8) & 1 == 1, set.contains(first + bit));
        }
        let block = first..first + units;
        let mut back = UnitSet::new();
        back.insert(0..200);
        let (new, old) = back.replace_map(first, units, &map);
        prop_assert_eq!((new, old), (set.count(block.clone()), units));
        prop_assert_eq!(back.overlapping(block.clone()).collect::<Vec<_>>(), set.overlapping(block.clone()).collect::<Vec<_>>());
        prop_assert_eq!(back.total(), 200 - units + new);
    }
}

#[test]
fn the_ends_of_the_space_are_no_special_case() {
    let mut set = UnitSet::new();
    assert_eq!(set.insert(0..u64::MAX), u64::MAX);
    assert_eq!(set.remove(u64::MAX - 1..u64::MAX), 1);
    assert_eq!(set.truncate(0), u64::MAX - 1);
    let mut map = RangeMap::new();
    map.insert(0..u64::MAX, Mark { of: 0, offset: 0 });
    map.remove(1..u64::MAX - 1);
    let pieces = map.pieces(0..u64::MAX).map(|(range, _)| range).collect::<Vec<_>>();
    assert_eq!(pieces, [0..1, 1..u64::MAX - 1, u64::MAX - 1..u64::MAX]);
}
