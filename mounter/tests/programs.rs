//! The programs as a user runs them: their messages, exit codes and effects. Mounting needs root and /dev/fuse.

#[path = "programs/archives.rs"]
mod archives;
#[path = "programs/checkpoints.rs"]
mod checkpoints;
#[path = "programs/command_line.rs"]
mod command_line;
#[path = "programs/control.rs"]
mod control;
#[path = "programs/garbage.rs"]
mod garbage;
#[path = "programs/kubectl.rs"]
mod kubectl;
#[path = "programs/mounting.rs"]
mod mounting;
#[path = "programs/place.rs"]
mod place;
#[path = "programs/restoring.rs"]
mod restoring;
#[path = "programs/tenants.rs"]
mod tenants;
