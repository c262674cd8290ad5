//! Sockets of workers: the ones they listen on, bound once and passed on; the one they say on that they are ready; and the
//! connections that ask whether they are.
//!
//! Nothing here waits: every call answers at once, and what is not there yet is asked for again.

use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use super::diag;
use super::paths::Paths;
use super::process::Process;
use super::procfs::fields;
use super::spawn::FIRST_SOCKET;
use crate::config::settings::ListenAddress;

/// Connections the kernel keeps while nobody accepts; it takes the smaller of this and `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Everybody may connect to a worker's own socket, as with systemd's `SocketMode=`: its folder says who gets there.
const SOCKET_MODE: u32 = 0o666;

/// A message of `sd_notify(3)` is a few lines.
const LONGEST_MESSAGE: usize = 4096;

/// Binds and listens. A Unix socket whose owner has died is replaced; one that somebody answers on, or anything that is no socket,
/// is left alone. `only_v6` keeps IPv4 addresses free for a socket of their own.
///
/// # Errors
/// What the kernel said; `AddrInUse` for one that is taken.
pub fn listen(address: &ListenAddress, only_v6: bool) -> io::Result<OwnedFd> {
    match address {
        ListenAddress::Tcp(address) => {
            let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
            let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
            // Connections of before that are still being closed do not keep the address.
            sockopt::set_socket_reuseaddr(&socket, true)?;
            if only_v6 {
                sockopt::set_ipv6_v6only(&socket, true)?;
            }
            // Connections inherit it. `uvicorn --fd` takes its socket for a Unix one and does not set it: each answer on a kept
            // connection would then wait 40 ms for the client's acknowledgement of its head.
            sockopt::set_tcp_nodelay(&socket, true)?;
            rustix::net::bind(&socket, address)?;
            rustix::net::listen(&socket, BACKLOG)?;
            Ok(socket)
        }
        ListenAddress::Unix(path) => match listen_at(path) {
            Err(Errno::ADDRINUSE) if is_abandoned(path)? => {
                std::fs::remove_file(path)?;
                Ok(listen_at(path)?)
            }
            outcome => Ok(outcome?),
        },
    }
}

fn listen_at(path: &Path) -> Result<OwnedFd, Errno> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::fs::chmod(path, Mode::from_raw_mode(SOCKET_MODE))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// A socket nobody listens on any more.
fn is_abandoned(path: &Path) -> io::Result<bool> {
    let is_socket = std::fs::symlink_metadata(path)?.file_type().is_socket();
    Ok(is_socket && matches!(UnixStream::connect(path), Err(error) if error.kind() == io::ErrorKind::ConnectionRefused))
}

/// Where one process says how it is doing: its `NOTIFY_SOCKET`. In the abstract namespace, so that it needs no folder the process
/// may enter.
#[derive(Debug)]
pub struct NotifySocket {
    socket: OwnedFd,
    name: String,
}

/// Who said what.
#[derive(Debug, PartialEq, Eq)]
pub struct Message {
    pub pid: i32,
    pub text: Vec<u8>,
}

impl NotifySocket {
    /// `name` is unique on this machine.
    pub fn bind(name: &str) -> io::Result<NotifySocket> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        // Who speaks is told by the kernel.
        sockopt::set_socket_passcred(&socket, true)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
        Ok(NotifySocket { socket, name: format!("@{name}") })
    }

    /// One that was bound already by whoever we were before; `name` is what [`NotifySocket::name`] said.
    pub fn handed_over(name: String, socket: OwnedFd) -> NotifySocket {
        NotifySocket { socket, name }
    }

    /// The value of `NOTIFY_SOCKET`.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The next message, if one is there. One without a sender that the kernel vouches for is passed over.
    pub fn receive(&self) -> Option<Message> {
        loop {
            let mut text = vec![0_u8; LONGEST_MESSAGE];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1), ScmRights(8))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            // Descriptors that come along (FDSTORE=1) are closed again when the buffer goes.
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            let received = match rustix::net::recvmsg(&self.socket, &mut [io::IoSliceMut::new(&mut text)], &mut control, flags) {
                Err(Errno::INTR) => continue,
                outcome => outcome.ok()?,
            };
            let sender = control.drain().find_map(|message| match message {
                RecvAncillaryMessage::ScmCredentials(credentials) => Some(credentials.pid.as_raw_nonzero().get()),
                _ => None,
            });
            text.truncate(received.bytes);
            if let Some(pid) = sender {
                return Some(Message { pid, text });
            }
        }
    }
}

/// A connection that is being made, or is there.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    target: SocketAddr,
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    Pending,
    Connected,
}

impl Connection {
    /// Begins to connect.
    ///
    /// # Errors
    /// When nobody listens, as far as that is known at once.
    pub fn begin(target: SocketAddr) -> io::Result<Connection> {
        let family = if target.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        match rustix::net::connect(&socket, &target) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(Connection { socket, target }),
            Err(error) => Err(error.into()),
        }
    }

    /// # Errors
    /// When it was refused or lost.
    pub fn progress(&self) -> io::Result<Progress> {
        let mut fds = [rustix::event::PollFd::new(&self.socket, rustix::event::PollFlags::OUT)];
        let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        if rustix::event::poll(&mut fds, Some(&at_once))? == 0 {
            return Ok(Progress::Pending);
        }
        sockopt::socket_error(&self.socket)??;
        Ok(Progress::Connected)
    }

    /// Sends all of a short text.
    pub fn send(&self, text: &[u8]) -> io::Result<()> {
        // A request of a few hundred bytes fits into an empty buffer, or the connection is not worth having.
        match rustix::net::send(&self.socket, text, rustix::net::SendFlags::NOSIGNAL)? {
            sent if sent == text.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// What has arrived, appended to `text`. False when the other side has closed.
    pub fn receive(&self, text: &mut Vec<u8>) -> io::Result<bool> {
        let mut part = [0_u8; 512];
        match rustix::net::recv(&self.socket, &mut part, RecvFlags::DONTWAIT) {
            Ok((_, 0)) => Ok(false),
            Ok((length, _)) => {
                text.extend_from_slice(part.get(..length).unwrap_or_default());
                Ok(true)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// The inode of the socket that listens at the other end, on this machine; `None` where that cannot be told.
    pub fn listener_inode(&self, paths: &Paths) -> Option<u64> {
        let peer: SocketAddr = rustix::net::getpeername(&self.socket).ok()?.and_then(|peer| peer.try_into().ok())?;
        let found = if paths.is_live() { diag::listener_of(peer).ok().flatten() } else { None };
        found.filter(|inode| *inode != 0).map(u64::from)
    }

    /// The inode of the socket at the other end, on this machine: `None` while nobody has accepted the connection, or where
    /// that cannot be told.
    pub fn peer_inode(&self, paths: &Paths) -> Option<u64> {
        let own: SocketAddr = rustix::net::getsockname(&self.socket).ok()?.try_into().ok()?;
        let peer: SocketAddr = rustix::net::getpeername(&self.socket).ok()?.and_then(|peer| peer.try_into().ok())?;
        if paths.is_live()
            && let Ok(found) = diag::inode_of(peer, own)
        {
            return found.filter(|inode| *inode != 0).map(u64::from);
        }
        let file = if self.target.is_ipv6() { "net/tcp6" } else { "net/tcp" };
        let ports = (self.target.port(), own.port());
        let table = |file: &str| std::fs::read(paths.proc.join("self").join(file)).ok().and_then(|text| inode_of(&text, ports));
        // A socket of both families keeps its IPv4 connections in the other table.
        table(file).or_else(|| table("net/tcp6"))
    }
}

/// The inode in `/proc/net/tcp` of the established connection with these (local, remote) ports. 0, for one that nobody has
/// accepted or owns any more, is none.
fn inode_of(table: &[u8], (local, remote): (u16, u16)) -> Option<u64> {
    let port = |field: &[u8]| {
        let at = field.iter().rposition(|byte| *byte == b':')?;
        u16::from_str_radix(std::str::from_utf8(field.get(at + 1..)?).ok()?, 16).ok()
    };
    table.split(|byte| *byte == b'\n').skip(1).find_map(|line| {
        let mut words = fields(line).skip(1);
        let ports = (port(words.next()?)?, port(words.next()?)?);
        let inode: u64 = std::str::from_utf8(words.nth(6)?).ok()?.parse().ok()?;
        (ports == (local, remote) && inode != 0).then_some(inode)
    })
}

/// Whether a process has this socket open.
pub fn owns(paths: &Paths, pid: i32, inode: u64) -> bool {
    let name = format!("socket:[{inode}]");
    let folder = std::fs::read_dir(paths.proc.join(pid.to_string()).join("fd"));
    folder
        .into_iter()
        .flatten()
        .flatten()
        .any(|entry| std::fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == name.as_str()))
}

/// A copy of the listening socket for this address that a process was handed; `None` where it has none, or we may not look.
pub fn take_from(process: &Process, address: &ListenAddress) -> Option<OwnedFd> {
    let flags = rustix::process::PidfdGetfdFlags::empty();
    (FIRST_SOCKET..FIRST_SOCKET + MOST_SOCKETS).find_map(|number| {
        let socket = rustix::process::pidfd_getfd(process.pidfd(), number, flags).ok()?;
        let is_listening = sockopt::socket_acceptconn(&socket).ok()?;
        let bound = rustix::net::getsockname(&socket).ok()?;
        let is_it = match address {
            ListenAddress::Tcp(address) => SocketAddr::try_from(bound).is_ok_and(|bound| bound == *address),
            ListenAddress::Unix(path) => {
                SocketAddrUnix::try_from(bound).is_ok_and(|bound| bound.path_bytes() == Some(path.as_os_str().as_bytes()))
            }
        };
        (is_listening && is_it).then_some(socket)
    })
}

/// Nobody listens on more addresses, or they are bound anew.
const MOST_SOCKETS: i32 = 32;

/// Descriptors to wait for together, each under a number.
#[derive(Debug)]
pub struct Watch(OwnedFd);

impl Watch {
    pub fn new() -> io::Result<Watch> {
        Ok(Watch(rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC)?))
    }

    /// Readable when one of them is.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Until it is closed: then it is forgotten by itself.
    pub fn add(&self, fd: BorrowedFd<'_>, number: u64) -> io::Result<()> {
        let data = rustix::event::epoll::EventData::new_u64(number);
        Ok(rustix::event::epoll::add(&self.0, fd, data, rustix::event::epoll::EventFlags::IN)?)
    }

    /// Not any more.
    pub fn remove(&self, fd: BorrowedFd<'_>) {
        // It may not be there.
        let _ = rustix::event::epoll::delete(&self.0, fd);
    }

    /// The numbers of those that can be read now, some of them at least.
    pub fn readable(&self) -> Vec<u64> {
        let mut events = Vec::with_capacity(16);
        let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        match rustix::event::epoll::wait(&self.0, rustix::buffer::spare_capacity(&mut events), Some(&at_once)) {
            Ok(_) => events.iter().map(|event| event.data.u64()).collect(),
            Err(_) => Vec::new(),
        }
    }
}

/// A file that is held by one process of all that may open it, by a lock of the kernel: it is free when the last copy of the
/// descriptor is closed, so also by the death of whoever holds it.
#[derive(Debug)]
pub struct HeldLock(File);

impl HeldLock {
    /// `Ok(None)`: somebody else holds it.
    ///
    /// # Errors
    /// When the file cannot be made or opened.
    pub fn try_take(path: &Path) -> io::Result<Option<HeldLock>> {
        let file = File::options().create(true).truncate(false).read(true).write(true).open(path)?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::AGAIN) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        // For people; a disk too full for it changes nothing.
        let who = format!("{} on {}\n", rustix::process::getpid().as_raw_nonzero(), rustix::system::uname().nodename().to_string_lossy());
        let _ = file.set_len(0).and_then(|()| (&file).write_all(who.as_bytes()));
        Ok(Some(HeldLock(file)))
    }

    /// Whether it could be taken, without taking it or making the file; `None` where there is no file.
    ///
    /// # Errors
    /// When the file cannot be opened, or its file system knows no locks.
    pub fn is_free(path: &Path) -> io::Result<Option<bool>> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        // Beside others of its kind, and given back at once: who wants it for itself looks again in a moment.
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(Some(true)),
            Err(Errno::AGAIN) => Ok(Some(false)),
            Err(error) => Err(error.into()),
        }
    }

    /// Who holds it, by its own word.
    pub fn holder(path: &Path) -> Option<String> {
        let mut text = String::new();
        File::open(path).ok()?.take(256).read_to_string(&mut text).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty() && !text.contains(char::is_control))
    }

    /// Another descriptor of the same lock, to be handed to who it is held for.
    pub fn share(&self) -> io::Result<OwnedFd> {
        Ok(self.0.try_clone()?.into())
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// The same lock by a descriptor that whoever we were before, or who it is held for, has of it.
    pub fn handed_over(fd: OwnedFd) -> HeldLock {
        HeldLock(File::from(fd))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TABLE: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
        0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 100 1 0 100 0 0 10 0\n   \
        1: 0100007F:1F40 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 20 4 30 10 -1\n   \
        2: 0100007F:1F40 0100007F:D432 01 00000000:00000000 00:00000000 00000000     0        0 0 1 0 20 4 30 10 -1\n";

    #[test]
    fn the_other_end_of_a_connection_is_found_once_it_was_accepted() {
        assert_eq!(inode_of(TABLE.as_bytes(), (8000, 0xd431)), Some(4711));
        assert_eq!(inode_of(TABLE.as_bytes(), (8000, 0xd432)), None, "nobody has accepted it");
        assert_eq!(inode_of(TABLE.as_bytes(), (8000, 1)), None);
    }

    #[test]
    fn who_accepted_a_connection_can_be_told_from_who_did_not() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let connection = Connection::begin(listener.local_addr().unwrap()).unwrap();
        let paths = Paths::below(Path::new("/"));
        assert_eq!(connection.progress().unwrap(), Progress::Connected, "the kernel answers for the listener");
        assert_eq!(connection.peer_inode(&paths), None);
        let _accepted = listener.accept().unwrap();
        let inode = connection.peer_inode(&paths).unwrap();
        assert!(owns(&paths, rustix::process::getpid().as_raw_nonzero().get(), inode));
        assert!(!owns(&paths, 1, inode) || rustix::process::getpid().as_raw_nonzero().get() == 1);
    }

    #[test]
    fn who_is_accepted_does_not_wait_for_acknowledgements() {
        let socket = listen(&ListenAddress::Tcp("127.0.0.1:0".parse().unwrap()), false).unwrap();
        let address: SocketAddr = rustix::net::getsockname(&socket).unwrap().try_into().unwrap();
        let _client = std::net::TcpStream::connect(address).unwrap();
        let accepted = rustix::net::accept(&socket).unwrap();
        assert!(sockopt::tcp_nodelay(&accepted).unwrap());
    }

    #[test]
    fn a_message_comes_with_its_sender() {
        let name = format!("plimsoll-test-{}", rustix::process::getpid().as_raw_nonzero());
        let socket = NotifySocket::bind(&name).unwrap();
        assert_eq!(socket.receive(), None);
        let sender = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).unwrap();
        let to = SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap();
        rustix::net::sendto(&sender, b"READY=1", rustix::net::SendFlags::empty(), &to).unwrap();
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        assert_eq!(socket.receive(), Some(Message { pid, text: b"READY=1".to_vec() }));
    }

    #[test]
    fn an_abandoned_socket_is_replaced_and_everything_else_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.sock");
        let address = ListenAddress::Unix(path.clone());
        let first = listen(&address, false).unwrap();
        assert_eq!(listen(&address, false).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        let _again = listen(&address, false).unwrap();
        UnixStream::connect(&path).unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        assert_eq!(listen(&ListenAddress::Unix(file.clone()), false).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    }

    #[test]
    fn a_lock_is_free_when_its_last_copy_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("one.lock");
        let held = HeldLock::try_take(&path).unwrap().unwrap();
        assert!(HeldLock::try_take(&path).unwrap().is_none());
        assert!(HeldLock::holder(&path).unwrap().starts_with(&rustix::process::getpid().as_raw_nonzero().to_string()));
        let copy = held.share().unwrap();
        drop(held);
        assert!(HeldLock::try_take(&path).unwrap().is_none(), "the worker still holds it");
        drop(copy);
        assert!(HeldLock::try_take(&path).unwrap().is_some());
    }

    proptest! {
        #[test]
        fn any_table_is_survived(text in proptest::collection::vec(any::<u8>(), 0..400), local in any::<u16>(), remote in any::<u16>()) {
            inode_of(&text, (local, remote));
        }
    }
}
