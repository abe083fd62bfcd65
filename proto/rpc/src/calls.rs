//! CSI calls as a service sees them arrive, counted by method and code.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};
use tonic::{
    Code,
    codegen::http::{HeaderMap, Request, Response},
};
use tower::{Layer, Service};

/// The calls of CSI: what else is called counts as `other`, so that no caller makes labels.
const METHODS: [&str; 32] = [
    "GetPluginInfo",
    "GetPluginCapabilities",
    "Probe",
    "CreateVolume",
    "DeleteVolume",
    "ControllerPublishVolume",
    "ControllerUnpublishVolume",
    "ValidateVolumeCapabilities",
    "ListVolumes",
    "GetCapacity",
    "ControllerGetCapabilities",
    "CreateSnapshot",
    "DeleteSnapshot",
    "ListSnapshots",
    "GetSnapshot",
    "ControllerExpandVolume",
    "ControllerGetVolume",
    "ControllerModifyVolume",
    "GroupControllerGetCapabilities",
    "CreateVolumeGroupSnapshot",
    "DeleteVolumeGroupSnapshot",
    "GetVolumeGroupSnapshot",
    "GetMetadataAllocated",
    "GetMetadataDelta",
    "NodeStageVolume",
    "NodeUnstageVolume",
    "NodePublishVolume",
    "NodeUnpublishVolume",
    "NodeGetVolumeStats",
    "NodeExpandVolume",
    "NodeGetCapabilities",
    "NodeGetInfo",
];
/// Seconds: a call takes milliseconds to minutes.
const BUCKETS: [f64; 13] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];
/// Counts calls; put around a server's services.
#[derive(Clone, Debug)]
pub struct Calls {
    operations: IntCounterVec,
    durations: HistogramVec,
    errors: IntCounterVec,
}

impl Calls {
    /// Counts in a registry.
    ///
    /// # Panics
    /// If it is the registry's second.
    #[must_use]
    pub fn new(registry: &Registry) -> Self {
        Self::registered(registry).expect("names are sound, and registered once")
    }

    fn registered(registry: &Registry) -> Result<Self, prometheus::Error> {
        let operations = IntCounterVec::new(
            Opts::new("tarbox_csi_operations_total", "CSI calls that ended, in whatever way."),
            &["method"],
        )?;
        let durations = HistogramVec::new(
            HistogramOpts::new("tarbox_csi_operation_duration_seconds", "How long CSI calls took.")
                .buckets(BUCKETS.to_vec()),
            &["method"],
        )?;
        let errors = IntCounterVec::new(
            Opts::new("tarbox_csi_operation_errors_total", "CSI calls that failed, by gRPC code."),
            &["method", "code"],
        )?;
        registry.register(Box::new(operations.clone()))?;
        registry.register(Box::new(durations.clone()))?;
        registry.register(Box::new(errors.clone()))?;
        Ok(Self { operations, durations, errors })
    }

    fn begin(&self, path: &str) -> Call {
        Call { calls: self.clone(), method: method(path), begun: Instant::now(), code: Code::Cancelled }
    }
}

/// A call under way; counted when this is dropped. Who is dropped before the answer was given up by its caller.
#[derive(Debug)]
struct Call {
    calls: Calls,
    method: &'static str,
    begun: Instant,
    code: Code,
}

impl Call {
    fn end(mut self, code: Code) {
        self.code = code;
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let calls = &self.calls;
        calls.operations.with_label_values(&[self.method]).inc();
        calls.durations.with_label_values(&[self.method]).observe(self.begun.elapsed().as_secs_f64());
        if self.code != Code::Ok {
            calls.errors.with_label_values(&[self.method, &format!("{:?}", self.code)]).inc();
        }
    }
}

/// `/csi.v1.Node/NodeStageVolume`.
fn method(path: &str) -> &'static str {
    let called =
        path.strip_prefix("/csi.v1.").and_then(|rest| rest.split_once('/')).map(|(_, method)| method);
    METHODS.into_iter().find(|method| Some(*method) == called).unwrap_or("other")
}

/// A call that fails says so before any body: what has none of this has succeeded.
fn code(headers: &HeaderMap) -> Code {
    headers.get("grpc-status").map_or(Code::Ok, |status| Code::from_bytes(status.as_bytes()))
}

impl<S> Layer<S> for Calls {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted { inner, calls: self.clone() }
    }
}

/// Services whose calls are counted.
#[derive(Clone, Debug)]
pub struct Counted<S> {
    inner: S,
    calls: Calls,
}

impl<S, B, R> Service<Request<B>> for Counted<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let call = self.calls.begin(request.uri().path());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answered = answer.await;
            call.end(answered.as_ref().map_or(Code::Unknown, |response| code(response.headers())));
            answered
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_call_of_csi_has_a_label_and_nothing_else_has() {
        let csi = include_str!("../../csi/v1/csi.proto");
        let declared = csi.lines().filter_map(|line| line.trim().strip_prefix("rpc "));
        let declared: BTreeSet<&str> = declared
            .filter_map(|line| line.split([' ', '(']).next().filter(|name| !name.is_empty()))
            .collect();
        assert_eq!(METHODS.into_iter().collect::<BTreeSet<_>>(), declared);
        assert_eq!(method("/csi.v1.Node/NodeStageVolume"), "NodeStageVolume");
        for path in ["/csi.v1.Node/Anything", "/tarbox.agent.v1.Agent/List", "/", ""] {
            assert_eq!(method(path), "other");
        }
    }

    #[tokio::test]
    async fn calls_are_counted_by_how_they_end() {
        let registry = Registry::new();
        let calls = Calls::new(&registry);
        let request = || Request::builder().uri("/csi.v1.Identity/Probe").body(()).expect("a request");
        let answer = |status: &'static str| {
            Response::builder().header("grpc-status", status).body(()).expect("an answer")
        };
        let serve = |status: &'static str| {
            calls.layer(tower::service_fn(move |_: Request<()>| async move { Ok::<_, ()>(answer(status)) }))
        };
        serve("0").call(request()).await.expect("answered");
        serve("10").call(request()).await.expect("answered");
        let never = tower::service_fn(|_: Request<()>| std::future::pending::<Result<Response<()>, ()>>());
        drop(calls.layer(never).call(request()));
        assert_eq!(calls.operations.with_label_values(&["Probe"]).get(), 3);
        assert_eq!(calls.durations.with_label_values(&["Probe"]).get_sample_count(), 3);
        assert_eq!(calls.errors.with_label_values(&["Probe", "Aborted"]).get(), 1);
        assert_eq!(calls.errors.with_label_values(&["Probe", "Cancelled"]).get(), 1);
    }
}
