//! Listings in pages that fit in a packet.

use prost::Message;
use tarbox_handover::protocol::{self as say, Child, ChildList, Listing};

/// A page is closed once it is longer; the longest entry fits behind it.
const PAGE_BYTES: usize = 48 << 10;
/// Longer data is not shown in a listing.
const MOST_SHOWN_BYTES: usize = 16 << 10;
/// Children of a page; each takes less than 400 bytes.
const PAGE_CHILDREN: usize = 128;

/// The next page of what is kept.
pub(crate) fn entries(entries: impl Iterator<Item = say::Entry>) -> Listing {
    let mut page = Listing::default();
    let mut length = 0;
    for mut entry in entries {
        if length > PAGE_BYTES {
            page.more = true;
            break;
        }
        if entry.data.len() > MOST_SHOWN_BYTES {
            entry.data = Vec::new();
        }
        length += entry.encoded_len();
        page.entries.push(entry);
    }
    page
}

/// The next page of the children.
pub(crate) fn children(mut children: impl Iterator<Item = Child>) -> ChildList {
    let page = children.by_ref().take(PAGE_CHILDREN).collect();
    ChildList { children: page, more: children.next().is_some() }
}
