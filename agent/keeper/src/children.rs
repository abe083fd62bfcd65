//! The processes that were started or are watched, until somebody has asked how they ended.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tarbox_handover::protocol::{self as say, Exited, ROLE_SERVE};
use tarbox_handover::{ProcessId, SupervisorLink};

use crate::KeeperError;

/// Ended children that nobody has asked about are forgotten beyond this number, the oldest first: each holds two
/// descriptors.
const MOST_ENDED: usize = 64;

/// A process.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) id: ProcessId,
    pub(crate) key: String,
    pub(crate) role: String,
    pub(crate) pidfd: OwnedFd,
    /// Kept although it is never read here: it goes to whoever supervises next, with what was said meanwhile.
    pub(crate) link: SupervisorLink,
    pub(crate) is_ours: bool,
    pub(crate) by_ticket: bool,
    ended: Option<Ended>,
}

#[derive(Debug)]
struct Ended {
    how: Exited,
    order: u64,
}

/// Every process, by pid and start time.
#[derive(Debug, Default)]
pub(crate) struct Children {
    all: BTreeMap<(u32, u64), Child>,
    deaths: u64,
}

impl Child {
    pub(crate) fn new(id: ProcessId, key: &str, role: &str, pidfd: OwnedFd, link: SupervisorLink) -> Self {
        let (key, role) = (key.to_owned(), role.to_owned());
        Self { id, key, role, pidfd, link, is_ours: true, by_ticket: false, ended: None }
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.ended.is_none()
    }

    pub(crate) fn exited(&self) -> Option<Exited> {
        self.ended.as_ref().map(|ended| ended.how)
    }

    pub(crate) fn described(&self) -> say::Child {
        say::Child {
            pid: self.id.pid,
            start_time: self.id.start_time,
            key: self.key.clone(),
            role: self.role.clone(),
            exited: self.exited(),
            by_ticket: self.by_ticket,
        }
    }
}

impl Children {
    pub(crate) fn add(&mut self, child: Child) {
        self.all.insert((child.id.pid, child.id.start_time), child);
    }

    pub(crate) fn get(&self, id: ProcessId) -> Result<&Child, KeeperError> {
        self.all.get(&(id.pid, id.start_time)).ok_or_else(|| unknown(id))
    }

    pub(crate) fn get_mut(&mut self, id: ProcessId) -> Result<&mut Child, KeeperError> {
        self.all.get_mut(&(id.pid, id.start_time)).ok_or_else(|| unknown(id))
    }

    /// One that has not ended, as far as is known.
    pub(crate) fn living(&mut self, id: ProcessId) -> Result<&mut Child, KeeperError> {
        self.get_mut(id).and_then(|child| if child.is_alive() { Ok(child) } else { Err(unknown(id)) })
    }

    pub(crate) fn forget(&mut self, id: ProcessId) {
        self.all.remove(&(id.pid, id.start_time));
    }

    /// All of them, by pid.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Child> {
        self.all.values()
    }

    /// Those that live, and the descriptor that becomes readable when they do no longer.
    pub(crate) fn alive(&self) -> impl Iterator<Item = (ProcessId, BorrowedFd<'_>)> {
        self.iter().filter(|child| child.is_alive()).map(|child| (child.id, child.pidfd.as_fd()))
    }

    /// Whether a process serves this tenant.
    pub(crate) fn serves(&self, key: &str) -> bool {
        self.iter().any(|child| child.is_alive() && child.role == ROLE_SERVE && child.key == key)
    }

    pub(crate) fn belong_to(&self, key: &str) -> bool {
        self.iter().any(|child| child.is_alive() && child.key == key)
    }

    /// A pidfd has become readable: takes the exit status. None if it lives after all, or was seen to end before.
    pub(crate) fn ended(&mut self, id: ProcessId) -> Option<(&Child, Exited)> {
        let order = self.deaths + 1;
        let child = self.all.get_mut(&(id.pid, id.start_time)).filter(|child| child.is_alive())?;
        let how = if child.is_ours { reap(id)? } else { Exited::default() };
        child.ended = Some(Ended { how, order });
        self.deaths = order;
        self.forget_oldest();
        self.get(id).ok().map(|child| (child, how))
    }

    fn forget_oldest(&mut self) {
        let ended = self.all.iter().filter_map(|(key, child)| Some((child.ended.as_ref()?.order, *key)));
        let (count, oldest) = ended.fold((0, None), |(count, oldest), next| {
            (count + 1, Some(oldest.map_or(next, |oldest: (u64, (u32, u64))| oldest.min(next))))
        });
        if let Some((_, key)) = oldest.filter(|_| count > MOST_ENDED) {
            self.all.remove(&key);
        }
    }
}

fn unknown(id: ProcessId) -> KeeperError {
    KeeperError::NoChild { pid: id.pid, start_time: id.start_time }
}

/// Takes the exit status of a child of this process; None while it lives.
#[must_use]
pub fn reap(id: ProcessId) -> Option<Exited> {
    match waitpid(Pid::from_raw(id.pid.cast_signed()), Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::Exited(_, code)) => Some(Exited { code: Some(code), signal: None }),
        Ok(WaitStatus::Signaled(_, signal, _)) => Some(Exited { code: None, signal: Some(signal as i32) }),
        Ok(_) => None,
        // Somebody else has taken its status: that it ended is certain.
        Err(_) => Some(Exited::default()),
    }
}
