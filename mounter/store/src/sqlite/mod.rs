//! Engine.

use std::sync::Arc;

use crate::{api::Database, error::Result};

pub(crate) async fn open(url: &str) -> Result<Arc<dyn Database>> {
    Err(crate::StoreError::Url { url: url.to_owned(), reason: "not built yet".into() })
}
