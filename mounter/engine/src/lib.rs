//! The FUSE session: wire format, queues, slots, mounting.
