//! A collector of traces and metrics, as programs send them by OTLP over gRPC.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use anyhow::Result;
use opentelemetry_proto::tonic::{
    collector::{
        metrics::v1::{
            ExportMetricsServiceRequest, ExportMetricsServiceResponse,
            metrics_service_server::{MetricsService, MetricsServiceServer},
        },
        trace::v1::{
            ExportTraceServiceRequest, ExportTraceServiceResponse,
            trace_service_server::{TraceService, TraceServiceServer},
        },
    },
    common::v1::{KeyValue, any_value::Value},
    resource::v1::Resource,
};
use parking_lot::Mutex;
use tokio::{net::TcpListener, runtime::Runtime};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

/// A span that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The program.
    pub service: String,
    /// Its name.
    pub name: String,
    /// Its trace, in hexadecimal digits, as the others.
    pub trace_id: String,
    /// Its own.
    pub span_id: String,
    /// Of the span that it belongs to; empty = none.
    pub parent: String,
    /// Its attributes that are text.
    pub attributes: Vec<(String, String)>,
}

/// Takes spans until it is dropped.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    taken: Arc<Taken>,
    _runtime: Runtime,
}

impl Collector {
    /// Listens at a port of its own.
    ///
    /// # Errors
    /// If it cannot.
    pub fn start() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        let taken = Arc::<Taken>::default();
        let services = Server::builder()
            .add_service(TraceServiceServer::new(Taking(taken.clone())))
            .add_service(MetricsServiceServer::new(Taking(taken.clone())));
        runtime.spawn(services.serve_with_incoming(TcpListenerStream::new(listener)));
        Ok(Self { address, taken, _runtime: runtime })
    }

    /// Where it listens.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What has come until now.
    #[must_use]
    pub fn spans(&self) -> Vec<Span> {
        self.taken.spans.lock().clone()
    }

    /// Names of the metrics that a program has sent.
    #[must_use]
    pub fn metrics(&self, service: &str) -> BTreeSet<String> {
        self.taken.metrics.lock().get(service).cloned().unwrap_or_default()
    }
}

#[derive(Debug, Default)]
struct Taken {
    spans: Mutex<Vec<Span>>,
    metrics: Mutex<BTreeMap<String, BTreeSet<String>>>,
}

struct Taking(Arc<Taken>);

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn texts(attributes: Vec<KeyValue>) -> Vec<(String, String)> {
    let text = |pair: KeyValue| match pair.value?.value? {
        Value::StringValue(value) => Some((pair.key, value)),
        _ => None,
    };
    attributes.into_iter().filter_map(text).collect()
}

fn service(resource: Option<Resource>) -> String {
    let attributes = texts(resource.unwrap_or_default().attributes);
    attributes.into_iter().find(|(key, _)| key == "service.name").map(|(_, name)| name).unwrap_or_default()
}

#[tonic::async_trait]
impl MetricsService for Taking {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        for origin in request.into_inner().resource_metrics {
            let sent = origin.scope_metrics.into_iter().flat_map(|scope| scope.metrics);
            let mut metrics = self.0.metrics.lock();
            metrics.entry(service(origin.resource)).or_default().extend(sent.map(|metric| metric.name));
        }
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl TraceService for Taking {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for origin in request.into_inner().resource_spans {
            let service = service(origin.resource);
            let sent = origin.scope_spans.into_iter().flat_map(|scope| scope.spans);
            self.0.spans.lock().extend(sent.map(|span| Span {
                service: service.clone(),
                name: span.name,
                trace_id: hex(&span.trace_id),
                span_id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                attributes: texts(span.attributes),
            }));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}
