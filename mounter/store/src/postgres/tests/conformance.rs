//! The suite that both engines pass, on a server of this test's own, a database for each property.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use tarbox_types::{BlockId, SessionId};

use crate::{
    Database,
    conformance::{Site, suite},
    postgres::testing::Server,
};

/// One server for all tests of this process. Its parent ends it when the process is gone.
pub(super) fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| Server::start("").expect("PostgreSQL is needed"))
}

pub(super) struct Place {
    database: String,
}

impl Place {
    pub(super) async fn new() -> Self {
        Self { database: server().database().await.unwrap() }
    }

    pub(super) fn url(&self) -> String {
        server().url(&self.database)
    }

    async fn run(&self, sql: &str) {
        server().run(&self.database, sql).await.unwrap();
    }
}

#[async_trait]
impl Site for Place {
    async fn open(&self) -> crate::Result<Arc<dyn Database>> {
        crate::open(&self.url()).await
    }

    async fn expire(&self, dead: SessionId, claimant: SessionId) {
        let (dead, claimant) = (dead.0, claimant.0);
        self.run(&format!(
            "UPDATE session SET beat_at = now() - interval '1 hour' WHERE session = '{dead}';
             UPDATE session SET continuous_since = now() - interval '1 hour' WHERE session = '{claimant}'"
        ))
        .await;
    }

    async fn set_min_version(&self, min_version: u32) {
        self.run(&format!("UPDATE schema_version SET min_version = {min_version}")).await;
    }

    async fn flip_bit(&self, block: BlockId) {
        self.run(&format!(
            "UPDATE block_part SET data = set_byte(data, length(data) / 2, get_byte(data, length(data) / 2) # 1)
             WHERE block = {block} AND part = 0"
        ))
        .await;
    }

    async fn damage(&self, sql: &str) {
        self.run(sql).await;
    }
}

suite!(Place::new().await);
