//! How reading threads, blocked in read(2), are made to leave.
//!
//! With a signal to just those threads, again and again until they are gone (one that comes before the thread is in read(2)
//! is lost). The alternatives cost every request something, or do not work: a non-blocking descriptor means two more system
//! calls for each request that is not there yet, and poll(2) wakes all threads for each; the notification that makes the kernel
//! queue a request (RETRIEVE) is refused for directories, and only the root is sure to be known.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use nix::sys::pthread::{Pthread, pthread_kill, pthread_self};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use parking_lot::Mutex;

/// Ignored by default, so that a stray one never kills anybody.
const SIGNAL: Signal = Signal::SIGURG;
const AGAIN: Duration = Duration::from_millis(1);

/// The threads that read, by number.
#[derive(Debug, Default)]
pub(crate) struct Readers {
    threads: Mutex<Vec<Thread>>,
}

#[derive(Debug)]
struct Thread {
    id: Pthread,
    blocked: Arc<AtomicBool>,
}

/// The calling thread's place among the [`Readers`]; it leaves when this is dropped.
#[derive(Debug)]
pub(crate) struct Reading<'a> {
    readers: &'a Readers,
    blocked: Arc<AtomicBool>,
}

impl Readers {
    /// Enters the calling thread.
    pub(crate) fn enter(&self) -> Reading<'_> {
        static HANDLER: Once = Once::new();
        HANDLER.call_once(handle_signal);
        let blocked = Arc::new(AtomicBool::new(false));
        self.threads.lock().push(Thread { id: pthread_self(), blocked: Arc::clone(&blocked) });
        Reading { readers: self, blocked }
    }

    /// Interrupts those that wait for a request, not those that serve one; returns whether there are any.
    fn interrupt(&self) -> bool {
        let threads = self.threads.lock();
        // They stay valid under the lock: a thread takes itself off the list before it ends.
        for thread in threads.iter().filter(|thread| thread.blocked.load(Ordering::Relaxed)) {
            if let Err(errno) = pthread_kill(thread.id, SIGNAL) {
                tracing::warn!(%errno, "a reader cannot be interrupted");
            }
        }
        !threads.is_empty()
    }

    /// Interrupts them until all have left.
    pub(crate) fn send_away(&self) {
        while self.interrupt() {
            std::thread::sleep(AGAIN);
        }
    }
}

impl Reading<'_> {
    /// Runs `read`, which waits for a request and may be interrupted.
    pub(crate) fn interruptibly<T>(&self, read: impl FnOnce() -> T) -> T {
        self.blocked.store(true, Ordering::Relaxed);
        let outcome = read();
        self.blocked.store(false, Ordering::Relaxed);
        outcome
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.readers.threads.lock().retain(|thread| !Arc::ptr_eq(&thread.blocked, &self.blocked));
    }
}

/// Without SA_RESTART: read(2) is to return.
fn handle_signal() {
    extern "C" fn nothing(_signal: libc::c_int) {}
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing, which is safe in any thread at any time.
    if let Err(errno) = unsafe { sigaction(SIGNAL, &action) } {
        tracing::error!(%errno, "no signal handler: the session cannot be stopped");
    }
}
