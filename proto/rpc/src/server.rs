//! Serving over a unix socket beside other work, until told to stop.

use std::{io, path::Path};

use tarbox_types::Chain;
use tokio::{sync::watch, task::JoinHandle};
use tonic::{
    body::Body,
    codegen::{
        StdError,
        http::{Request, Response},
    },
    service::Routes,
    transport::server::Router,
};
use tower::{Layer, Service};

use crate::PrivateListener;

/// A socket that is served.
#[derive(Debug)]
pub struct Served {
    stop: watch::Sender<()>,
    task: JoinHandle<()>,
}

/// Makes the socket's directory and the socket.
///
/// # Errors
/// As mkdir(2) and bind(2).
pub fn listen(socket: &Path) -> io::Result<PrivateListener> {
    if let Some(directory) = socket.parent() {
        std::fs::create_dir_all(directory)?;
    }
    PrivateListener::bind(socket)
}

/// Serves beside the caller until it is told to stop.
#[must_use]
pub fn serve<L>(router: Router<L>, listener: PrivateListener) -> Served
where
    L: Layer<Routes> + Send + 'static,
    L::Service: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    <L::Service as Service<Request<Body>>>::Future: Send,
    <L::Service as Service<Request<Body>>>::Error: Into<StdError> + Send,
{
    let (stop, mut stopped) = watch::channel(());
    let task = tokio::spawn(async move {
        let until = async move {
            let _ = stopped.changed().await;
        };
        if let Err(error) = router.serve_with_incoming_shutdown(listener, until).await {
            tracing::error!(error = %Chain(&error), "a socket is no longer served");
        }
    });
    Served { stop, task }
}

impl Served {
    /// Takes no more calls; returns once those under way are answered.
    pub async fn end(self) {
        let _ = self.stop.send(());
        let _ = self.task.await;
    }
}
