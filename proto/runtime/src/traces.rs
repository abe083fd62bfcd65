//! Traces: spans of calls, sent to a collector by OTLP.

use std::{
    str::FromStr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use opentelemetry::{
    Context, KeyValue,
    trace::{Link, SpanKind, TraceContextExt, TraceId, TraceState, TracerProvider},
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{SamplingDecision, SamplingResult, SdkTracerProvider, ShouldSample, Tracer},
};

/// How long the last spans may take to be sent when the program ends.
const ENDS_WITHIN: Duration = Duration::from_secs(1);
/// The variable that every program of OpenTelemetry knows.
pub const STANDARD_VARIABLE: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// What sends spans, to be ended.
static PROVIDER: Mutex<Option<SdkTracerProvider>> = Mutex::new(None);

/// Where a collector listens: gRPC without TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtlpEndpoint(String);

impl OtlpEndpoint {
    /// What [`STANDARD_VARIABLE`] says, where that can be used.
    #[must_use]
    pub fn of_environment() -> Option<Self> {
        std::env::var(STANDARD_VARIABLE).ok()?.parse().ok()
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for OtlpEndpoint {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let address = text.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
        let is_sound = |address: &str| {
            let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty());
            port.is_some_and(|(_, port)| port.parse::<u16>().is_ok()) && !address.contains(['/', ' ', '@'])
        };
        match address {
            Some(address) if is_sound(address) => Ok(Self(format!("http://{address}"))),
            _ => Err(
                "off, or http://host:port of a collector that takes OTLP over gRPC, such as http://otel:4317",
            ),
        }
    }
}

/// An endpoint, or `off`.
///
/// # Errors
/// What is allowed.
pub fn endpoint(text: &str) -> Result<Option<OtlpEndpoint>, String> {
    if text == "off" { Ok(None) } else { text.parse().map(Some).map_err(str::to_owned) }
}

/// Who sends spans.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// The program.
    pub program: &'static str,
    /// The node that it runs on.
    pub node: &'a str,
}

/// A tracer whose spans go to the endpoint. Has to be called within a runtime.
pub(crate) fn tracer(
    endpoint: &OtlpEndpoint,
    origin: Origin<'_>,
) -> Result<Tracer, opentelemetry_otlp::ExporterBuildError> {
    let exporter = SpanExporter::builder().with_tonic().with_endpoint(&endpoint.0).build()?;
    let resource = Resource::builder()
        .with_service_name(origin.program)
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new("host.name", origin.node.to_owned()))
        .build();
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(OfCalls)
        .with_resource(resource)
        .build();
    let tracer = provider.tracer("tarbox");
    *PROVIDER.lock().unwrap_or_else(PoisonError::into_inner) = Some(provider);
    Ok(tracer)
}

/// Sends what has not been sent, and ends. Nothing where no traces are sent.
pub fn end() {
    let provider = PROVIDER.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(Err(error)) = provider.map(|provider| provider.shutdown_with_timeout(ENDS_WITHIN)) {
        tracing::warn!(%error, "the last spans could not be sent");
    }
}

/// What belongs to a call, here or in who has called: background work is in no trace.
#[derive(Clone, Debug)]
struct OfCalls;

/// The span of a call, by the attribute that only those have.
fn is_call(kind: &SpanKind) -> bool {
    matches!(kind, SpanKind::Server)
}

impl ShouldSample for OfCalls {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        _: TraceId,
        _: &str,
        kind: &SpanKind,
        _: &[KeyValue],
        _: &[Link],
    ) -> SamplingResult {
        let parent =
            parent.map(|context| context.span().span_context().clone()).filter(|parent| parent.is_valid());
        let is_wanted = parent.as_ref().map_or(is_call(kind), |parent| parent.is_sampled());
        SamplingResult {
            decision: if is_wanted { SamplingDecision::RecordAndSample } else { SamplingDecision::Drop },
            attributes: Vec::new(),
            trace_state: parent.map_or_else(TraceState::default, |parent| parent.trace_state().clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{SpanContext, SpanId, TraceFlags};

    use super::*;

    #[test]
    fn an_endpoint_has_a_host_and_a_port() {
        assert_eq!(endpoint("off"), Ok(None));
        let otel = endpoint("http://otel:4317/").expect("sound").expect("an endpoint");
        assert_eq!(otel.as_str(), "http://otel:4317");
        for bad in [
            "",
            "otel:4317",
            "https://otel:4317",
            "http://otel",
            "http://:4317",
            "http://a b:1",
            "http://otel:4317/v1",
        ] {
            assert!(endpoint(bad).expect_err(bad).contains("http://host:port"), "{bad}");
        }
    }

    #[test]
    fn only_calls_begin_traces_and_what_is_in_one_goes_on_with_it() {
        let decide = |parent: Option<&Context>, kind: SpanKind| {
            let decided = OfCalls.should_sample(parent, TraceId::from(7), "", &kind, &[], &[]);
            decided.decision == SamplingDecision::RecordAndSample
        };
        let within = |flags| {
            let span =
                SpanContext::new(TraceId::from(7), SpanId::from(8), flags, true, TraceState::default());
            Context::new().with_remote_span_context(span)
        };
        assert!(decide(None, SpanKind::Server) && !decide(None, SpanKind::Internal));
        let (sampled, not) = (within(TraceFlags::SAMPLED), within(TraceFlags::default()));
        assert!(decide(Some(&sampled), SpanKind::Internal) && !decide(Some(&not), SpanKind::Server));
        assert!(decide(Some(&Context::new()), SpanKind::Server), "a context without a span is no parent");
    }
}
