//! A controller over a database of its own, alone or with a node.

use crate::{
    controller::Controller,
    node::{Node, NodePlan},
    postgres::PostgresServer,
    scratch::Scratch,
    volume::Database,
};

/// A controller over a database of its own, without a node.
#[derive(Debug)]
pub struct World {
    /// It.
    pub controller: Controller,
    /// Where its log is, and with SQLite the database.
    pub scratch: Scratch,
    _server: Option<PostgresServer>,
}

/// A node and a controller over one database.
#[derive(Debug)]
pub struct Cluster {
    /// The controller.
    pub controller: Controller,
    /// The node.
    pub node: Node,
    _server: Option<PostgresServer>,
}

fn server(database: Database) -> Option<PostgresServer> {
    match database {
        Database::Sqlite => None,
        Database::Postgres => Some(PostgresServer::start().expect("PostgreSQL")),
    }
}

/// See [`World`].
///
/// # Panics
/// If something does not start.
#[must_use]
pub fn world(database: Database) -> World {
    let scratch = Scratch::on_disk().expect("a directory");
    let server = server(database);
    let url = match &server {
        Some(server) => server.url(),
        None => format!("sqlite://{}", scratch.sub("db").expect("a directory").display()),
    };
    let controller = Controller::start(scratch.path(), &url).expect("a controller");
    World { controller, scratch, _server: server }
}

/// See [`Cluster`]; leases count for 3 s.
///
/// # Panics
/// If something does not start.
#[must_use]
pub fn cluster(database: Database) -> Cluster {
    let server = server(database);
    let url = server.as_ref().map(|server| format!("{}?tarbox_lease=3", server.url()));
    let node = Node::with(NodePlan { url, ..NodePlan::default() }).expect("a node");
    let controller = Controller::start(node.path(), node.url()).expect("a controller");
    Cluster { controller, node, _server: server }
}

/// Runs to its end what calls the controller.
///
/// # Panics
/// If there is no runtime.
pub fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(work)
}
