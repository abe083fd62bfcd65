//! How long applications waited: the longest call of a probe within a window of time. Pure.

/// A call of a probe, microseconds of CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When it began.
    pub start_us: u64,
    /// How long it took.
    pub length_us: u64,
}

impl Sample {
    fn end_us(self) -> u64 {
        self.start_us + self.length_us
    }
}

/// The longest call that was under way within the window; `None` where there was none.
#[must_use]
pub fn longest(samples: &[Sample], from_us: u64, until_us: u64) -> Option<u64> {
    let within = samples.iter().filter(|call| call.start_us <= until_us && call.end_us() >= from_us);
    within.map(|call| call.length_us).max()
}

/// The smallest value that at least so many percent do not exceed; `None` of nothing. Sorts the values.
pub fn percentile(values: &mut [u64], percent: usize) -> Option<u64> {
    values.sort_unstable();
    let rank = (values.len() * percent).div_ceil(100).max(1);
    values.get(rank - 1).copied()
}

/// Microseconds of CLOCK_MONOTONIC: the same in every process of the machine.
#[must_use]
pub fn now_us() -> u64 {
    let now =
        nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("the kernel has this clock");
    now.tv_sec() as u64 * 1_000_000 + now.tv_nsec() as u64 / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_call_that_touches_the_window_counts() {
        let call = |start_us, length_us| Sample { start_us, length_us };
        let samples = [call(0, 90), call(95, 3), call(100, 50), call(160, 1), call(300, 400)];
        assert_eq!(longest(&samples, 94, 99), Some(3));
        assert_eq!(longest(&samples, 120, 200), Some(50), "one that began before");
        assert_eq!(longest(&samples, 80, 130), Some(90), "one that ended within");
        assert_eq!(longest(&samples, 170, 299), None);
        assert_eq!(longest(&samples, 170, 300), Some(400), "one that ends behind");
    }

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let mut values: Vec<u64> = (1..=200).rev().collect();
        assert_eq!([50, 99, 100].map(|percent| percentile(&mut values, percent)), [100, 198, 200].map(Some));
        assert_eq!(percentile(&mut [7], 50), Some(7));
        assert_eq!(percentile(&mut [], 50), None);
    }
}
