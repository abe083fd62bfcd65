//! EIO to whatever the kernel asks while no process can be kept alive, so that killed applications can go away.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use tarbox_keeper::{Answered, Responder};
use tarbox_runtime::readable;
use tokio::{io::unix::AsyncFd, task::JoinHandle};

use crate::failure::{Chain, Failure};

/// Requests are answered while this lives.
#[derive(Debug)]
pub(super) struct Responding {
    task: JoinHandle<()>,
}

/// The responder, as something that is waited for.
struct Watched(Responder);

impl AsRawFd for Watched {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Responding {
    /// Begins, beside whoever else holds the device.
    ///
    /// # Errors
    /// Where `/dev/fuse` may not be opened, or the connection is gone.
    pub(super) fn begin(device: &OwnedFd) -> Result<Self, Failure> {
        let failed = |source| Failure::Io { doing: "open another /dev/fuse descriptor".to_owned(), source };
        let responder = Responder::new(device).map_err(failed)?;
        let watched = readable(Watched(responder)).map_err(failed)?;
        Ok(Self { task: tokio::spawn(answer(watched)) })
    }
}

impl Drop for Responding {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(mut device: AsyncFd<Watched>) {
    loop {
        match device.readable_mut().await {
            Ok(mut ready) => match ready.get_inner_mut().0.answer() {
                Answered::All => ready.clear_ready(),
                Answered::Some => tokio::task::yield_now().await,
                Answered::Gone => return,
            },
            Err(error) => {
                tracing::error!(error = %Chain(&error), "calls are no longer answered with EIO");
                return;
            }
        }
    }
}
