//! An ordered map that takes little memory while it has few entries, which most have: one per file, for a million files.
//! (A node of a `BTreeMap` has room for eleven, however few there are.)

use std::{collections::BTreeMap, mem, ops::RangeBounds};

/// Up to that many entries stand in a sorted vector.
const FEW: usize = 8;

/// See the module's documentation. What it offers, it offers as `BTreeMap` does.
#[derive(Clone, Debug)]
pub(crate) enum SmallMap<K, V> {
    Few(Vec<(K, V)>),
    Many(BTreeMap<K, V>),
}

impl<K, V> Default for SmallMap<K, V> {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl<K: Ord, V> SmallMap<K, V> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Few(few) => few.len(),
            Self::Many(many) => many.len(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        match self {
            Self::Few(few) => place(few, key).ok().map(|at| &few[at].1),
            Self::Many(many) => many.get(key),
        }
    }

    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        match self {
            Self::Few(few) => place(few, key).ok().map(|at| &mut few[at].1),
            Self::Many(many) => many.get_mut(key),
        }
    }

    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        match self {
            Self::Few(few) => match place(few, &key) {
                Ok(at) => return Some(mem::replace(&mut few[at].1, value)),
                Err(at) if few.len() < FEW => {
                    if few.len() == few.capacity() {
                        // Room for one, two, four: a vector's own first step is four.
                        few.reserve_exact(few.len().max(1));
                    }
                    few.insert(at, (key, value));
                }
                Err(_) => {
                    let mut many: BTreeMap<K, V> = mem::take(few).into_iter().collect();
                    many.insert(key, value);
                    *self = Self::Many(many);
                }
            },
            Self::Many(many) => return many.insert(key, value),
        }
        None
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let removed = match self {
            Self::Few(few) => place(few, key).ok().map(|at| few.remove(at).1),
            Self::Many(many) => many.remove(key),
        };
        self.give_back();
        removed
    }

    /// Drops what is at or beyond `from`.
    pub(crate) fn truncate(&mut self, from: &K) {
        match self {
            Self::Few(few) => few.truncate(place(few, from).unwrap_or_else(|at| at)),
            Self::Many(many) => drop(many.split_off(from)),
        }
        self.give_back();
    }

    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&K, &mut V) -> bool) {
        match self {
            Self::Few(few) => few.retain_mut(|(key, value)| keep(key, value)),
            Self::Many(many) => many.retain(keep),
        }
        self.give_back();
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &V)> {
        self.range(..)
    }

    pub(crate) fn range(&self, range: impl RangeBounds<K>) -> impl DoubleEndedIterator<Item = (&K, &V)> {
        let (few, many) = match self {
            Self::Few(few) => {
                let from = few.partition_point(|(key, _)| is_before(&range, key));
                let len = few[from..].partition_point(|(key, _)| range.contains(key));
                (Some(&few[from..from + len]), None)
            }
            Self::Many(many) => (None, Some(many.range(range))),
        };
        let few = few.into_iter().flatten().map(|(key, value)| (key, value));
        few.chain(many.into_iter().flatten())
    }

    pub(crate) fn last_key_value(&self) -> Option<(&K, &V)> {
        self.iter().next_back()
    }

    /// What is empty takes no memory.
    fn give_back(&mut self) {
        if self.is_empty() {
            self.clear();
        }
    }
}

impl<K: Ord, V: PartialEq> PartialEq for SmallMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl<K: Ord, V: Eq> Eq for SmallMap<K, V> {}

fn place<K: Ord, V>(few: &[(K, V)], key: &K) -> Result<usize, usize> {
    few.binary_search_by(|(other, _)| other.cmp(key))
}

/// Whether `key` lies before the whole range.
fn is_before<K: Ord>(range: &impl RangeBounds<K>, key: &K) -> bool {
    match range.start_bound() {
        std::ops::Bound::Included(start) => key < start,
        std::ops::Bound::Excluded(start) => key <= start,
        std::ops::Bound::Unbounded => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u8, u8),
        Remove(u8),
        Truncate(u8),
        Retain(u8),
        Change(u8, u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        let key = 0..24_u8;
        prop_oneof![
            6 => (key.clone(), any::<u8>()).prop_map(|(key, value)| Step::Insert(key, value)),
            3 => key.clone().prop_map(Step::Remove),
            1 => key.clone().prop_map(Step::Truncate),
            1 => (2..5_u8).prop_map(Step::Retain),
            2 => (key, any::<u8>()).prop_map(|(key, value)| Step::Change(key, value)),
        ]
    }

    proptest! {
        #[test]
        fn does_as_a_btree_map_does(steps in proptest::collection::vec(step(), 0..60), from in 0..24_u8, to in 0..24_u8) {
            let (mut small, mut model) = (SmallMap::default(), BTreeMap::new());
            for step in steps {
                match step {
                    Step::Insert(key, value) => prop_assert_eq!(small.insert(key, value), model.insert(key, value)),
                    Step::Remove(key) => prop_assert_eq!(small.remove(&key), model.remove(&key)),
                    Step::Truncate(key) => {
                        small.truncate(&key);
                        drop(model.split_off(&key));
                    }
                    Step::Retain(modulo) => {
                        small.retain(|key, _| key % modulo == 0);
                        model.retain(|key, _| key % modulo == 0);
                    }
                    Step::Change(key, value) => {
                        prop_assert_eq!(small.get(&key), model.get(&key));
                        if let (Some(a), Some(b)) = (small.get_mut(&key), model.get_mut(&key)) {
                            *a = value;
                            *b = value;
                        }
                    }
                }
                prop_assert_eq!(small.len(), model.len());
                prop_assert_eq!(small.last_key_value(), model.last_key_value());
            }
            prop_assert!(small.iter().eq(model.iter()));
            let range = from.min(to)..from.max(to);
            prop_assert!(small.range(range.clone()).eq(model.range(range.clone())));
            prop_assert!(small.range(range.clone()).rev().eq(model.range(range.clone()).rev()));
            prop_assert!(small.range(..=to).eq(model.range(..=to)));
            prop_assert!(small.range(from..).rev().eq(model.range(from..).rev()));
        }
    }
}
