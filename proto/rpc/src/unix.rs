//! Connecting to a unix socket, whatever the length of its path.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use nix::{
    fcntl::{OFlag, open},
    sys::stat::Mode,
};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

/// A path that fits into `sockaddr_un` (108 bytes) though the real one may not: it leads through a descriptor of the
/// directory, and is valid as long as this lives.
#[derive(Debug)]
pub(crate) struct ShortPath {
    path: PathBuf,
    _directory: OwnedFd,
}

impl ShortPath {
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let directory = open(parent, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        let path = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
        Ok(Self { path, _directory: directory })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

pub(crate) async fn stream(path: &Path) -> io::Result<UnixStream> {
    let short = ShortPath::of(path)?;
    UnixStream::connect(short.path()).await
}

async fn stream_of(path: &Path, user: Option<u32>) -> io::Result<UnixStream> {
    let stream = stream(path).await?;
    let listens = stream.peer_cred()?.uid();
    match user.filter(|user| *user != listens) {
        None => Ok(stream),
        Some(user) => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("user {listens} listens there, not user {user}"),
        )),
    }
}

/// Connects a gRPC channel to the socket at `path`. Each call over it has `deadline` to be answered.
///
/// # Errors
/// As connect(2): `NotFound` and `ConnectionRefused` where nobody serves the socket.
pub async fn connect(path: &Path, deadline: Duration) -> io::Result<Channel> {
    connect_to(path, None, deadline).await
}

/// As [`connect`], to a process of this user's alone, who may have put something else there: a link to another's socket.
///
/// # Errors
/// As [`connect`]; `PermissionDenied` where it is somebody else's.
pub async fn connect_to(path: &Path, user: Option<u32>, deadline: Duration) -> io::Result<Channel> {
    // Tried once beforehand: tonic would wrap the cause in two layers of its own.
    drop(stream_of(path, user).await?);
    let path = path.to_owned();
    Endpoint::from_static("http://tarbox.invalid")
        .timeout(deadline)
        .connect_with_connector(tower::service_fn(move |_| {
            let path = path.clone();
            async move { stream_of(&path, user).await.map(TokioIo::new) }
        }))
        .await
        .map_err(io::Error::other)
}
