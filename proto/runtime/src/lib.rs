//! How our processes start, are configured, log and stop.
