//! Whoever started us as a service and wants to hear how it goes: systemd, or what else speaks `sd_notify(3)`. And the sockets it has
//! bound for us (`sd_listen_fds(3)`).
//!
//! Nothing here waits: what cannot be told now is told again by whoever calls.

use std::ffi::OsString;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use super::helper;
use super::spawn::FIRST_SOCKET;
use crate::config::settings::ListenAddress;

/// More descriptors are passed to nobody; a number beyond it is not taken for one.
const MOST_PASSED: RawFd = 1024;

/// The variables that tell of passed sockets.
const PASSED: [&str; 3] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// Somebody who is told.
#[derive(Debug)]
pub struct ServiceManager {
    socket: OwnedFd,
    to: SocketAddrUnix,
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// Who `NOTIFY_SOCKET` names; `None` where nobody wants to be told. `pid` is ours: a watchdog may be meant for another.
    ///
    /// # Errors
    /// Why whoever is named there cannot be told.
    pub fn find<'a>(variable: impl Fn(&str) -> Option<&'a str>, pid: u32) -> Result<Option<ServiceManager>, String> {
        let Some(name) = variable("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else { return Ok(None) };
        let to = match name.as_bytes() {
            [b'/', ..] => SocketAddrUnix::new(name),
            [b'@', rest @ ..] => SocketAddrUnix::new_abstract_name(rest),
            _ => return Err(format!("NOTIFY_SOCKET={name} is no path and no abstract name (@…), and nothing else is spoken to")),
        };
        let to = to.map_err(|error| format!("NOTIFY_SOCKET={name}: {error}"))?;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
            .map_err(|error| format!("NOTIFY_SOCKET={name}: no socket to tell it by: {error}"))?;
        let for_us = variable("WATCHDOG_PID").is_none_or(|of| of.parse() == Ok(pid));
        let watchdog = variable("WATCHDOG_USEC").filter(|_| for_us).and_then(|micros| micros.parse().ok()).filter(|micros| *micros > 0);
        Ok(Some(ServiceManager { socket, to, watchdog: watchdog.map(Duration::from_micros) }))
    }

    /// We are given up when we have said nothing for so long.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Says it: lines of `NAME=VALUE`.
    ///
    /// # Errors
    /// What the kernel said; `WouldBlock` while too much waits to be read.
    pub fn say(&self, lines: &[u8]) -> io::Result<()> {
        rustix::net::sendto(&self.socket, lines, SendFlags::DONTWAIT | SendFlags::NOSIGNAL, &self.to)?;
        Ok(())
    }
}

/// Sockets that listen already, bound by whoever started us. They stay open here, so that each can be had again after it was let go.
#[derive(Debug, Default)]
pub struct Passed {
    sockets: Vec<(ListenAddress, OwnedFd)>,
    /// What was passed and is of no use, with the reason.
    pub refused: Vec<String>,
}

impl Passed {
    /// Takes over what the environment says was passed to process `pid`, and takes the variables out of it. To be called once, and
    /// before these numbers can be anybody else's: right at the start.
    pub fn receive(env: &mut Vec<(OsString, OsString)>, pid: u32) -> Passed {
        let value = |name: &str| env.iter().rev().find(|(known, _)| known == name).and_then(|(_, value)| value.to_str());
        let for_us = value("LISTEN_PID").is_some_and(|of| of.parse() == Ok(pid));
        let count = value("LISTEN_FDS").filter(|_| for_us).and_then(|count| count.parse::<RawFd>().ok()).unwrap_or(0);
        env.retain(|(name, _)| !PASSED.iter().any(|passed| name == passed));
        Passed::claim((0..count.clamp(0, MOST_PASSED)).map(|place| FIRST_SOCKET + place))
    }

    /// Takes over descriptors by their numbers, as [`Passed::receive`] does. A number that is not open is passed over.
    pub fn claim(numbers: impl IntoIterator<Item = RawFd>) -> Passed {
        let mut passed = Passed::default();
        for number in numbers {
            let Some(socket) = helper::claim(number) else { continue };
            match address_of(&socket) {
                Ok(address) => passed.sockets.push((address, socket)),
                Err(why) => passed.refused.push(format!("descriptor {number}: {why}")),
            }
        }
        passed
    }

    /// A copy of the socket for this address.
    pub fn socket(&self, address: &ListenAddress) -> Option<OwnedFd> {
        let (_, socket) = self.sockets.iter().find(|(bound, _)| bound == address)?;
        socket.try_clone().ok()
    }

    /// The TCP addresses that are not `taken`.
    pub fn addresses(&self, taken: impl Fn(&ListenAddress) -> bool) -> Vec<SocketAddr> {
        let free = self.sockets.iter().filter(|(address, _)| !taken(address));
        free.filter_map(|(address, _)| if let ListenAddress::Tcp(address) = address { Some(*address) } else { None }).collect()
    }

    /// A copy of the TCP socket for this address.
    pub fn listener(&self, address: SocketAddr) -> Option<TcpListener> {
        self.socket(&ListenAddress::Tcp(address)).map(TcpListener::from)
    }

    /// All of them, to be handed on.
    pub fn all(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets.iter().map(|(_, socket)| socket.as_fd())
    }
}

/// Where a socket listens.
fn address_of(socket: &OwnedFd) -> Result<ListenAddress, String> {
    if !matches!(sockopt::socket_acceptconn(socket), Ok(true)) {
        return Err("it is no socket that listens; pass a stream socket (ListenStream=, Accept=no)".to_owned());
    }
    let bound = rustix::net::getsockname(socket).map_err(|error| error.to_string())?;
    if let Ok(address) = SocketAddr::try_from(bound.clone()) {
        return Ok(ListenAddress::Tcp(address));
    }
    let bound = SocketAddrUnix::try_from(bound).map_err(|_| "it listens neither by TCP nor at a path".to_owned())?;
    let path = bound.path_bytes().filter(|path| path.starts_with(b"/"));
    path.map(|path| ListenAddress::Unix(std::ffi::OsStr::from_bytes(path).into())).ok_or_else(|| "it has no path".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::fd::{AsRawFd, IntoRawFd};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    fn find(variables: &[(&str, &str)]) -> Result<Option<ServiceManager>, String> {
        ServiceManager::find(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| *value), 77)
    }

    #[test]
    fn it_is_told_by_a_path_and_by_an_abstract_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("plimsoll-test-{}", std::process::id());
        let by_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        for (socket, address) in [(by_path, path.display().to_string()), (by_name, format!("@{name}"))] {
            let manager = find(&[("NOTIFY_SOCKET", &address)]).unwrap().unwrap();
            manager.say(b"READY=1\nSTATUS=here").unwrap();
            let mut text = [0; 64];
            let length = socket.recv(&mut text).unwrap();
            assert_eq!(&text[..length], b"READY=1\nSTATUS=here");
            assert_eq!(manager.watchdog(), None);
        }
    }

    #[test]
    fn one_that_does_not_read_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let _deaf = UnixDatagram::bind(&path).unwrap();
        let manager = find(&[("NOTIFY_SOCKET", &path.display().to_string())]).unwrap().unwrap();
        let refused = (0..100_000).find_map(|_| manager.say(b"WATCHDOG=1").err()).expect("a queue has an end");
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_watchdog_of_another_process_is_not_ours() {
        let with = |more: &[(&str, &str)]| {
            let mut all = vec![("NOTIFY_SOCKET", "/run/systemd/notify")];
            all.extend_from_slice(more);
            find(&all).unwrap().unwrap().watchdog()
        };
        assert_eq!(with(&[("WATCHDOG_USEC", "30000000"), ("WATCHDOG_PID", "77")]), Some(Duration::from_secs(30)));
        assert_eq!(with(&[("WATCHDOG_USEC", "30000000")]), Some(Duration::from_secs(30)));
        assert_eq!(with(&[("WATCHDOG_USEC", "30000000"), ("WATCHDOG_PID", "78")]), None);
        for nonsense in ["", "0", "-1", "soon"] {
            assert_eq!(with(&[("WATCHDOG_USEC", nonsense)]), None);
        }
    }

    #[test]
    fn who_cannot_be_told_is_named() {
        assert!(find(&[]).unwrap().is_none() && find(&[("NOTIFY_SOCKET", "")]).unwrap().is_none());
        for address in ["vsock:2:1234", "relative", &format!("/{}", "x".repeat(200))] {
            let told = find(&[("NOTIFY_SOCKET", address)]).unwrap_err();
            assert!(told.contains(address), "{told}");
        }
    }

    #[test]
    fn sockets_that_listen_are_taken_and_others_are_refused() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.sock");
        let unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let datagram = UnixDatagram::unbound().unwrap();
        let address = tcp.local_addr().unwrap();
        let passed = Passed::claim([tcp.into_raw_fd(), unix.into_raw_fd(), datagram.into_raw_fd(), 1_000_000]);
        assert_eq!(passed.addresses(|_| false), [address]);
        assert!(passed.addresses(|taken| *taken == ListenAddress::Tcp(address)).is_empty());
        assert!(passed.refused.len() == 1 && passed.refused[0].contains("no socket that listens"), "{:?}", passed.refused);
        assert!(passed.socket(&ListenAddress::Unix(path)).is_some());
        for _ in 0..2 {
            assert_eq!(passed.listener(address).unwrap().local_addr().unwrap(), address, "it can be had again");
        }
        assert_eq!(passed.all().filter(|fd| fd.as_raw_fd() > 2).count(), 2);
    }

    proptest! {
        /// Whatever the variables say: without a number of ours nothing is claimed, and the variables are gone.
        #[test]
        fn what_is_meant_for_another_is_left_alone(pid in "[0-9a-z]{0,6}", count in "[-0-9a-z]{0,12}") {
            prop_assume!(pid != "77");
            let mut env: Vec<(OsString, OsString)> =
                [("LISTEN_PID", &*pid), ("LISTEN_FDS", &*count), ("LISTEN_FDNAMES", "http"), ("PATH", "/bin")]
                    .map(|(name, value)| (name.into(), value.into()))
                    .to_vec();
            let passed = Passed::receive(&mut env, 77);
            prop_assert!(passed.sockets.is_empty() && passed.refused.is_empty());
            prop_assert_eq!(env, [("PATH".into(), "/bin".into())]);
        }
    }
}
