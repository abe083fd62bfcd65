//! Until somebody serves for the first time. Who says that it cannot serve is believed, and that is the end; who is killed or hangs is
//! replaced: the kernel may have been answered already, and applications may be waiting.

use tarbox_handover::{
    ToMounter,
    message::{Stop, exit},
    protocol::Exited,
};
use tarbox_runtime::Signal;
use tarbox_supervisor::{Event, Process, Wanted};
use tarbox_types::{ByteSize, ErrorKind};

use super::{
    failure_of,
    life::Inbound,
    supervising::{Keeping, first, rings, shown},
};
use crate::failure::Failure;

/// So many processes may be killed, or hang, before one serves: nobody is that unlucky, and who waits for the mount is to hear why.
const ATTEMPTS: u64 = 10;

impl Keeping {
    /// Has the tenant served. `false`: unmounted, or asked to end, before it came to that.
    ///
    /// # Errors
    /// What a process said that cannot serve; where too many died, and where this process is to end.
    pub(super) async fn begin(&mut self) -> Result<bool, Failure> {
        // No limit: whose memory it is, is the user's business.
        self.advance(Event::Stage(Wanted { build: first(), memory: ByteSize(0) }));
        let mut asked = None;
        while !self.machine.record().served {
            let rings = rings(self.alarm.map(|at| self.began + at));
            tokio::select! {
                Some(inbound) = self.events.recv() => {
                    if let Some(outcome) = self.take_first(inbound) {
                        return outcome.map(|()| false);
                    }
                }
                signal = self.shutdown.asked() => self.ask_to_stop(asked.replace(signal), signal)?,
                () = rings => self.tick(),
            }
            self.is_worth_another(asked)?;
        }
        Ok(true)
    }

    /// As [`Keeping::take`]; also where a process ends by itself, that is the end of it all.
    fn take_first(&mut self, inbound: Inbound) -> Option<Result<(), Failure>> {
        if let Inbound::Died(process, how) = &inbound
            && self.is_server(*process)
            && how.code != Some(exit::ENDED)
        {
            let words = self.lives.get_mut(process).and_then(|life| life.words.take());
            if how.code.is_some() || words.is_some() {
                return Some(Err(failure_of(how.code, words.unwrap_or_else(|| unsaid(*how)))));
            }
        }
        self.take(inbound)
    }

    /// What it has begun it gives back. A second signal does not wait for that.
    fn ask_to_stop(&self, before: Option<Signal>, signal: Signal) -> Result<(), Failure> {
        if before.is_some() {
            return Err(ended_before(signal));
        }
        tracing::info!(%signal, "ending before anything was served");
        for life in self.lives.values() {
            // One that is dead already is heard of.
            let _ = life.tell(&ToMounter::Stop(Stop {}), &[]);
        }
        Ok(())
    }

    /// Whether anybody is left who may come to serve, or is to be started for it.
    fn is_worth_another(&self, asked: Option<Signal>) -> Result<(), Failure> {
        let record = self.machine.record();
        if let Some(signal) = asked
            && record.server.is_none()
        {
            return Err(ended_before(signal));
        }
        if record.restarts < ATTEMPTS && !record.open {
            return Ok(());
        }
        let last = record.last_words.as_deref().unwrap_or("nobody knows");
        let message = format!(
            "no process came to serve in {} attempts; why the last one did not: {last}",
            record.restarts
        );
        Err(Failure::refused(ErrorKind::Internal, message))
    }

    pub(super) fn is_server(&self, process: Process) -> bool {
        self.machine.record().server.as_ref().is_some_and(|server| server.process == process)
    }
}

fn unsaid(how: Exited) -> String {
    format!("the serving process ended before it served: {}", shown(how))
}

fn ended_before(signal: Signal) -> Failure {
    Failure::refused(ErrorKind::Unavailable, format!("ended by {signal} before anything was served"))
}
