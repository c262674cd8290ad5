//! Whose the other end of a connection on this machine is, asked of the kernel (`sock_diag(7)`) instead of looked up in
//! `/proc/net/tcp`: that table names every connection that was closed within the last minute as well, so that on a busy server a
//! single look into it takes tens of milliseconds.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// `SOCK_DIAG_BY_FAMILY`, the type of the question and of its answer.
const BY_FAMILY: u16 = 20;
/// `NLM_F_REQUEST`.
const REQUEST: u16 = 1;
/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
const QUESTION: usize = HEADER + 56;
/// `TCP_LISTEN`: where there is no such connection, the kernel names who would get it.
const LISTENS: u8 = 10;

/// What the kernel knows of a TCP socket with these ends: its inode, 0 while nobody has accepted the connection. `None` where there is
/// no such socket.
///
/// # Errors
/// When the kernel does not answer such questions here.
pub fn inode_of(local: SocketAddr, remote: SocketAddr) -> Result<Option<u32>, Errno> {
    let (state, port, inode) = ask(local, remote)?;
    Ok((state != LISTENS && port == remote.port()).then_some(inode))
}

/// The inode of the socket that would be given a connection to `local`; `None` where nobody listens.
///
/// # Errors
/// As [`inode_of`].
pub fn listener_of(local: SocketAddr) -> Result<Option<u32>, Errno> {
    // From nowhere: there is no such connection.
    let nowhere = SocketAddr::new(if local.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }, 0);
    match ask(local, nowhere) {
        Ok((state, _, inode)) => Ok((state == LISTENS).then_some(inode)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// State, remote port and inode of the socket that is found.
fn ask(local: SocketAddr, remote: SocketAddr) -> Result<(u8, u16, u32), Errno> {
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG))?;
    rustix::net::sendto(&socket, &question(local, remote), SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut answer = [0_u8; 512];
    // It was written while the question was asked.
    let (length, _) = rustix::net::recv(&socket, &mut answer, RecvFlags::DONTWAIT)?;
    found_in(answer.get(..length).unwrap_or_default()).ok_or(Errno::OPNOTSUPP)
}

fn question(local: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    let address = |address: IpAddr| match address {
        IpAddr::V4(address) => [address.octets().as_slice(), &[0; 12]].concat(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let family: u16 = if local.is_ipv6() { AddressFamily::INET6.as_raw() } else { AddressFamily::INET.as_raw() };
    // The protocol is TCP; every state will do; any interface, and no cookie.
    [
        (QUESTION as u32).to_ne_bytes().as_slice(),
        &BY_FAMILY.to_ne_bytes(),
        &REQUEST.to_ne_bytes(),
        &[0; 8],
        &[family as u8, libc::IPPROTO_TCP as u8, 0, 0],
        &u32::MAX.to_ne_bytes(),
        &local.port().to_be_bytes(),
        &remote.port().to_be_bytes(),
        &address(local.ip()),
        &address(remote.ip()),
        &0_u32.to_ne_bytes(),
        &[0xff; 8],
    ]
    .concat()
}

/// `None` for an answer that is none: an error, or cut short.
fn found_in(answer: &[u8]) -> Option<(u8, u16, u32)> {
    let bytes = |at: usize, count: usize| answer.get(at..at + count);
    if bytes(4, 2)? != BY_FAMILY.to_ne_bytes() {
        return None;
    }
    let message = HEADER;
    let state = *answer.get(message + 1)?;
    let port = u16::from_be_bytes(bytes(message + 6, 2)?.try_into().ok()?);
    let inode = u32::from_ne_bytes(bytes(message + 68, 4)?.try_into().ok()?);
    Some((state, port, inode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    #[test]
    fn the_other_end_is_known_by_its_inode_once_it_was_accepted() {
        // A socket of both families is told of by either.
        for (bound, reached) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1"), ("[::]:0", "127.0.0.1")] {
            let Ok(listener) = TcpListener::bind(bound) else { continue };
            let target = SocketAddr::new(reached.parse().unwrap(), listener.local_addr().unwrap().port());
            let client = TcpStream::connect(target).unwrap();
            let own = client.local_addr().unwrap();
            assert_eq!(inode_of(target, own), Ok(Some(0)), "{bound}: nobody has accepted it");
            let listening = rustix::fs::fstat(listener.as_fd()).unwrap().st_ino;
            assert_eq!(listener_of(target).map(|inode| inode.map(u64::from)), Ok(Some(listening)), "{bound}");
            let (accepted, _) = listener.accept().unwrap();
            let inode = rustix::fs::fstat(accepted.as_fd()).unwrap().st_ino;
            assert_eq!(inode_of(target, own).map(|inode| inode.map(u64::from)), Ok(Some(inode)), "{bound}");
            let nobody = SocketAddr::new(own.ip(), 1);
            assert_eq!(inode_of(target, nobody), Ok(None), "{bound}: who listens is not meant");
        }
    }

    proptest! {
        #[test]
        fn any_answer_is_survived(answer in proptest::collection::vec(any::<u8>(), 0..120)) {
            found_in(&answer);
        }
    }
}
