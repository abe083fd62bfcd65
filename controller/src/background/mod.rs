//! Background work in every database that the controller has opened: layers that nobody keeps any more, data of deleted volumes, what nothing refers to.
//!
//! Each step is a small batch that finds by itself what is left to do, so it may be cut off anywhere, and be done beside another replica's.

mod blocks;
mod layers;
mod volumes;

use std::{sync::Arc, time::Duration};

use tarbox_store::Database;
use tokio::time::{Instant, sleep};

use crate::{databases::Databases, failure::Result};

/// How often it is looked for work.
const ROUND: Duration = Duration::from_secs(2);
/// How often it is looked for what nothing refers to: every family is looked at.
const COLLECT: Duration = Duration::from_secs(60);
/// How long one kind of work may keep the others waiting.
const SLICE: Duration = Duration::from_secs(3);

/// Works until the controller ends.
pub(crate) async fn work(databases: Arc<Databases>) {
    let mut collected = Instant::now();
    loop {
        sleep(ROUND).await;
        let is_time = collected.elapsed() >= COLLECT;
        for database in databases.opened() {
            if let Err(error) = round(&*database, is_time).await {
                let database = database.display_url();
                tracing::warn!(database, error = error.report(), "background work is interrupted");
            }
        }
        if is_time {
            collected = Instant::now();
        }
    }
}

async fn round(database: &dyn Database, collect: bool) -> Result<()> {
    layers::clear(database, Instant::now() + SLICE).await?;
    volumes::reap(database, Instant::now() + SLICE).await?;
    if collect {
        blocks::collect(database).await?;
    }
    Ok(())
}
