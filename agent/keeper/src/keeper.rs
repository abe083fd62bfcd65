//! What the keeper is asked, and what it does.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Bound;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Instant;

use tarbox_handover::format::KEEPER_FORMAT;
use tarbox_handover::message::{Mode, TakeOver};
use tarbox_handover::process::send_signal;
use tarbox_handover::protocol::{self as say, Done, ROLE_SERVE, Reply, Request};
use tarbox_handover::{HandoverError, ProcessId, SpawnSpec, SupervisorLink, ToMounter};

use crate::children::{Child, Children};
use crate::error::KeeperError;
use crate::page;
use crate::responder::{Answered, Responder};
use crate::spawn::{Started, spawn};
use crate::tenants::{self, Tenant, Ticket};

/// Where a line goes about what the keeper does by itself.
pub type Report = fn(fmt::Arguments<'_>);

/// A client, as long as it is connected.
pub(crate) type ClientId = u64;

/// A reply, and its descriptors.
pub(crate) type Answer = (Reply, Vec<OwnedFd>);

/// Somebody who waits for the end of a child.
#[derive(Debug)]
struct Waiter {
    client: ClientId,
    request: u64,
    child: ProcessId,
}

/// All that is kept, and the children.
#[derive(Debug)]
pub struct Keeper {
    tenants: BTreeMap<String, Tenant>,
    children: Children,
    attending: BTreeSet<ClientId>,
    waiters: Vec<Waiter>,
    report: Report,
}

impl Keeper {
    /// Keeps nothing yet.
    #[must_use]
    pub fn new(report: Report) -> Self {
        Self {
            tenants: BTreeMap::new(),
            children: Children::default(),
            attending: BTreeSet::new(),
            waiters: Vec::new(),
            report,
        }
    }

    /// Does what was asked. None where the answer comes later, under the number of the request.
    pub(crate) fn handle(
        &mut self,
        now: Instant,
        (client, number): (ClientId, u64),
        request: Request,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Option<Answer>, KeeperError> {
        let done = |()| (Reply::Done(Done { generation: 0 }), Vec::new());
        Ok(Some(match request {
            Request::Hello(_) => (Reply::Welcome(welcome()), Vec::new()),
            Request::Put(put) => self.put(put, descriptors)?,
            Request::Get(get) => self.get(&get.key)?,
            Request::List(list) => (Reply::Listing(self.list(&list.after)), Vec::new()),
            Request::Delete(delete) => self.delete(&delete.key).map(done)?,
            Request::Spawn(spawn) => self.spawn(now, spawn, &descriptors)?,
            Request::Signal(signal) => self.signal(&signal).map(done)?,
            Request::Wait(wait) => return self.wait(client, number, &wait),
            Request::Children(from) => (Reply::Children(self.list_children(from.after)), Vec::new()),
            Request::Ticket(ticket) => self.ticket(ticket, descriptors).map(done)?,
            Request::Attend(_) => {
                self.attend(client);
                done(())
            }
            Request::Respond(respond) => self.respond(&respond).map(done)?,
            Request::Reach(reach) => reached(self.children.get(id(reach.pid, reach.start_time))?)?,
            Request::Promote(promote) => self.promote(now, id(promote.pid, promote.start_time)).map(done)?,
            Request::Watch(watch) => self.watch(now, &watch, descriptors).map(done)?,
        }))
    }

    fn put(&mut self, put: say::Put, descriptors: Vec<OwnedFd>) -> Result<Answer, KeeperError> {
        tenants::key(&put.key)?;
        let key = put.key.clone();
        let generation = self.tenants.entry(key.clone()).or_default().put(put, descriptors);
        self.tidy(&key);
        Ok((Reply::Done(Done { generation: generation? }), Vec::new()))
    }

    fn get(&self, key: &str) -> Result<Answer, KeeperError> {
        let missing = || KeeperError::NoEntry(key.to_owned());
        let tenant = self.tenants.get(key).ok_or_else(missing)?;
        let described = tenant.described(key).ok_or_else(missing)?;
        let entry = tenant.entry.as_ref().ok_or_else(missing)?;
        Ok((Reply::Entry(described), tenants::duplicates(&entry.descriptors)?))
    }

    fn list(&self, after: &str) -> say::Listing {
        let behind = self.tenants.range::<str, _>((Bound::Excluded(after), Bound::Unbounded));
        page::entries(behind.filter_map(|(key, tenant)| tenant.described(key)))
    }

    fn delete(&mut self, key: &str) -> Result<(), KeeperError> {
        let known = self.tenants.remove(key).is_some_and(|tenant| !tenant.is_empty());
        if known { Ok(()) } else { Err(KeeperError::NoEntry(key.to_owned())) }
    }

    fn spawn(
        &mut self,
        now: Instant,
        order: say::Spawn,
        descriptors: &[OwnedFd],
    ) -> Result<Answer, KeeperError> {
        tenants::key(&order.key)?;
        tenants::word("role", &order.role)?;
        let spec = order.spec.ok_or(HandoverError::Missing { what: "Spawn", field: "spec" })?;
        let id = self.start(now, &order.key, &order.role, &spec, descriptors)?;
        reached(self.children.get(id)?)
    }

    fn start(
        &mut self,
        now: Instant,
        key: &str,
        role: &str,
        spec: &SpawnSpec,
        descriptors: &[OwnedFd],
    ) -> Result<ProcessId, KeeperError> {
        let Started { id, pidfd, link } = spawn(spec, descriptors)?;
        self.children.add(Child::new(id, key, role, pidfd, link));
        if role == ROLE_SERVE {
            self.serves(now, key);
        }
        Ok(id)
    }

    /// A process serves this tenant from now on: nobody else answers, nobody else is due.
    fn serves(&mut self, now: Instant, key: &str) {
        let tenant = self.tenants.entry(key.to_owned()).or_default();
        tenant.responder = None;
        tenant.restarts.started(now);
    }

    fn signal(&self, order: &say::Signal) -> Result<(), KeeperError> {
        let child = self.children.get(id(order.pid, order.start_time))?;
        if child.is_alive() {
            send_signal(&child.pidfd, order.signal)?;
        }
        Ok(())
    }

    fn wait(
        &mut self,
        client: ClientId,
        request: u64,
        order: &say::Wait,
    ) -> Result<Option<Answer>, KeeperError> {
        let child = id(order.pid, order.start_time);
        let Some(how) = self.children.get(child)?.exited() else {
            self.waiters.push(Waiter { client, request, child });
            return Ok(None);
        };
        Ok(Some((Reply::Exited(how), Vec::new())))
    }

    fn list_children(&self, after: u32) -> say::ChildList {
        let behind = self.children.iter().filter(|child| child.id.pid > after);
        page::children(behind.map(Child::described))
    }

    fn ticket(&mut self, order: say::Ticket, descriptors: Vec<OwnedFd>) -> Result<(), KeeperError> {
        tenants::key(&order.key)?;
        let ticket = match (order.enabled, order.spec) {
            (false, _) => None,
            (true, Some(spec)) => {
                crate::spawn::check(&spec, &descriptors)?;
                Some(Ticket { spec, descriptors })
            }
            (true, None) => return Err(HandoverError::Missing { what: "Ticket", field: "spec" }.into()),
        };
        self.tenants.entry(order.key.clone()).or_default().ticket = ticket;
        self.tidy(&order.key);
        Ok(())
    }

    fn attend(&mut self, client: ClientId) {
        self.attending.insert(client);
        self.tenants.values_mut().for_each(|tenant| tenant.restarts.attended());
    }

    fn respond(&mut self, order: &say::Respond) -> Result<(), KeeperError> {
        let missing = || KeeperError::NoEntry(order.key.clone());
        let tenant = self.tenants.get_mut(&order.key).ok_or_else(missing)?;
        if order.on && tenant.responder.is_none() {
            let responder = Responder::new(tenant.device(&order.key)?);
            tenant.responder = Some(responder.map_err(KeeperError::io("open another /dev/fuse descriptor"))?);
        } else if !order.on {
            tenant.responder = None;
        }
        Ok(())
    }

    fn promote(&mut self, now: Instant, id: ProcessId) -> Result<(), KeeperError> {
        // One that has ended would be taken for one that serves, and nobody would be started in its place.
        let child = self.children.living(id)?;
        ROLE_SERVE.clone_into(&mut child.role);
        let key = child.key.clone();
        let told = child.link.try_send(&ToMounter::TakeOver(TakeOver {}), &[]);
        self.serves(now, &key);
        told.map(drop).map_err(KeeperError::from)
    }

    fn watch(
        &mut self,
        now: Instant,
        order: &say::Watch,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), KeeperError> {
        tenants::key(&order.key)?;
        tenants::word("role", &order.role)?;
        let found = descriptors.len();
        let [link] = <[OwnedFd; 1]>::try_from(descriptors).map_err(|_| HandoverError::Descriptors {
            what: "Watch",
            found,
            expected: 1,
        })?;
        let id = id(order.pid, order.start_time);
        // Told again, a child of ours stays one.
        if self.children.get(id).is_ok() {
            return Ok(());
        }
        let mut child = Child::new(id, &order.key, &order.role, id.open()?, SupervisorLink::new(link));
        child.is_ours = false;
        self.children.add(child);
        if order.role == ROLE_SERVE {
            self.serves(now, &order.key);
        }
        Ok(())
    }

    /// A tenant that nothing is known of needs no place.
    fn tidy(&mut self, key: &str) {
        let empty = self.tenants.get(key).is_some_and(Tenant::is_empty);
        if empty && !self.children.belong_to(key) {
            self.tenants.remove(key);
        }
    }
}

/// What happens without being asked for.
impl Keeper {
    /// What becomes readable when a child ends.
    pub(crate) fn alive(&self) -> impl Iterator<Item = (ProcessId, BorrowedFd<'_>)> {
        self.children.alive()
    }

    /// The connections that are answered here, by key.
    pub(crate) fn responders(&self) -> impl Iterator<Item = (&str, &Responder)> {
        self.tenants.iter().filter_map(|(key, tenant)| Some((key.as_str(), tenant.responder.as_ref()?)))
    }

    /// Requests have come for a connection that is answered here.
    pub(crate) fn answer(&mut self, key: &str) {
        let Some(tenant) = self.tenants.get_mut(key) else { return };
        if tenant.responder.as_mut().is_some_and(|responder| responder.answer() == Answered::Gone) {
            tenant.responder = None;
        }
    }

    /// A child has ended; returns who is to be told.
    pub(crate) fn child_ended(&mut self, now: Instant, id: ProcessId) -> Vec<(ClientId, u64, Reply)> {
        let Some((child, how)) = self.children.ended(id) else { return Vec::new() };
        let (key, served) = (child.key.clone(), child.role == ROLE_SERVE);
        if served && let Some(tenant) = self.tenants.get_mut(&key) {
            tenant.restarts.ended(now, how);
        }
        self.tidy(&key);
        let (told, others): (Vec<Waiter>, _) =
            std::mem::take(&mut self.waiters).into_iter().partition(|waiter| waiter.child == id);
        self.waiters = others;
        told.into_iter().map(|waiter| (waiter.client, waiter.request, Reply::Exited(how))).collect()
    }

    /// Somebody has been told how a child ended. Until then it is remembered: the one who waited may have died with it.
    pub(crate) fn child_told(&mut self, id: ProcessId) {
        self.children.forget(id);
    }

    /// A client has gone: nobody waits in its name, and if it attended, nobody does now.
    pub(crate) fn client_gone(&mut self, client: ClientId) {
        self.attending.remove(&client);
        self.waiters.retain(|waiter| waiter.client != client);
    }

    /// When the next mounter is to be restarted; None if none is, or somebody attends.
    pub(crate) fn due(&self) -> Option<Instant> {
        if !self.attending.is_empty() {
            return None;
        }
        self.tenants.iter().filter_map(|(key, tenant)| self.due_for(key, tenant)).min()
    }

    fn due_for(&self, key: &str, tenant: &Tenant) -> Option<Instant> {
        tenant.ticket.as_ref()?;
        tenant.restarts.due().filter(|_| !self.children.serves(key))
    }

    /// Restarts the mounters whose time has come.
    pub(crate) fn restart_due(&mut self, now: Instant) {
        if !self.attending.is_empty() {
            return;
        }
        let due = |(key, tenant): (&String, &Tenant)| {
            self.due_for(key, tenant).filter(|&at| at <= now).map(|_| key.clone())
        };
        let keys: Vec<_> = self.tenants.iter().filter_map(due).collect();
        for key in keys {
            match self.restart(now, &key) {
                Ok(id) => (self.report)(format_args!("{key}: restarted as {}", id.pid)),
                Err(error) => {
                    (self.report)(format_args!("{key}: not restarted: {error}"));
                    if let Some(tenant) = self.tenants.get_mut(&key) {
                        tenant.restarts.failed(now);
                    }
                }
            }
        }
    }

    fn restart(&mut self, now: Instant, key: &str) -> Result<ProcessId, KeeperError> {
        let missing = || KeeperError::NoEntry(key.to_owned());
        let tenant = self.tenants.get(key).ok_or_else(missing)?;
        let kept = tenant.kept(key)?;
        let ticket = tenant.ticket.as_ref().ok_or_else(missing)?;
        let (spec, descriptors) = (ticket.spec.clone(), tenants::duplicates(&ticket.descriptors)?);
        let id = self.start(now, key, ROLE_SERVE, &spec, &descriptors)?;
        let child = self.children.get_mut(id)?;
        child.by_ticket = true;
        let (start, parts) = kept.start(Mode::Serve);
        // It lies in the socket until the mounter reads it; one that has died already is seen to by its pidfd.
        let _ = child.link.try_send(&ToMounter::Start(start), &parts);
        Ok(id)
    }

    /// Passes SIGTERM on: commit now. False if there is nobody left to do so.
    pub(crate) fn commit_now(&self) -> bool {
        let alive = self.alive().map(|(_, pidfd)| send_signal(pidfd, libc::SIGTERM));
        alive.count() > 0
    }
}

fn reached(child: &Child) -> Result<Answer, KeeperError> {
    let spawned = say::Spawned { pid: child.id.pid, start_time: child.id.start_time };
    let pidfd = child.pidfd.try_clone().map_err(KeeperError::io("duplicate a pidfd"))?;
    Ok((Reply::Spawned(spawned), vec![pidfd, child.link.duplicate()?]))
}

fn welcome() -> say::Welcome {
    say::Welcome {
        formats: Some(KEEPER_FORMAT.read().into()),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        start_time: ProcessId::own().map_or(0, |id| id.start_time),
    }
}

fn id(pid: u32, start_time: u64) -> ProcessId {
    ProcessId { pid, start_time }
}
