//! What is kept of a tenant so that another mounter can go on: descriptors, by kind and by name.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use procfs::process::Process;
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};

use crate::message::{DescriptorKind, Mode, Start};
use crate::{HandoverError, ProcessId};

/// All that a mounter needs to go on where another one has died.
#[derive(Debug)]
pub struct Kept {
    /// Every descriptor that requests are read from: the one mounted first, then its clones, in the same order always.
    pub devices: Vec<OwnedFd>,
    /// The slots file.
    pub slots: OwnedFd,
    /// The journal, where it is no directory.
    pub journal: Option<OwnedFd>,
    /// A sealed memfd with what must not stand on a command line.
    pub secrets: Option<OwnedFd>,
}

impl DescriptorKind {
    /// The name under which the keeper has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Device => "device",
            Self::Slots => "slots",
            Self::Journal => "journal",
            Self::Secrets => "secrets",
        }
    }

    /// The kind of what the keeper has under this name; None if a mounter has no use for it.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        [Self::Device, Self::Slots, Self::Journal, Self::Secrets].into_iter().find(|kind| kind.name() == name)
    }
}

impl Kept {
    /// Kinds and descriptors, in the order in which they are handed over.
    #[must_use]
    pub fn parts(&self) -> Vec<(DescriptorKind, BorrowedFd<'_>)> {
        let devices = self.devices.iter().map(|device| (DescriptorKind::Device, device.as_fd()));
        let others = [
            (DescriptorKind::Slots, Some(&self.slots)),
            (DescriptorKind::Journal, self.journal.as_ref()),
            (DescriptorKind::Secrets, self.secrets.as_ref()),
        ];
        devices.chain(others.into_iter().filter_map(|(kind, fd)| Some((kind, fd?.as_fd())))).collect()
    }

    /// The names for [`crate::Client::put`], and the descriptors.
    #[must_use]
    pub fn named(&self) -> (Vec<String>, Vec<BorrowedFd<'_>>) {
        self.parts().into_iter().map(|(kind, fd)| (kind.name().to_owned(), fd)).unzip()
    }

    /// The message that starts a mounter with these, and the descriptors that go with it.
    #[must_use]
    pub fn start(&self, mode: Mode) -> (Start, Vec<BorrowedFd<'_>>) {
        let (kinds, descriptors): (Vec<_>, Vec<_>) =
            self.parts().into_iter().map(|(kind, fd)| (i32::from(kind), fd)).unzip();
        (Start { mode: i32::from(mode), descriptors: kinds }, descriptors)
    }

    /// Another set of descriptors of the same things.
    ///
    /// # Errors
    /// Where no more descriptors can be had.
    pub fn duplicate(&self) -> Result<Self, HandoverError> {
        let copy = |fd: &OwnedFd| {
            fd.try_clone().map_err(|source| HandoverError::Io { doing: "duplicate a descriptor", source })
        };
        Ok(Self {
            devices: self.devices.iter().map(copy).collect::<Result<_, _>>()?,
            slots: copy(&self.slots)?,
            journal: self.journal.as_ref().map(copy).transpose()?,
            secrets: self.secrets.as_ref().map(copy).transpose()?,
        })
    }

    /// What came with a [`Start`]. Kinds that this version does not know are closed.
    ///
    /// # Errors
    /// Where the descriptors are not as many as were named, or there is no device or no slots file among them.
    pub fn from_start(start: &Start, descriptors: Vec<OwnedFd>) -> Result<Self, HandoverError> {
        let kinds = start.descriptors.iter().map(|&kind| DescriptorKind::try_from(kind).ok());
        Self::collect("Start", kinds, descriptors)
    }

    /// What the keeper has under these names; other names are left out.
    ///
    /// # Errors
    /// As [`Kept::from_start`].
    pub fn from_named(names: &[String], descriptors: Vec<OwnedFd>) -> Result<Self, HandoverError> {
        Self::collect("entry", names.iter().map(|name| DescriptorKind::of_name(name)), descriptors)
    }

    /// Duplicates of what a mounter serves with, taken from the mounter itself: everybody else who had them is gone. Needs the rights
    /// of ptrace(2). A mounter holds one device.
    ///
    /// # Errors
    /// [`HandoverError::NoProcess`] where it is gone, [`HandoverError::Missing`] where it does not serve (yet), and where the kernel refuses.
    pub fn of_mounter(id: ProcessId) -> Result<Self, HandoverError> {
        let pidfd = id.open()?;
        let hidden = |source: procfs::ProcError| HandoverError::Io {
            doing: "list a mounter's descriptors",
            source: std::io::Error::other(source),
        };
        let mut kinds = Vec::new();
        let mut descriptors = Vec::new();
        for open in Process::new(id.pid.cast_signed()).and_then(|process| process.fd()).map_err(hidden)? {
            // Closed meanwhile: none of those that are looked for.
            let Ok(open) = open else { continue };
            let Some(kind) = kind_of(id, open.fd) else { continue };
            if kinds.contains(&Some(kind)) {
                continue;
            }
            let duplicate = pidfd_getfd(&pidfd, open.fd, PidfdGetfdFlags::empty());
            descriptors.push(duplicate.map_err(HandoverError::io("duplicate a mounter's descriptor"))?);
            kinds.push(Some(kind));
        }
        Self::collect("mounter", kinds.into_iter(), descriptors)
    }

    fn collect(
        what: &'static str,
        kinds: impl ExactSizeIterator<Item = Option<DescriptorKind>>,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Self, HandoverError> {
        if kinds.len() != descriptors.len() {
            return Err(HandoverError::Descriptors { what, found: descriptors.len(), expected: kinds.len() });
        }
        let (mut devices, mut slots, mut journal, mut secrets) = (Vec::new(), None, None, None);
        for (kind, fd) in kinds.zip(descriptors) {
            match kind {
                Some(DescriptorKind::Device) => devices.push(fd),
                Some(DescriptorKind::Slots) => slots = Some(fd),
                Some(DescriptorKind::Journal) => journal = Some(fd),
                Some(DescriptorKind::Secrets) => secrets = Some(fd),
                Some(DescriptorKind::Unknown) | None => {}
            }
        }
        if devices.is_empty() {
            return Err(HandoverError::Missing { what, field: "device" });
        }
        let slots = slots.ok_or(HandoverError::Missing { what, field: "slots" })?;
        Ok(Self { devices, slots, journal, secrets })
    }
}

/// What a mounter's descriptor is of, by the name that the kernel shows: memory files have those that they were made with.
fn kind_of(id: ProcessId, number: i32) -> Option<DescriptorKind> {
    let target = std::fs::read_link(format!("/proc/{}/fd/{number}", id.pid)).ok()?;
    match target.to_str()? {
        "/dev/fuse" => Some(DescriptorKind::Device),
        name if name.starts_with("/memfd:tarbox-slots") => Some(DescriptorKind::Slots),
        name if name.starts_with("/memfd:tarbox-secrets") => Some(DescriptorKind::Secrets),
        _ => None,
    }
}
