//! External suites: programs that others wrote to find faults in file systems.

pub mod fsx;
pub mod pjdfstest;
