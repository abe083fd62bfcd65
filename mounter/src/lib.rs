//! tarbox-mount and tarbox, the programs a user runs.

pub mod admission;
pub mod archive;
pub mod cli;
pub mod confinement;
pub mod control;
pub mod control_directory;
pub mod daemon;
pub mod engine;
pub mod event_view;
pub mod failure;
pub mod keeping;
pub mod lease;
pub mod mount_command;
pub mod mount_point;
pub mod mounts;
pub mod offline;
pub mod places;
mod pods;
pub mod reader;
pub mod restore;
pub mod secrets;
pub mod serve;
pub mod settings;
pub mod supervised;
pub mod tenant_dir;
pub mod tenant_name;
pub mod unmount;
