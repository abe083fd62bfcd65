//! One call at a time for each volume: the second is told `Aborted`, as CSI asks for.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use tarbox_types::ErrorKind;
use tonic::Status;
use tracing::Instrument;

use crate::status::status;

/// Which volumes have a call under way. Clones share what they know.
#[derive(Clone, Debug, Default)]
pub struct VolumeGuard {
    busy: Arc<Mutex<HashSet<String>>>,
}

/// A call under way; the volume is free again when this is dropped.
#[derive(Debug)]
pub struct Turn {
    guard: VolumeGuard,
    volume_id: String,
}

impl VolumeGuard {
    /// Begins a call for the volume.
    ///
    /// # Errors
    /// `Aborted` while another call for it is under way.
    pub fn enter(&self, volume_id: &str) -> Result<Turn, Status> {
        if self.busy().insert(volume_id.to_owned()) {
            return Ok(Turn { guard: self.clone(), volume_id: volume_id.to_owned() });
        }
        Err(status(
            ErrorKind::Concurrent,
            format!("another call for the volume `{volume_id}` is under way: try again when it is answered"),
        ))
    }

    /// Does the work in a task of its own, which has the volume's turn: a caller who hangs up cuts nothing off half-way,
    /// and the next call waits for its end.
    ///
    /// # Errors
    /// `Aborted` while another call for the volume is under way; those of the work.
    pub async fn run<T: Send + 'static>(
        &self,
        volume_id: &str,
        work: impl Future<Output = Result<T, Status>> + Send + 'static,
    ) -> Result<T, Status> {
        let turn = self.enter(volume_id)?;
        let done = async move {
            let outcome = work.await;
            drop(turn);
            outcome
        };
        let done = tokio::spawn(done.in_current_span());
        done.await.unwrap_or_else(|_| {
            Err(status(ErrorKind::Unavailable, "the program is ending: the call can be repeated"))
        })
    }

    fn busy(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.guard.busy().remove(&self.volume_id);
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn a_second_call_for_a_volume_is_aborted_until_the_first_ends() {
        let guard = VolumeGuard::default();
        let first = guard.enter("v").expect("free");
        let refused = guard.enter("v").expect_err("busy");
        assert_eq!(refused.code(), Code::Aborted);
        assert!(refused.message().contains("`v`"), "{}", refused.message());
        let _other = guard.enter("w").expect("another volume is free");
        drop(first);
        guard.enter("v").expect("free again");
    }
}
