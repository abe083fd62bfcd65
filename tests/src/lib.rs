//! Whole-system tests, external suites and benchmarks.
