//! A unix socket that only its owner and root can talk to.

use std::{
    io,
    path::Path,
    pin::Pin,
    task::{Context, Poll, ready},
};

use nix::unistd::Uid;
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::Stream;

use crate::unix::ShortPath;

/// Listens on a socket file of mode 0600 and drops connections of other users; root is let in.
///
/// The mode alone would not do: between bind(2) and chmod(2) anybody may connect.
#[derive(Debug)]
pub struct PrivateListener {
    listener: UnixListener,
    owner: Uid,
}

impl PrivateListener {
    /// Makes the socket, in place of a dead one. The caller makes sure (by a lock) that no living process serves it.
    ///
    /// # Errors
    /// As bind(2).
    pub fn bind(path: &Path) -> io::Result<Self> {
        let short = ShortPath::of(path)?;
        match std::fs::remove_file(short.path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(short.path())?;
        std::fs::set_permissions(short.path(), std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        Ok(Self { listener, owner: Uid::effective() })
    }

    fn admits(&self, stream: &UnixStream) -> bool {
        let uid = stream.peer_cred().map(|peer| Uid::from_raw(peer.uid()));
        uid.is_ok_and(|uid| uid.is_root() || uid == self.owner)
    }
}

impl Stream for PrivateListener {
    type Item = io::Result<UnixStream>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let (stream, _) = ready!(self.listener.poll_accept(context))?;
            if self.admits(&stream) {
                return Poll::Ready(Some(Ok(stream)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tokio_stream::StreamExt;

    use super::*;

    #[tokio::test]
    async fn a_socket_deeper_than_108_bytes_works_and_has_mode_0600() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let deep = directory.path().join("d".repeat(120));
        std::fs::create_dir(&deep).expect("mkdir");
        let path = deep.join("control.sock");
        let mut listener = PrivateListener::bind(&path).expect("bind");
        assert_eq!(std::fs::metadata(&path).expect("stat").permissions().mode() & 0o7777, 0o600);
        let client = crate::unix::stream(&path).await.expect("connect");
        assert!(listener.next().await.expect("a stream").is_ok());
        drop(client);
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("control.sock");
        drop(PrivateListener::bind(&path).expect("first"));
        assert!(path.exists(), "a dropped listener leaves its file");
        let _second = PrivateListener::bind(&path).expect("second");
        crate::unix::stream(&path).await.expect("connect to the second");
    }
}
