//! The network between a mounter and its database: TCP that is passed on, held back as by a partition, or led to another server.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::Arc,
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result};
use parking_lot::{Condvar, Mutex};

/// One read.
const PIECE: usize = 64 << 10;

/// A relay on a port of its own. Ends, with its connections, when dropped.
#[derive(Debug)]
pub struct Relay {
    port: u16,
    shared: Arc<Shared>,
    accepts: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    target: u16,
    is_held: bool,
    is_over: bool,
    /// Both ends of every connection.
    ends: Vec<TcpStream>,
}

impl Relay {
    /// Relays to a port of this machine.
    ///
    /// # Errors
    /// If no port is to be had.
    pub fn to(target: u16) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("a port for the relay")?;
        let port = listener.local_addr()?.port();
        let state = State { target, is_held: false, is_over: false, ends: Vec::new() };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let its = shared.clone();
        let accepts = thread::spawn(move || {
            for client in listener.incoming().map_while(std::result::Result::ok) {
                if its.state.lock().is_over {
                    return;
                }
                let its = its.clone();
                thread::spawn(move || its.connect(&client));
            }
        });
        Ok(Self { port, shared, accepts: Some(accepts) })
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on nothing comes through, in either direction; connections stay, and new ones are taken.
    pub fn hold(&self) {
        self.shared.state.lock().is_held = true;
    }

    /// What was held back comes through.
    pub fn let_go(&self) {
        self.shared.state.lock().is_held = false;
        self.shared.changed.notify_all();
    }

    /// Breaks every connection; new ones lead to another port.
    pub fn lead_to(&self, target: u16) {
        let mut state = self.shared.state.lock();
        state.target = target;
        state.cut();
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.is_over = true;
        state.is_held = false;
        state.cut();
        drop(state);
        self.shared.changed.notify_all();
        // Wakes the one that accepts.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(accepts) = self.accepts.take() {
            let _ = accepts.join();
        }
    }
}

impl State {
    fn cut(&mut self) {
        for end in self.ends.drain(..) {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    /// Waits while everything is held back; whether it goes on.
    fn pass(&self) -> bool {
        let mut state = self.state.lock();
        self.changed.wait_while(&mut state, |state| state.is_held);
        !state.is_over
    }

    fn connect(self: &Arc<Self>, client: &TcpStream) {
        if !self.pass() {
            return;
        }
        let target = self.state.lock().target;
        // A server that is away refuses: so does the relay.
        let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else {
            let _ = client.shutdown(Shutdown::Both);
            return;
        };
        let copies = || -> std::io::Result<[TcpStream; 4]> {
            Ok([client.try_clone()?, server.try_clone()?, client.try_clone()?, server.try_clone()?])
        };
        let Ok([from_client, to_server, one, other]) = copies() else { return };
        self.state.lock().ends.extend([one, other]);
        let Ok(to_client) = client.try_clone() else { return };
        let its = self.clone();
        thread::spawn(move || its.pump(from_client, to_server));
        self.pump(server, to_client);
    }

    fn pump(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut piece = vec![0; PIECE];
        loop {
            let count = match from.read(&mut piece) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Ok(0) | Err(_) => break,
                Ok(count) => count,
            };
            if !self.pass() || to.write_all(&piece[..count]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    }
}
