//! Calls and their spans: each is answered in one, which belongs to that of whoever asks, in another process as well.
//!
//! Source: W3C Trace Context, `traceparent`.

use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tarbox_types::TenantId;
use tonic::{
    Request, Status,
    codegen::http::{HeaderMap, Request as HttpRequest},
    metadata::{MetadataKey, MetadataMap},
};
use tracing::{Span, error_span, field::Empty};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use uuid::Uuid;

/// Where a caller says how it calls the request.
const REQUEST_ID: &str = "x-request-id";
/// An id of a caller is taken over up to this length.
const ID_MOST: usize = 128;

/// The span of a call that arrives, for [`tonic::transport::Server::trace_fn`]; `tenant` where the program has but one.
pub fn answering(
    node: String,
    tenant: Option<TenantId>,
) -> impl Fn(&HttpRequest<()>) -> Span + Send + Sync + 'static {
    move |request| {
        let path = request.uri().path().trim_start_matches('/');
        // Of the highest level: what is said about a call tells which one, however little is logged.
        let span = error_span!(
            "call",
            otel.name = path,
            otel.kind = "server",
            method = path.rsplit('/').next(),
            request_id = request_id(request.headers()),
            node,
            volume_id = Empty,
            tenant_id = Empty
        );
        if let Some(tenant) = tenant {
            note(&span, tenant);
        }
        let caller = TraceContextPropagator::new().extract(&Headers(request.headers()));
        // Where no traces are sent, there is nobody to tell.
        let _ = span.set_parent(caller);
        span
    }
}

/// Notes in the span of the call, if there is one, which volume it is about; a volume is a tenant.
pub fn about(volume: TenantId) {
    note(&Span::current(), volume);
}

fn note(span: &Span, volume: TenantId) {
    let id = volume.to_string();
    span.record("volume_id", &id).record("tenant_id", &id);
}

/// Tells whoever is asked which span the request belongs to: an interceptor of clients.
///
/// # Errors
/// None; interceptors may have some.
pub fn asking(mut request: Request<()>) -> Result<Request<()>, Status> {
    let context = Span::current().context();
    TraceContextPropagator::new().inject_context(&context, &mut Metadata(request.metadata_mut()));
    Ok(request)
}

fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
    let is_sound = |id: &&str| (1..=ID_MOST).contains(&id.len());
    given.filter(is_sound).map_or_else(|| Uuid::new_v4().to_string(), str::to_owned)
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(|key| key.as_str()).collect()
    }
}

struct Metadata<'a>(&'a mut MetadataMap);

impl Injector for Metadata<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) = (MetadataKey::from_bytes(key.as_bytes()), value.parse()) {
            self.0.insert(key, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_request_id_is_kept_where_it_is_sound() {
        let mut headers = HeaderMap::new();
        let own = request_id(&headers);
        assert!(Uuid::parse_str(&own).is_ok(), "{own}");
        headers.insert(REQUEST_ID, "from-the-provisioner".parse().expect("ASCII"));
        assert_eq!(request_id(&headers), "from-the-provisioner");
        headers.insert(REQUEST_ID, "x".repeat(ID_MOST + 1).parse().expect("ASCII"));
        assert!(Uuid::parse_str(&request_id(&headers)).is_ok());
    }

    #[test]
    fn who_is_in_no_trace_says_nothing_of_one() {
        let request = asking(Request::new(())).expect("never refused");
        assert!(request.metadata().get("traceparent").is_none());
    }
}
