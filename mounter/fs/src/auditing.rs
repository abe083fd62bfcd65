//! What is audited though it changes nothing: refusals, reads, opens, the mount itself. A record with a note, and no effects.

use std::time::Duration;

use smallvec::SmallVec;
use tarbox_store::{StoreError, Time};
use tarbox_types::{AuditLevel, ROOT_INO, Seq};

use crate::{
    FileSystem,
    audit::{Asked, Doing, Event, Gathered, Operation, Source},
    effect::{Outcome, Record},
    effect_codec::AUDIT_ALONE,
    errno,
    error::FsError,
    health::chain,
    plan::Caller,
    shell::Shared,
    tree::Need,
};

/// So many batches of old events are removed one after the other.
const EXPIRE_BATCHES: usize = 1000;

impl Shared {
    /// The tenant is full for what was asked for.
    pub(crate) async fn refused(&self, caller: &Caller, doing: Doing<'_>, error: &FsError) {
        if let Some(asked) = self.audit.refused(caller, doing)
            && let Err(error) = self.note(caller, &asked, None, errno::number(error)).await
        {
            // Nothing is acknowledged any more: neither is this, which is told to its caller alone.
            tracing::debug!(error = chain(&error), "a refusal could not be audited");
        }
    }

    /// Something was looked at; `bytes` of it.
    ///
    /// # Errors
    /// Where nothing can be kept any more: what cannot be audited is not shown.
    pub(crate) async fn looked_at(
        &self,
        caller: &Caller,
        asked: Option<&Asked<'_>>,
        bytes: u64,
    ) -> Result<(), FsError> {
        match asked {
            Some(asked) => self.note(caller, asked, Some(bytes), 0).await,
            None => Ok(()),
        }
    }

    /// Notes it, unless a process that is dead has done so before it could answer.
    async fn note(
        &self,
        caller: &Caller,
        asked: &Asked<'_>,
        bytes: Option<u64>,
        result: i32,
    ) -> Result<(), FsError> {
        if self.told.is_audited(caller.unique) {
            return Ok(());
        }
        loop {
            match self.try_note(caller, asked, bytes, result.unsigned_abs())? {
                None => {
                    // Like writers: reads must not fill the journal faster than it is committed.
                    self.throttle().await;
                    return Ok(());
                }
                Some(Need::Room) => self.supply(Need::Room).await?,
                Some(_) => self.health.or_give_up(self.health.changed()).await?,
            }
        }
    }

    /// One try. What it needs: room, or (anything else) that the lease counts again.
    fn try_note(
        &self,
        caller: &Caller,
        asked: &Asked<'_>,
        bytes: Option<u64>,
        result: u32,
    ) -> Result<Option<Need>, FsError> {
        let mut core = self.core.lock();
        let core = &mut *core;
        if !self.health.may_acknowledge()? {
            return Ok(Some(Need::Reaping));
        }
        let note = asked.note(&core.tree, bytes, result);
        let unique = if caller.unique == 0 { 0 } else { caller.unique | AUDIT_ALONE };
        let record =
            Record { unique, counters: core.tree.counters, outcome: Outcome::Done, effects: SmallVec::new() };
        let Some(journal) = &mut core.journal else {
            return Err(FsError::Io("the tenant is being unmounted".into()));
        };
        match journal.append_noted(&record, &[], &note) {
            Ok(appended) => {
                self.appended(core, appended.seq, 0);
                Ok(None)
            }
            Err(error) if error.is_full() => Ok(Some(Need::Room)),
            Err(error) => Err(FsError::Io(chain(&error))),
        }
    }

    /// Notes that this process has begun, or ends, to serve the tenant.
    pub(crate) async fn note_mount(&self, operation: Operation, now: Time) -> Result<(), FsError> {
        if self.audit.level == AuditLevel::Off {
            return Ok(());
        }
        let (caller, asked) = self.by_itself(operation, now);
        self.note(&caller, &asked, None, 0).await
    }

    /// As [`Shared::note_mount`], if nothing has to be waited for; whether it is done.
    pub(crate) fn note_mount_at_once(&self, operation: Operation, now: Time) -> bool {
        if self.audit.level == AuditLevel::Off {
            return true;
        }
        let (caller, asked) = self.by_itself(operation, now);
        matches!(self.try_note(&caller, &asked, None, 0), Ok(None))
    }

    fn by_itself(&self, operation: Operation, now: Time) -> (Caller, Asked<'static>) {
        let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let caller = Caller { unique: 0, uid, gid, pid: std::process::id(), now };
        let asked = self.audit.own(&caller, Doing::to(operation, ROOT_INO));
        (caller, asked)
    }

    /// Removes events that are older than they are to be kept; how many values of them.
    pub(crate) async fn expire_audit(&self, keep: Duration, now: Time) -> Result<u64, StoreError> {
        let age = u64::try_from(keep.as_micros()).unwrap_or(u64::MAX);
        let before = crate::audit::micros(now).saturating_sub(age);
        let mut removed = 0;
        for _ in 0..EXPIRE_BATCHES {
            match self.store.expire_audit(before).await? {
                0 => break,
                some => removed += some,
            }
        }
        Ok(removed)
    }
}

impl FileSystem {
    /// The last events, oldest first, those not yet committed included.
    ///
    /// # Errors
    /// Where the database has to be asked and cannot be.
    pub async fn recent_events(&self) -> Result<Vec<Event>, FsError> {
        let shared = &self.shared;
        let view = shared.view();
        let source = Source { store: &*shared.store, view: &view };
        let uncommitted = |from: Seq| {
            let mut gathered = Gathered::default();
            for recovered in shared.journal.read_range(from, Seq::MAX).flatten() {
                gathered.add(&recovered.record, recovered.payload.as_slice());
            }
            gathered
        };
        shared.audit.recent(&source, uncommitted).await.map_err(|error| FsError::from(&error))
    }
}
