//! tarbox-mount and tarbox, the programs a user runs.
