//! One call at a time for each volume: the second is told `Aborted`, as CSI asks for.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use tarbox_types::ErrorKind;
use tonic::Status;

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
