//! Which volumes there are.

use tarbox_store::{Database, Tenant};
use tarbox_types::TenantId;

use super::{Description, Volume, live};
use crate::failure::{ControllerError, Result};

/// So many entries of one page at most, whatever is asked for.
const MOST: usize = 1000;

/// A page of something, and where the next one begins.
#[derive(Clone, Debug)]
pub(crate) struct Page<T> {
    /// In the order of their ids.
    pub(crate) entries: Vec<T>,
    /// Nothing where this is the last one.
    pub(crate) next: Option<String>,
}

impl<T> Page<T> {
    /// How many entries are to be asked for: one more than shown, to see whether there is a next page.
    pub(crate) fn size(most: usize) -> usize {
        1 + if most == 0 { MOST } else { most.min(MOST) }
    }

    /// The page of what was found for [`Page::size`].
    pub(crate) fn of(mut found: Vec<T>, size: usize, id: impl Fn(&T) -> String) -> Self {
        let is_last = found.len() < size;
        found.truncate(size - 1);
        let next = found.last().filter(|_| !is_last).map(id);
        Self { entries: found, next }
    }

    /// What a token stands for: the last entry of the page before.
    pub(crate) fn begin<I: std::str::FromStr>(token: &str) -> Result<Option<I>> {
        if token.is_empty() {
            return Ok(None);
        }
        token.parse().map(Some).map_err(|_| ControllerError::Token(token.to_owned()))
    }
}

/// A volume, with what was asked for.
pub(crate) async fn find(database: &dyn Database, id: TenantId) -> Result<Volume> {
    let tenant = live(database, id).await?;
    let record = database.volume(id).await?;
    let description = record.map(|record| Description::read(&record.description)).unwrap_or_default();
    Ok(Volume { tenant, description })
}

/// A page of volumes.
pub(crate) async fn page(database: &dyn Database, token: &str, most: usize) -> Result<Page<Tenant>> {
    let size = Page::<Tenant>::size(most);
    let found = database.live_tenants(Page::<Tenant>::begin(token)?, size).await?;
    Ok(Page::of(found, size, |tenant| tenant.id.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_a_next_one_only_where_there_is_more() {
        let id = |number: &u32| number.to_string();
        assert_eq!(Page::<u32>::size(2), 3);
        let page = Page::of(vec![1, 2, 3], 3, id);
        assert_eq!((page.entries, page.next.as_deref()), (vec![1, 2], Some("2")));
        for found in [vec![1, 2], vec![1], vec![]] {
            let page = Page::of(found.clone(), 3, id);
            assert_eq!((page.entries, page.next), (found, None));
        }
        assert_eq!(Page::<u32>::size(0), MOST + 1);
        assert!(Page::<u32>::begin::<u32>("x").is_err());
        assert_eq!(Page::<u32>::begin::<u32>("").expect("none"), None);
    }
}
