//! Connections: few, none kept while idle, each given back only after a complete exchange.
//!
//! sqlx's own pool asks the server for a sign of life each time a connection comes back; at a millisecond per commit
//! that counts, and a connection is not to be had meanwhile. Here a connection whose exchange was not completed
//! (an error of the connection, a dropped future) is closed, so that what is in the pool is in order.

use std::{
    ops::{Deref, DerefMut},
    sync::{Arc, OnceLock, Weak},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, PgConnection,
    postgres::{PgConnectOptions, PgRow},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::Instrument;

use super::{failure::Failure, schema::Caller, statement::Statement, url::Target};
use crate::{
    error::{Result, StoreError},
    records::Lead,
    trace::statement,
};

/// Connections of one program to one database.
const MAX_CONNECTIONS: usize = 8;
/// A connection that nobody asked for so long is closed.
const IDLE: Duration = Duration::from_secs(5);
/// Longest wait for a connection to be made.
const CONNECT: Duration = Duration::from_secs(10);
/// Longest wait for an answer: beyond it the connection counts as lost (a network that swallows packets says nothing).
const ANSWER: Duration = Duration::from_secs(60);
/// How often a deadlock is tried again before it becomes an error.
pub(super) const CONFLICTS: u32 = 10;

/// What each connection is told first. Generic plans: the statements are large, planning them costs more than
/// running them. Plans by index, whatever the statistics of tables that were empty a moment ago say.
/// The rest: a client that vanished does not keep its locks for long.
const SETTINGS: &str = "
    SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET enable_hashjoin = off;
    SET enable_mergejoin = off; SET enable_bitmapscan = off; SET jit = off; SET synchronous_commit = on;
    SET default_transaction_isolation = 'read committed'; SET max_parallel_workers_per_gather = 0;
    SET idle_in_transaction_session_timeout = '30s';
    SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3;";

/// The connections to one database.
#[derive(Clone)]
pub(super) struct Pool {
    shared: Arc<Inner>,
    /// Whose lead every write depends on.
    lead: Option<Lead>,
}

struct Inner {
    options: Mutex<PgConnectOptions>,
    display_url: String,
    /// Who is connected, once that is known.
    caller: OnceLock<Caller>,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<(Instant, PgConnection)>>,
}

/// A connection taken from the pool; closed when dropped, unless [`Taken::give_back`] is called.
pub(super) struct Taken {
    conn: Option<PgConnection>,
    pool: Pool,
    /// It had been used before: the server may have gone since.
    reused: bool,
    _permit: OwnedSemaphorePermit,
}

impl Deref for Taken {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.conn.as_ref().expect("taken out only when given back")
    }
}

impl DerefMut for Taken {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.conn.as_mut().expect("taken out only when given back")
    }
}

impl Taken {
    /// Gives the connection back after a complete exchange.
    pub(super) fn give_back(mut self) {
        if let Some(conn) = self.conn.take() {
            self.pool.shared.idle.lock().push((Instant::now(), conn));
        }
    }
}

/// Tries a transaction again while it meets deadlocks, and puts what remains into the store's words.
macro_rules! transact {
    ($pool:expr, $doing:expr, $attempt:expr) => {{
        let mut conflicts = 0;
        loop {
            match tracing::Instrument::instrument($attempt, $crate::trace::statement("postgresql", $doing))
                .await
            {
                Err(failure) if failure.is_conflict() && conflicts < $crate::postgres::pool::CONFLICTS => {
                    conflicts += 1
                }
                done => break done.map_err(|failure| $pool.failed($doing, failure)),
            }
        }
    }};
}
pub(super) use transact;

// === impl Pool ===

impl Pool {
    /// A pool that has no connection yet. Its reaper ends with the pool.
    pub(super) fn new(target: &Target) -> Self {
        let shared = Arc::new(Inner {
            options: Mutex::new(target.options.clone()),
            display_url: target.display_url.clone(),
            caller: OnceLock::new(),
            permits: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            idle: Mutex::new(Vec::new()),
        });
        tokio::spawn(reap_idle(Arc::downgrade(&shared)));
        Self { shared, lead: None }
    }

    /// The same connections; every write depends on this lead.
    pub(super) fn led_by(&self, lead: Lead) -> Self {
        Self { lead: Some(lead), ..self.clone() }
    }

    /// Notes who is connected.
    pub(super) fn is_of(&self, caller: Caller) {
        let _ = self.shared.caller.set(caller);
    }

    /// Whether a tenant's login is connected: it sees too little to judge what nobody needs any more.
    pub(super) fn is_of_login(&self) -> bool {
        self.shared.caller.get() == Some(&Caller::Login)
    }

    /// How somebody else would connect.
    pub(super) fn options_of(&self, role: &str, password: &str) -> PgConnectOptions {
        self.shared.options.lock().clone().username(role).password(password)
    }

    pub(super) fn display_url(&self) -> &str {
        &self.shared.display_url
    }

    /// New connections are made as `target` says, which must be the same database.
    pub(super) fn set_credentials(&self, target: &Target) -> Result<()> {
        let mut options = self.shared.options.lock();
        let place = |options: &PgConnectOptions| {
            (options.get_host().to_owned(), options.get_port(), options.get_database().map(str::to_owned))
        };
        if place(&options) != place(&target.options) {
            let (now, new) = (self.display_url(), &target.display_url);
            return Err(StoreError::Refused(format!("{new} is another database than {now}")));
        }
        *options = target.options.clone();
        Ok(())
    }

    /// An error of sqlx in the store's words.
    pub(super) fn failed(&self, doing: &'static str, failure: impl Into<Failure>) -> StoreError {
        failure.into().into_store(self.display_url(), doing)
    }

    /// A connection, an idle one first.
    pub(super) async fn get(&self) -> Result<Taken> {
        self.take().await.map_err(|failure| self.failed("connect", failure))
    }

    async fn take(&self) -> std::result::Result<Taken, Failure> {
        let permit = tokio::time::timeout(ANSWER, Arc::clone(&self.shared.permits).acquire_owned())
            .await
            .map_err(|_| Failure::Sql(sqlx::Error::PoolTimedOut))?
            .map_err(|_| Failure::Sql(sqlx::Error::PoolClosed))?;
        let idle = self.shared.idle.lock().pop();
        let reused = idle.is_some();
        let conn = match idle {
            Some((_, conn)) => conn,
            None => within(CONNECT, self.connect()).await?,
        };
        Ok(Taken { conn: Some(conn), pool: self.clone(), reused, _permit: permit })
    }

    async fn connect(&self) -> std::result::Result<PgConnection, Failure> {
        let options = self.shared.options.lock().clone();
        let mut conn = options.connect().await?;
        sqlx::raw_sql(SETTINGS).execute(&mut conn).await?;
        Ok(conn)
    }

    /// Runs one statement that may be run again as often as one likes.
    pub(super) async fn read(
        &self,
        doing: &'static str,
        build: impl Fn() -> Statement + Send + Sync,
    ) -> Result<Vec<PgRow>> {
        self.run(doing, true, build).instrument(statement("postgresql", doing)).await
    }

    /// Runs one statement that is run again only if the database said that it did nothing.
    pub(super) async fn write(
        &self,
        doing: &'static str,
        build: impl Fn() -> Statement + Send + Sync,
    ) -> Result<Vec<PgRow>> {
        match self.lead {
            None => self.run(doing, false, build).instrument(statement("postgresql", doing)).await,
            Some(_) => transact!(self, doing, self.write_led(build())),
        }
    }

    /// One statement under the lead.
    async fn write_led(&self, statement: Statement) -> std::result::Result<Vec<PgRow>, Failure> {
        let mut transaction = self.begin().await?;
        let rows = transaction.rows(statement).await?;
        transaction.commit().await?;
        Ok(rows)
    }

    async fn run(
        &self,
        doing: &'static str,
        repeatable: bool,
        build: impl Fn() -> Statement + Send + Sync,
    ) -> Result<Vec<PgRow>> {
        let mut conflicts = 0;
        loop {
            let mut conn = self.get().await?;
            match rows(&mut conn, build()).await {
                Ok(rows) => {
                    conn.give_back();
                    return Ok(rows);
                }
                Err(failure) if failure.is_conflict() && conflicts < CONFLICTS => {
                    conn.give_back();
                    conflicts += 1;
                }
                // What lay in the pool may date from before a restart of the server.
                Err(failure) if failure.is_broken() && repeatable && conn.reused => self.forget_idle(),
                Err(failure) => {
                    if failure.is_broken() {
                        self.forget_idle();
                    } else {
                        conn.give_back();
                    }
                    return Err(self.failed(doing, failure));
                }
            }
        }
    }

    /// Closes what is idle: if one connection broke, the others are likely to be broken, too.
    fn forget_idle(&self) {
        self.shared.idle.lock().clear();
    }

    /// Begins a transaction.
    pub(super) async fn begin(&self) -> std::result::Result<Transaction, Failure> {
        let mut conn = self.take().await?;
        if conn.reused && within(CONNECT, begin(&mut conn)).await.is_err() {
            drop(conn);
            self.forget_idle();
            conn = self.take().await?;
            within(CONNECT, begin(&mut conn)).await?;
        } else if !conn.reused {
            within(CONNECT, begin(&mut conn)).await?;
        }
        let transaction = Transaction { conn };
        match self.lead {
            Some(lead) => transaction.under(lead).await,
            None => Ok(transaction),
        }
    }
}

/// What makes a transaction one look at one state, for as long as it takes.
const SNAPSHOT: &str = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL idle_in_transaction_session_timeout = 0";

async fn begin(conn: &mut PgConnection) -> std::result::Result<(), Failure> {
    sqlx::raw_sql("BEGIN").execute(conn).await?;
    Ok(())
}

/// A transaction. Dropped without [`Transaction::commit`], its connection is closed, which rolls it back.
pub(super) struct Transaction {
    conn: Taken,
}

impl Transaction {
    /// Runs one statement.
    pub(super) async fn rows(&mut self, statement: Statement) -> std::result::Result<Vec<PgRow>, Failure> {
        rows(&mut self.conn, statement).await
    }

    /// Runs text without values: what no statement with values can say.
    pub(super) async fn run(&mut self, sql: String) -> std::result::Result<(), Failure> {
        within(ANSWER, async { Ok(sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *self.conn).await?) })
            .await?;
        Ok(())
    }

    /// Keeps the lead as it is until the transaction ends.
    async fn under(mut self, lead: Lead) -> std::result::Result<Self, Failure> {
        let ours =
            Statement::new("SELECT 1 FROM tarbox.leader WHERE one AND holder = $1 AND epoch = $2 FOR SHARE");
        if self.row(ours.with(lead.who).with(lead.epoch)).await?.is_some() {
            return Ok(self);
        }
        self.roll_back().await;
        Err(StoreError::NotLeading.into())
    }

    /// Makes the transaction, of which nothing has been asked yet, one look at one state.
    pub(super) async fn freeze(&mut self) -> std::result::Result<(), Failure> {
        sqlx::raw_sql(SNAPSHOT).execute(&mut *self.conn).await?;
        Ok(())
    }

    /// Runs one statement that answers with at most one row.
    pub(super) async fn row(&mut self, statement: Statement) -> std::result::Result<Option<PgRow>, Failure> {
        Ok(self.rows(statement).await?.into_iter().next())
    }

    /// Commits; where this fails by the connection, the outcome is unknown.
    pub(super) async fn commit(mut self) -> std::result::Result<(), Failure> {
        within(ANSWER, async { Ok(sqlx::raw_sql("COMMIT").execute(&mut *self.conn).await?) }).await?;
        self.conn.give_back();
        Ok(())
    }

    /// Rolls back, so that the connection can be used again.
    pub(super) async fn roll_back(mut self) {
        if within(ANSWER, async { Ok(sqlx::raw_sql("ROLLBACK").execute(&mut *self.conn).await?) })
            .await
            .is_ok()
        {
            self.conn.give_back();
        }
    }
}

async fn rows(conn: &mut PgConnection, statement: Statement) -> std::result::Result<Vec<PgRow>, Failure> {
    let Statement { sql, arguments, .. } = statement;
    within(ANSWER, async { Ok(sqlx::query_with(AssertSqlSafe(sql), arguments).fetch_all(conn).await?) }).await
}

async fn within<T>(
    limit: Duration,
    work: impl Future<Output = std::result::Result<T, Failure>>,
) -> std::result::Result<T, Failure> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done,
        Err(_) => Err(Failure::Sql(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))),
    }
}

/// Closes what has been idle for long; ends when the pool is gone.
async fn reap_idle(pool: Weak<Inner>) {
    loop {
        tokio::time::sleep(IDLE / 2).await;
        let Some(inner) = pool.upgrade() else { return };
        let old: Vec<_> = {
            let mut idle = inner.idle.lock();
            let (old, young) = idle.drain(..).partition(|(since, _)| since.elapsed() > IDLE);
            *idle = young;
            old
        };
        drop(inner);
        for (_, conn) in old {
            // A polite end; if the server does not answer, the drop does it.
            let _ = tokio::time::timeout(Duration::from_secs(1), conn.close()).await;
        }
    }
}
