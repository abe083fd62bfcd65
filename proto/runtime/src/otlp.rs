//! Metrics sent to a collector by OTLP, as often as Prometheus would ask: the same families as at `/metrics`.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use opentelemetry_proto::tonic::{
    collector::metrics::v1::{ExportMetricsServiceRequest, metrics_service_client::MetricsServiceClient},
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    metrics::v1::{
        AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint,
        ResourceMetrics, ScopeMetrics, Sum, metric::Data, number_data_point,
    },
    resource::v1::Resource,
};
use prometheus::proto::{LabelPair, Metric as Row, MetricFamily, MetricType};
use tokio::task::JoinHandle;
use tonic::transport::Endpoint;

use crate::{
    monitoring::{Monitored, families},
    traces::OtlpEndpoint,
};

/// How often they are sent.
const EVERY: Duration = Duration::from_secs(30);
/// How long the collector may take to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// Sends a program's metrics until it is aborted. A collector that is not there is said once, and tried again.
#[must_use]
pub fn send<P: Monitored>(endpoint: &OtlpEndpoint, node: String, program: Arc<P>) -> JoinHandle<()> {
    let endpoint = Endpoint::from_shared(endpoint.as_str().to_owned());
    tokio::spawn(async move {
        let channel = match endpoint {
            Ok(endpoint) => endpoint.timeout(ANSWERS_WITHIN).connect_lazy(),
            Err(error) => return tracing::error!(%error, "metrics cannot be sent"),
        };
        let mut client = MetricsServiceClient::new(channel);
        let mut is_reached = true;
        loop {
            tokio::time::sleep(EVERY).await;
            let request = request(P::PROGRAM, &node, &families(&*program).await, SystemTime::now());
            match client.export(request).await {
                Ok(_) => is_reached = true,
                Err(status) if is_reached => {
                    tracing::warn!(reason = status.message(), "the collector does not take metrics");
                    is_reached = false;
                }
                Err(_) => {}
            }
        }
    })
}

/// What is sent of these families. Pure.
fn request(
    program: &str,
    node: &str,
    families: &[MetricFamily],
    now: SystemTime,
) -> ExportMetricsServiceRequest {
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    let about =
        [("service.name", program), ("service.version", env!("CARGO_PKG_VERSION")), ("host.name", node)];
    let resource =
        Resource { attributes: about.map(|(key, value)| pair(key, value)).into(), ..Default::default() };
    let metrics = families.iter().map(|family| metric(family, now)).collect();
    let scope = InstrumentationScope { name: "tarbox".to_owned(), ..Default::default() };
    let scope_metrics = vec![ScopeMetrics { scope: Some(scope), metrics, ..Default::default() }];
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(resource),
            scope_metrics,
            ..Default::default()
        }],
    }
}

fn pair(key: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(Value::StringValue(value.to_owned())) };
    KeyValue { key: key.to_owned(), value: Some(value), ..Default::default() }
}

fn metric(family: &MetricFamily, now: u64) -> Metric {
    // When counting began is not told: a mounter's counters begin anew with each process.
    let temporality = AggregationTemporality::Cumulative.into();
    let rows = family.get_metric();
    let data = match family.get_field_type() {
        MetricType::COUNTER => Data::Sum(Sum {
            data_points: rows.iter().map(|row| number(row, row.get_counter().get_value(), now)).collect(),
            aggregation_temporality: temporality,
            is_monotonic: true,
        }),
        MetricType::HISTOGRAM => Data::Histogram(Histogram {
            data_points: rows.iter().map(|row| distribution(row, now)).collect(),
            aggregation_temporality: temporality,
        }),
        MetricType::GAUGE | MetricType::SUMMARY | MetricType::UNTYPED => Data::Gauge(Gauge {
            data_points: rows.iter().map(|row| number(row, row.get_gauge().get_value(), now)).collect(),
        }),
    };
    Metric {
        name: family.name().to_owned(),
        description: family.help().to_owned(),
        data: Some(data),
        ..Default::default()
    }
}

fn attributes(labels: &[LabelPair]) -> Vec<KeyValue> {
    labels.iter().map(|label| pair(label.name(), label.value())).collect()
}

fn number(row: &Row, value: f64, now: u64) -> NumberDataPoint {
    NumberDataPoint {
        attributes: attributes(row.get_label()),
        time_unix_nano: now,
        value: Some(number_data_point::Value::AsDouble(value)),
        ..Default::default()
    }
}

/// Prometheus counts what lies below each bound, OTLP what lies between two of them, and what lies above the last.
fn distribution(row: &Row, now: u64) -> HistogramDataPoint {
    let histogram = row.get_histogram();
    let (count, buckets) = (histogram.get_sample_count(), histogram.get_bucket());
    let below: Vec<u64> = buckets.iter().map(|bucket| bucket.cumulative_count()).chain([count]).collect();
    let between = below.iter().scan(0, |before, &below| {
        let count = below.saturating_sub(*before);
        *before = below;
        Some(count)
    });
    HistogramDataPoint {
        attributes: attributes(row.get_label()),
        time_unix_nano: now,
        count,
        sum: Some(histogram.get_sample_sum()),
        bucket_counts: between.collect(),
        explicit_bounds: buckets.iter().map(|bucket| bucket.upper_bound()).collect(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use tarbox_types::latency::Counted;

    use super::*;
    use crate::Metric as Table;

    #[test]
    fn each_family_is_what_it_is_to_prometheus() {
        let labels = &["volume_id"];
        let table = |name| Table { name, help: "Says.", labels };
        let durations = Counted::of(4, 3_000_000_000, &[1; 3]);
        let families = [
            table("a_total").counter([(["v"], 7)]),
            table("b").gauge([(["v"], 0.5)]),
            table("c_seconds").durations([(["v"], durations)]),
        ];
        let sent = request("tarbox-agent", "n", &families, UNIX_EPOCH + Duration::from_nanos(9));
        let resource = sent.resource_metrics[0].resource.as_ref().expect("a resource");
        assert_eq!(resource.attributes[0], pair("service.name", "tarbox-agent"));
        let metrics = &sent.resource_metrics[0].scope_metrics[0].metrics;
        let Some(Data::Sum(sum)) = &metrics[0].data else { panic!("{:?}", metrics[0]) };
        assert!(sum.is_monotonic && sum.data_points[0].time_unix_nano == 9);
        assert_eq!(sum.data_points[0].value, Some(number_data_point::Value::AsDouble(7.0)));
        assert_eq!(sum.data_points[0].attributes, [pair("volume_id", "v")]);
        let Some(Data::Gauge(gauge)) = &metrics[1].data else { panic!("{:?}", metrics[1]) };
        assert_eq!(gauge.data_points[0].value, Some(number_data_point::Value::AsDouble(0.5)));
        let Some(Data::Histogram(histogram)) = &metrics[2].data else { panic!("{:?}", metrics[2]) };
        let point = &histogram.data_points[0];
        assert_eq!((point.count, point.sum), (4, Some(3.0)));
        assert_eq!(point.bucket_counts, [3, 0, 0, 0, 0, 0, 0, 0, 1], "one took longer than the last bound");
        assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
    }
}
