//! Metrics as data: what a family is called, what it says, its labels; and families of numbers that somebody else has counted.

use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric as Row, MetricFamily, MetricType,
};
use tarbox_types::latency::{self, Counted};

/// Every so many classes are one bucket: a factor of four.
const STEP: usize = 2;
/// The first class that is a bucket's end: below 64 µs.
const FIRST: usize = 6;
/// The last one: below 1.05 s.
const LAST: usize = 20;

/// A family whose numbers are read when they are asked for.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name, with its unit.
    pub name: &'static str,
    /// What it says, in one sentence.
    pub help: &'static str,
    /// The names of its labels.
    pub labels: &'static [&'static str],
}

impl Metric {
    /// Numbers that go up and down, each with the values of its labels.
    pub fn gauge<L: Labels>(&self, rows: impl IntoIterator<Item = (L, f64)>) -> MetricFamily {
        self.family(MetricType::GAUGE, rows, |row, value| {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            row.set_gauge(gauge);
        })
    }

    /// Numbers that only grow, until what counts them begins anew.
    pub fn counter<L: Labels>(&self, rows: impl IntoIterator<Item = (L, u64)>) -> MetricFamily {
        self.family(MetricType::COUNTER, rows, |row, value| {
            let mut counter = Counter::default();
            counter.set_value(value as f64);
            row.set_counter(counter);
        })
    }

    /// Durations, in seconds.
    pub fn durations<L: Labels>(&self, rows: impl IntoIterator<Item = (L, Counted)>) -> MetricFamily {
        self.family(MetricType::HISTOGRAM, rows, |row, counted| row.set_histogram(histogram(&counted)))
    }

    fn family<L: Labels, V>(
        &self,
        kind: MetricType,
        rows: impl IntoIterator<Item = (L, V)>,
        set: impl Fn(&mut Row, V),
    ) -> MetricFamily {
        let mut family = MetricFamily::default();
        family.set_name(self.name.to_owned());
        family.set_help(self.help.to_owned());
        family.set_field_type(kind);
        let rows = rows.into_iter().map(|(labels, value)| {
            let pairs = self.labels.iter().zip(labels.values()).map(|(name, value)| {
                let mut pair = LabelPair::default();
                pair.set_name((*name).to_owned());
                pair.set_value(value);
                pair
            });
            let mut row = Row::from_label(pairs.collect());
            set(&mut row, value);
            row
        });
        family.set_metric(rows.collect());
        family
    }
}

/// A count in each class is everything below the class's bound; what lies between two buckets' ends goes into the upper one.
fn histogram(counted: &Counted) -> Histogram {
    let up_to = |class: usize| counted.classes.iter().take(class + 1).sum::<u64>();
    let buckets = (FIRST..=LAST).step_by(STEP).map(|class| {
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(latency::bound(class).as_secs_f64());
        bucket.set_cumulative_count(up_to(class));
        bucket
    });
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(counted.count);
    histogram.set_sample_sum(counted.total.as_secs_f64());
    histogram
}

/// The values of a family's labels, in their order.
pub trait Labels {
    /// As text.
    fn values(self) -> Vec<String>;
}

impl<const N: usize> Labels for [&str; N] {
    fn values(self) -> Vec<String> {
        self.map(str::to_owned).into()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn buckets_hold_all_that_took_less() {
        let latencies = latency::Latencies::default();
        for micros in [0, 63, 64, 255, 256, 2_000_000] {
            latencies.record(Duration::from_micros(micros));
        }
        let histogram = histogram(&latencies.counted());
        let buckets: Vec<_> = histogram
            .get_bucket()
            .iter()
            .map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()))
            .collect();
        assert_eq!(buckets[..3], [(64e-6, 2), (256e-6, 4), (1024e-6, 5)]);
        assert_eq!(buckets.last(), Some(&(1.048_576, 5)));
        assert_eq!((buckets.len(), histogram.get_sample_count()), (8, 6));
    }

    #[test]
    fn what_an_older_release_does_not_count_is_nothing() {
        let older = histogram(&Counted::of(1, 1_000, &[0, 1]));
        assert!(older.get_bucket().iter().all(|bucket| bucket.cumulative_count() == 1));
        assert_eq!(histogram(&Counted::default()).get_sample_count(), 0);
    }
}
