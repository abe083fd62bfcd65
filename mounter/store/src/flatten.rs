//! Chains of branches are kept short in the background: what a parent shows of its own becomes its child's, and the child then begins
//! where its parent began. Which link goes is decided here, for both engines. Pure.

use std::collections::BTreeMap;

use tarbox_types::{BranchId, Layer};

/// Longest chain that is left as it is, however large its links are.
const DEPTH_MOST: usize = 4;
/// Shortest chain of which a link goes: a branch and the base that it begins with are two.
const DEPTH_LEAST: usize = 3;
/// A link of fewer rows goes as soon as that.
const FEW: u64 = 100_000;

/// How far the flattening of a link is: to be handed in again, as long as its database lives. Begun anew it comes to the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flattening {
    /// The branch that gets the rows.
    pub(crate) child: BranchId,
    /// The branch whose rows it gets.
    pub(crate) parent: BranchId,
    /// As of this layer.
    pub(crate) layer: Layer,
    /// Where the parent began when this was begun; not looked at yet = `None`.
    pub(crate) beyond: Option<Option<(BranchId, Layer)>>,
    /// Which table.
    pub(crate) table: usize,
    /// The last key that was looked at, in the order of the table's key; none yet where it is empty.
    pub(crate) after: Vec<KeyPart>,
}

/// A column of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum KeyPart {
    Number(i64),
    Name(Vec<u8>),
}

impl Flattening {
    pub(crate) fn new(link: Fork) -> Self {
        let Fork { child, parent, layer } = link;
        Self { child, parent, layer, beyond: None, table: 0, after: vec![] }
    }

    /// The same, where the parent still begins there. Else another one has flattened the parent's own link meanwhile: rows have come into the
    /// parent behind what was looked at, so that it is begun anew.
    pub(crate) fn on(&self, beyond: Option<(BranchId, Layer)>) -> Self {
        let same = Self { beyond: Some(beyond), ..self.clone() };
        match self.beyond {
            Some(known) if known != beyond => Self { table: 0, after: vec![], ..same },
            Some(_) | None => same,
        }
    }

    /// What follows a page of so many rows: the next page of its table, or the next table.
    pub(crate) fn next(&self, last: Option<Vec<KeyPart>>) -> Self {
        match last {
            Some(after) => Self { after, ..self.clone() },
            None => Self { table: self.table + 1, after: vec![], ..self.clone() },
        }
    }
}

/// What one step of flattening came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flattened {
    /// No chain is too long.
    Nothing,
    /// A link is on its way.
    More(Flattening),
    /// A link is gone.
    Done,
}

/// A branch that begins at a layer of another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fork {
    pub(crate) child: BranchId,
    pub(crate) parent: BranchId,
    pub(crate) layer: Layer,
}

/// The forks of the shallowest chain that is too long, nearest first; its depth is one more. Those below it are short then.
pub(crate) fn longest_allowed(forks: &[Fork]) -> Vec<Fork> {
    let by_child: &BTreeMap<BranchId, Fork> = &forks.iter().map(|fork| (fork.child, *fork)).collect();
    let chain = |child: BranchId| {
        let mut next = by_child.get(&child).copied();
        std::iter::from_fn(move || {
            let fork = next?;
            next = by_child.get(&fork.parent).copied();
            Some(fork)
        })
    };
    let long = by_child.keys().map(|child| chain(*child).collect::<Vec<_>>());
    long.filter(|chain| chain.len() + 1 >= DEPTH_LEAST).min_by_key(Vec::len).unwrap_or_default()
}

/// The link that goes: the one whose parent has the fewest rows of its own, which are given with it.
pub(crate) fn choose(chain: &[(Fork, u64)]) -> Option<Fork> {
    let (link, rows) = chain.iter().min_by_key(|(_, rows)| *rows)?;
    (chain.len() + 1 > DEPTH_MOST || *rows < FEW).then_some(*link)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fork(child: BranchId, parent: BranchId) -> Fork {
        Fork { child, parent, layer: 1 }
    }

    #[test]
    fn the_shallowest_of_the_long_chains_is_looked_at() {
        assert!(longest_allowed(&[fork(2, 1), fork(3, 1)]).is_empty());
        let forks = [fork(2, 1), fork(3, 2), fork(4, 3), fork(9, 1)];
        assert_eq!(longest_allowed(&forks), [fork(3, 2), fork(2, 1)]);
    }

    #[test]
    fn a_link_is_begun_anew_where_its_parents_link_has_gone_meanwhile() {
        let begun = Flattening::new(fork(3, 2)).on(Some((1, 7)));
        let further = begun.next(None).next(Some(vec![KeyPart::Number(5)]));
        assert_eq!(further.on(Some((1, 7))), further);
        assert_eq!(further.on(None), Flattening::new(fork(3, 2)).on(None));
        assert_eq!(further.on(Some((1, 8))), Flattening::new(fork(3, 2)).on(Some((1, 8))));
    }

    #[test]
    fn the_smallest_link_goes_and_large_ones_only_from_long_chains() {
        let of = |rows: &[u64]| {
            let links = (0..).zip(rows).map(|(at, rows)| (fork(10 - at, 9 - at), *rows));
            choose(&links.collect::<Vec<_>>()).map(|link| link.child)
        };
        assert_eq!(of(&[5, 7]), Some(10));
        assert_eq!(of(&[7, 5]), Some(9), "a small base, too");
        assert_eq!(of(&[FEW, FEW + 1]), None);
        assert_eq!(of(&[FEW, FEW, FEW]), None);
        assert_eq!(of(&[FEW + 1, FEW, FEW, FEW + 1]), Some(9));
        assert_eq!(of(&[]), None);
    }
}
