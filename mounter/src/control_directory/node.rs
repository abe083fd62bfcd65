//! Node ids: the view of the tenant that an inode is seen in (16 bits), and its number there (48 bits). Pure.

use tarbox_types::{
    Ino, ROOT_INO,
    fuse::{CONTROL_VIEW, INO_BITS},
};

/// The tenant as it is now: its node ids are its inode numbers.
pub(super) const HEAD: u16 = 0;
/// The control directory. What follows are checkpoints that are looked at.
pub(super) const CONTROL: u16 = CONTROL_VIEW;

/// What is seen.
pub(super) fn view_of(node: u64) -> u16 {
    (node >> INO_BITS) as u16
}

/// The number in its view.
pub(super) fn ino_of(node: u64) -> Ino {
    node & ((1 << INO_BITS) - 1)
}

/// The node id of an inode in a view; no inode (0) is none in every view.
pub(super) fn node(view: u16, ino: Ino) -> u64 {
    if ino == 0 { 0 } else { u64::from(view) << INO_BITS | ino }
}

/// A view's root directory.
pub(super) fn root_of(view: u16) -> u64 {
    node(view, ROOT_INO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn view_and_number_come_out_as_they_went_in_and_the_heads_ids_are_its_numbers() {
        for (view, ino) in [(HEAD, 1), (CONTROL, 7), (2, (1 << INO_BITS) - 1), (u16::MAX, 42)] {
            assert_eq!((view_of(node(view, ino)), ino_of(node(view, ino))), (view, ino));
        }
        assert_eq!(node(HEAD, 77), 77);
        assert_eq!(node(5, 0), 0, "what is not there has no id");
    }
}
