//! What is kept of each tenant.

use std::io;
use std::os::fd::OwnedFd;

use tarbox_handover::message::DescriptorKind;
use tarbox_handover::protocol::{self as say, MOST_DATA_BYTES, MOST_KEY_BYTES};
use tarbox_handover::{Kept, SpawnSpec};

use crate::KeeperError;
use crate::responder::Responder;
use crate::ticket::Restarts;

/// Longest name of a descriptor and longest role, in bytes: a listing has to fit in a packet.
const MOST_WORD_BYTES: usize = 64;

/// One tenant.
#[derive(Debug, Default)]
pub(crate) struct Tenant {
    pub(crate) entry: Option<Entry>,
    pub(crate) ticket: Option<Ticket>,
    pub(crate) restarts: Restarts,
    pub(crate) responder: Option<Responder>,
}

/// What was put.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) generation: u64,
    pub(crate) names: Vec<String>,
    pub(crate) descriptors: Vec<OwnedFd>,
    pub(crate) data: Vec<u8>,
}

/// How to start a mounter.
#[derive(Debug)]
pub(crate) struct Ticket {
    pub(crate) spec: SpawnSpec,
    pub(crate) descriptors: Vec<OwnedFd>,
}

impl Tenant {
    /// Whether there is nothing to remember.
    pub(crate) fn is_empty(&self) -> bool {
        self.entry.is_none() && self.ticket.is_none()
    }

    /// Replaces what is kept; returns how often that has been done.
    pub(crate) fn put(&mut self, put: say::Put, descriptors: Vec<OwnedFd>) -> Result<u64, KeeperError> {
        let expected = put.names.len();
        if descriptors.len() != expected {
            let found = descriptors.len();
            return Err(tarbox_handover::HandoverError::Descriptors { what: "Put", found, expected }.into());
        }
        put.names.iter().try_for_each(|name| word("name", name))?;
        if put.data.len() > MOST_DATA_BYTES {
            return Err(wrong("data", format!("of {} bytes", put.data.len()), "up to 32768 bytes"));
        }
        let generation = self.entry.as_ref().map_or(0, |entry| entry.generation) + 1;
        self.entry = Some(Entry { generation, names: put.names, descriptors, data: put.data });
        Ok(generation)
    }

    /// Duplicates of what a mounter needs.
    pub(crate) fn kept(&self, key: &str) -> Result<Kept, KeeperError> {
        let entry = self.entry.as_ref().ok_or_else(|| KeeperError::NoEntry(key.to_owned()))?;
        Ok(Kept::from_named(&entry.names, duplicates(&entry.descriptors)?)?)
    }

    /// The descriptor that was mounted.
    pub(crate) fn device(&self, key: &str) -> Result<&OwnedFd, KeeperError> {
        let entry = self.entry.as_ref().ok_or_else(|| KeeperError::NoEntry(key.to_owned()))?;
        let device = DescriptorKind::Device.name();
        let at = entry.names.iter().position(|name| name == device);
        let missing = tarbox_handover::HandoverError::Missing { what: "entry", field: device };
        at.map(|at| &entry.descriptors[at]).ok_or_else(|| missing.into())
    }

    /// As a client is told, without descriptors. None where only a ticket or a process is known.
    pub(crate) fn described(&self, key: &str) -> Option<say::Entry> {
        self.entry.as_ref().map(|entry| say::Entry {
            key: key.to_owned(),
            generation: entry.generation,
            names: entry.names.clone(),
            data: entry.data.clone(),
            ticket: self.ticket.is_some(),
            responding: self.responder.is_some(),
        })
    }
}

pub(crate) fn duplicates(descriptors: &[OwnedFd]) -> Result<Vec<OwnedFd>, KeeperError> {
    let copies = descriptors.iter().map(OwnedFd::try_clone).collect::<io::Result<_>>();
    copies.map_err(KeeperError::io("duplicate descriptors"))
}

pub(crate) fn key(key: &str) -> Result<(), KeeperError> {
    if key.is_empty() || key.len() > MOST_KEY_BYTES {
        return Err(wrong("key", key.to_owned(), "1 to 255 bytes"));
    }
    Ok(())
}

pub(crate) fn word(field: &'static str, word: &str) -> Result<(), KeeperError> {
    if word.is_empty() || word.len() > MOST_WORD_BYTES {
        return Err(wrong(field, word.to_owned(), "1 to 64 bytes"));
    }
    Ok(())
}

fn wrong(field: &'static str, value: String, allowed: &'static str) -> KeeperError {
    KeeperError::Value { field, value, allowed }
}
