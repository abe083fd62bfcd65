//! The HTTP endpoint of a service: its metrics, whether it lives, whether it is ready.
//!
//! `/metrics` is Prometheus text; `/healthz` and `/readyz` answer 200 or 503, with a sentence.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use prometheus::{Registry, TextEncoder, proto::MetricFamily};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::metric::Metric;

/// What a look at the program's parts may take: Prometheus gives up after ten seconds by default.
const MEASURED_WITHIN: Duration = Duration::from_secs(5);
const BUILD: Metric = Metric {
    name: "tarbox_build_info",
    help: "Always 1: which program of which version is asked.",
    labels: &["program", "version"],
};
const DATABASE: Metric = Metric {
    name: "tarbox_database_up",
    help: "Whether the program's own database answered when it was last asked: 1 or 0.",
    labels: &[],
};

/// A program that can be monitored.
pub trait Monitored: Send + Sync + 'static {
    /// Its name.
    const PROGRAM: &'static str;

    /// Whether it works as a process: what a restart could mend.
    ///
    /// # Errors
    /// What does not.
    fn alive(&self) -> Result<(), String>;

    /// Whether it can do its work now.
    ///
    /// # Errors
    /// What it waits for.
    fn ready(&self) -> Result<(), String>;

    /// Whether its own database answered when it was last asked; `None` where it has none.
    fn database_answers(&self) -> Option<Result<(), String>>;

    /// What it counts itself.
    fn registry(&self) -> &Registry;

    /// What others count, asked for anew.
    fn measured(&self) -> impl Future<Output = Vec<MetricFamily>> + Send;
}

/// An address that is listened at; nothing is answered yet.
#[derive(Debug)]
pub struct Listening {
    listener: TcpListener,
    address: SocketAddr,
}

/// Listens at `address`.
///
/// # Errors
/// As bind(2).
pub async fn listen(address: SocketAddr) -> io::Result<Listening> {
    let listener = TcpListener::bind(address).await?;
    Ok(Listening { address: listener.local_addr()?, listener })
}

impl Listening {
    /// The address, its port chosen.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until it is aborted.
    #[must_use]
    pub fn serve<P: Monitored>(self, program: Arc<P>) -> JoinHandle<()> {
        let router = Router::new()
            .route("/metrics", get(metrics::<P>))
            .route("/healthz", get(async |State(program): State<Arc<P>>| told(program.alive())))
            .route("/readyz", get(async |State(program): State<Arc<P>>| told(program.ready())))
            .with_state(program);
        tokio::spawn(async move {
            if let Err(error) = axum::serve(self.listener, router).await {
                tracing::error!(%error, "metrics are no longer served");
            }
        })
    }
}

fn told(state: Result<(), String>) -> (StatusCode, String) {
    match state {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why + "\n"),
    }
}

async fn metrics<P: Monitored>(State(program): State<Arc<P>>) -> impl IntoResponse {
    match TextEncoder::new().encode_to_string(&families(&*program).await) {
        Ok(text) => (StatusCode::OK, [(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text),
        Err(error) => {
            tracing::error!(%error, "metrics cannot be written");
            (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], error.to_string())
        }
    }
}

/// Everything there is to say, by name. Families without a row are left out.
pub(crate) async fn families<P: Monitored>(program: &P) -> Vec<MetricFamily> {
    let mut families = Vec::new();
    match tokio::time::timeout(MEASURED_WITHIN, program.measured()).await {
        Ok(measured) => families = measured,
        Err(_) => {
            tracing::warn!(limit = ?MEASURED_WITHIN, "parts of the program did not tell their numbers in time")
        }
    }
    // Afterwards: who did not answer has been counted.
    families.extend(program.registry().gather());
    let database = program.database_answers().map(|answers| ([], f64::from(u8::from(answers.is_ok()))));
    families.push(DATABASE.gauge(database));
    families.push(BUILD.gauge([([P::PROGRAM, env!("CARGO_PKG_VERSION")], 1.0)]));
    families.retain(|family| !family.get_metric().is_empty());
    families.sort_by(|a, b| a.name().cmp(b.name()));
    families
}

/// `IP:port` that metrics are served at, or `off`.
///
/// # Errors
/// What is allowed.
pub fn address(text: &str) -> Result<Option<SocketAddr>, String> {
    match text {
        "off" => Ok(None),
        text => text
            .parse()
            .map(Some)
            .map_err(|_| "off, or an address and a port such as 127.0.0.1:9780 or [::]:9780".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use prometheus::IntCounter;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;

    const HANGING: Metric = Metric { name: "tarbox_hanging", help: "Never told.", labels: &[] };

    struct Program {
        registry: Registry,
        hangs: bool,
    }

    impl Monitored for Program {
        const PROGRAM: &'static str = "test";

        fn alive(&self) -> Result<(), String> {
            Ok(())
        }

        fn ready(&self) -> Result<(), String> {
            Err("it waits for the database".to_owned())
        }

        fn database_answers(&self) -> Option<Result<(), String>> {
            None
        }

        fn registry(&self) -> &Registry {
            &self.registry
        }

        async fn measured(&self) -> Vec<MetricFamily> {
            if self.hangs {
                std::future::pending::<()>().await;
            }
            vec![HANGING.gauge::<[&str; 0]>([])]
        }
    }

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("connect");
        let request = format!("GET {path} HTTP/1.1\r\nHost: tarbox\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("ask");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        answer
    }

    async fn program(hangs: bool) -> SocketAddr {
        let registry = Registry::new();
        let counter = IntCounter::new("tarbox_test_total", "Counts.").expect("a counter");
        registry.register(Box::new(counter.clone())).expect("once");
        counter.inc_by(7);
        let listening = listen("127.0.0.1:0".parse().expect("an address")).await.expect("listen");
        let address = listening.address();
        drop(listening.serve(Arc::new(Program { registry, hangs })));
        address
    }

    #[tokio::test]
    async fn metrics_and_health_are_told() {
        let address = program(false).await;
        let metrics = get(address, "/metrics").await;
        assert!(metrics.starts_with("HTTP/1.1 200 OK") && metrics.contains("text/plain; version=0.0.4"));
        assert!(metrics.contains("# TYPE tarbox_test_total counter\ntarbox_test_total 7\n"), "{metrics}");
        let build =
            format!("tarbox_build_info{{program=\"test\",version=\"{}\"}} 1\n", env!("CARGO_PKG_VERSION"));
        assert!(metrics.contains(&build), "{metrics}");
        assert!(!metrics.contains("tarbox_hanging"), "{metrics}");
        assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200 OK"));
        let ready = get(address, "/readyz").await;
        assert!(
            ready.starts_with("HTTP/1.1 503") && ready.ends_with("it waits for the database\n"),
            "{ready}"
        );
        assert!(get(address, "/").await.starts_with("HTTP/1.1 404"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_answer_holds_nothing_else_up() {
        let registry = Registry::new();
        let families = families(&Program { registry, hangs: true }).await;
        assert_eq!(families.iter().map(MetricFamily::name).collect::<Vec<_>>(), ["tarbox_build_info"]);
    }

    #[test]
    fn an_address_has_a_port() {
        assert_eq!(address("off"), Ok(None));
        assert_eq!(address("[::]:9780"), Ok(Some("[::]:9780".parse().expect("an address"))));
        for bad in ["", "9780", ":9780", "localhost:9780", "127.0.0.1"] {
            assert!(address(bad).expect_err(bad).contains("127.0.0.1:9780"), "{bad}");
        }
    }
}
