//! STAND-INS for crates that are being written; removed at integration.
#![allow(missing_docs, dead_code, clippy::unused_async)]

pub mod tarbox_fs {
    use std::{path::PathBuf, sync::Arc, time::Duration};
    use tarbox_store::{Compression, Database, Lease, Limits, TenantStore};
    use tarbox_types::{ErrorKind, KernelCache, Seq, SessionId};

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum SyncMode {
        Writeback,
        Writethrough,
    }
    #[derive(Clone, Debug)]
    pub struct FsConfig {
        pub cache_bytes: u64,
        pub journal_dir: PathBuf,
        pub journal_bytes: u64,
        pub segment_bytes: u64,
        pub flush_interval: Duration,
        pub max_lag: Duration,
        pub sync_mode: SyncMode,
        pub read_only: bool,
        pub compression: Compression,
        pub max_inodes: usize,
    }
    #[derive(Debug, thiserror::Error)]
    #[error("not there yet")]
    pub struct FsOpenError;
    impl FsOpenError {
        pub fn kind(&self) -> ErrorKind {
            ErrorKind::Unsupported
        }
    }
    pub type FlushError = FsOpenError;
    #[derive(Clone, Debug)]
    pub struct FsStatus {
        pub seq: Seq,
        pub committed: Seq,
        pub journal_bytes: u64,
        pub used_bytes: u64,
        pub used_inodes: u64,
        pub limits: Limits,
        pub cache_bytes: u64,
        pub waiting_for: Option<String>,
    }
    pub struct FileSystem;
    impl fuse3::raw::Filesystem for FileSystem {
        async fn init(&self, _: fuse3::raw::Request) -> fuse3::Result<fuse3::raw::reply::ReplyInit> {
            Err(libc::ENOSYS.into())
        }
        async fn destroy(&self, _: fuse3::raw::Request) {}
        async fn getlk(
            &self,
            _: fuse3::raw::Request,
            _: u64,
            _: u64,
            _: u64,
            _: u64,
            _: u64,
            _: u32,
            _: u32,
        ) -> fuse3::Result<fuse3::raw::reply::ReplyLock> {
            Err(libc::ENOSYS.into())
        }
        async fn setlk(
            &self,
            _: fuse3::raw::Request,
            _: u64,
            _: u64,
            _: u64,
            _: u64,
            _: u64,
            _: u32,
            _: u32,
            _: bool,
        ) -> fuse3::Result<()> {
            Err(libc::ENOSYS.into())
        }
    }
    impl FileSystem {
        pub async fn open(
            _: Arc<dyn Database>,
            _: Arc<dyn TenantStore>,
            _: Lease,
            _: SessionId,
            _: FsConfig,
        ) -> Result<Arc<Self>, FsOpenError> {
            Err(FsOpenError)
        }
        pub fn attach(&self, _: Arc<dyn KernelCache>) {}
        pub async fn flush(&self) -> Result<Seq, FlushError> {
            Err(FsOpenError)
        }
        pub fn set_limits(&self, _: Limits) {}
        pub fn status(&self) -> FsStatus {
            unreachable!()
        }
        pub async fn close(&self) -> Result<(), FlushError> {
            Err(FsOpenError)
        }
    }
}

pub mod tarbox_engine {
    use std::{os::fd::OwnedFd, path::PathBuf, sync::Arc};
    use tarbox_types::{ErrorKind, KernelCache};

    #[derive(Debug, thiserror::Error)]
    #[error("not there yet")]
    pub struct EngineError;
    impl EngineError {
        pub fn kind(&self) -> ErrorKind {
            ErrorKind::Unsupported
        }
    }
    #[derive(Debug)]
    pub enum Ended {
        Unmounted,
    }
    pub struct MountOptions {
        pub mount_point: PathBuf,
        pub source: String,
        pub read_only: bool,
    }
    pub fn mount(_: &MountOptions) -> Result<OwnedFd, EngineError> {
        Err(EngineError)
    }
    pub struct Session;
    impl Session {
        pub fn start<F>(_: Arc<F>, _: OwnedFd) -> Result<Self, EngineError> {
            Err(EngineError)
        }
        pub async fn wait(&self) -> Ended {
            Ended::Unmounted
        }
        pub async fn stop(&self) {}
        pub fn kernel_cache(&self) -> Arc<dyn KernelCache> {
            unreachable!()
        }
    }
}

pub fn decode_xattrs(_: Option<&bytes::Bytes>) -> Result<Vec<(Vec<u8>, Vec<u8>)>, crate::failure::Failure> {
    Ok(Vec::new())
}
