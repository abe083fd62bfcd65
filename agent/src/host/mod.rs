//! What the agent does to the machine beside mounting: small functions, none of which hangs.

pub mod boot;
pub mod cgroup;
pub mod fusectl;
pub mod ladder;
pub mod mountinfo;
pub mod sentry;
pub mod state;
pub(crate) mod walk;
