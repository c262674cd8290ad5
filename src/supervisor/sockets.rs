//! The sockets workers listen on: bound once by the daemon, kept over every restart of theirs, closed when nobody is to listen
//! any more.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::config::settings::{ListenAddress, Worker};
use crate::host::sockets;

/// Why an address could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("worker {worker} could not listen on {address}: {}", cause(.error))]
pub struct BindError {
    pub worker: Arc<str>,
    pub address: ListenAddress,
    pub error: io::Error,
}

fn cause(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "address already in use".to_owned(),
        io::ErrorKind::AddrNotAvailable => "this machine has no such address".to_owned(),
        io::ErrorKind::PermissionDenied => "not permitted; ports below 1024 need root or CAP_NET_BIND_SERVICE".to_owned(),
        _ => error.to_string(),
    }
}

/// All addresses of IPv6 are those of IPv4 as well, unless these are asked for in their own right.
fn only_v6(address: &ListenAddress, workers: &[Arc<Worker>]) -> bool {
    let ListenAddress::Tcp(address) = address else { return false };
    let is_beside = |other: &ListenAddress| matches!(other, ListenAddress::Tcp(other) if other.is_ipv4() && other.port() == address.port());
    address.is_ipv6() && address.ip().is_unspecified() && workers.iter().flat_map(|worker| &worker.listen).any(is_beside)
}

/// Every socket that is bound, by its address.
#[derive(Debug, Default)]
pub struct Sockets {
    bound: BTreeMap<String, Bound>,
}

#[derive(Debug)]
struct Bound {
    address: ListenAddress,
    socket: OwnedFd,
}

/// Sockets that settings need and that are not there yet: bound, and not yet in use.
#[derive(Debug, Default)]
pub struct Prepared(BTreeMap<String, Bound>);

impl Prepared {
    /// All of them, by address.
    pub fn all(&self) -> impl Iterator<Item = (&str, BorrowedFd<'_>)> {
        self.0.iter().map(|(address, bound)| (address.as_str(), bound.socket.as_fd()))
    }
}

impl Sockets {
    /// Binds what these workers need beyond what is there; nothing is changed by it. `spare` is asked first: somebody may listen
    /// on behalf of an earlier daemon.
    ///
    /// # Errors
    /// For the first address that cannot be bound; none of the others is kept then.
    pub fn prepare(&self, workers: &[Arc<Worker>], spare: &dyn Fn(&ListenAddress) -> Option<OwnedFd>) -> Result<Prepared, BindError> {
        let mut prepared = BTreeMap::new();
        for worker in workers {
            for address in worker.listen.iter().filter(|address| !self.bound.contains_key(&address.to_string())) {
                let failed = |error| BindError { worker: worker.name.clone(), address: address.clone(), error };
                let socket = spare(address).map_or_else(|| sockets::listen(address, only_v6(address, workers)).map_err(failed), Ok)?;
                prepared.insert(address.to_string(), Bound { address: address.clone(), socket });
            }
        }
        Ok(Prepared(prepared))
    }

    /// Takes over what was prepared for these workers, and closes what none of them names.
    pub fn apply(&mut self, workers: &[Arc<Worker>], prepared: Prepared) {
        self.bound.extend(prepared.0);
        let is_named = |name: &str| workers.iter().any(|worker| worker.listen.iter().any(|address| address.to_string() == name));
        self.close(|name| !is_named(name));
    }

    /// Copies of the sockets of one worker, in the order of its settings.
    ///
    /// # Errors
    /// When one is not bound, or there is no descriptor left.
    pub fn of(&self, worker: &Worker) -> io::Result<Vec<OwnedFd>> {
        let copy = |address: &ListenAddress| match self.bound.get(&address.to_string()) {
            Some(bound) => bound.socket.try_clone(),
            None => Err(io::Error::new(io::ErrorKind::AddrNotAvailable, format!("{address} is not bound"))),
        };
        worker.listen.iter().map(copy).collect()
    }

    /// All of them, by address.
    pub fn all(&self) -> impl Iterator<Item = (&str, &OwnedFd)> {
        self.bound.iter().map(|(address, bound)| (address.as_str(), &bound.socket))
    }

    /// Nobody listens any more.
    pub fn close_all(&mut self) {
        self.close(|_| true);
    }

    fn close(&mut self, which: impl Fn(&str) -> bool) {
        self.bound.retain(|name, bound| {
            let goes = which(name);
            if let (true, ListenAddress::Unix(path)) = (goes, &bound.address) {
                // Somebody may have taken it away already.
                let _ = std::fs::remove_file(path);
            }
            !goes
        });
    }
}
