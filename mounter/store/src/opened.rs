//! Databases by their URLs, each opened once.

use std::{collections::HashMap, fmt, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::OnceCell;

use crate::{Database, Result};

type Opening = Arc<OnceCell<Arc<dyn Database>>>;

/// What a program that is asked of many volumes has open. To open one is to look at its schema, and to connect: too much for each
/// call, and a hundred calls at once are a hundred connections more. One that nobody asks keeps none.
#[derive(Default)]
pub struct Opened {
    /// By URL, its password included: another password is another entry.
    by_url: Mutex<HashMap<String, Opening>>,
}

impl Opened {
    /// The database at this URL.
    ///
    /// # Errors
    /// As [`crate::open`]; the next call tries again.
    pub async fn at(&self, url: &str) -> Result<Arc<dyn Database>> {
        let opening = self.by_url.lock().entry(url.to_owned()).or_default().clone();
        // Not under the lock: one that does not answer keeps nobody from the others.
        opening.get_or_try_init(|| crate::open(url)).await.cloned()
    }

    /// Every database that was opened.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<dyn Database>> {
        self.by_url.lock().values().filter_map(|opening| opening.get().cloned()).collect()
    }
}

/// Without the URLs: there are passwords in them.
impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").field("databases", &self.by_url.lock().len()).finish_non_exhaustive()
    }
}
