//! Opening the listeners, each failure in one line that names the address, the cause and what to do.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::host::clock::Moment;

/// The control socket's name in the runtime folder.
pub const SOCKET: &str = "plimsoll.sock";

/// Owner and group may connect; everybody else is kept out by the kernel.
const MODE: u32 = 0o660;

/// A daemon killed while it started a worker leaves its sockets to that child until the child's exec: an address in use
/// is asked for again for so long, …
const PATIENCE: Duration = Duration::from_secs(1);
/// … this often.
const AGAIN: Duration = Duration::from_millis(10);

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("could not listen on {address}: {}", tcp_cause(.cause))]
    Tcp { address: SocketAddr, cause: io::Error },
    #[error("could not listen on {}: another plimsoll answers there; choose another daemon.runtime_dir", .path.display())]
    Answered { path: PathBuf },
    #[error("could not listen on {}: something that is not a socket has that name; move it away", .path.display())]
    NotASocket { path: PathBuf },
    #[error("could not listen on {}: {cause}", .path.display())]
    Unix { path: PathBuf, cause: io::Error },
}

impl ListenError {
    fn may_pass(&self) -> bool {
        match self {
            ListenError::Tcp { cause, .. } => cause.kind() == io::ErrorKind::AddrInUse,
            ListenError::Answered { .. } => true,
            ListenError::NotASocket { .. } | ListenError::Unix { .. } => false,
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the loop has not begun, and nothing tells when an address is free")]
fn patiently<T>(mut bind: impl FnMut() -> Result<T, ListenError>) -> Result<T, ListenError> {
    let begun = Moment::now();
    loop {
        match bind() {
            Err(error) if error.may_pass() && Moment::now().since(begun) < PATIENCE => std::thread::sleep(AGAIN),
            outcome => return outcome,
        }
    }
}

fn tcp_cause(cause: &io::Error) -> String {
    match cause.kind() {
        io::ErrorKind::AddrInUse => {
            "address already in use; is another plimsoll running? choose another http.listen (--set http.listen=127.0.0.1:18761)".to_owned()
        }
        io::ErrorKind::AddrNotAvailable => "this machine has no such address; choose another http.listen".to_owned(),
        io::ErrorKind::PermissionDenied => "not permitted; ports below 1024 need root or CAP_NET_BIND_SERVICE".to_owned(),
        _ => cause.to_string(),
    }
}

/// Binds every address, or none.
pub fn bind_tcp(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, ListenError> {
    let bind = |&address| patiently(|| TcpListener::bind(address).map_err(|cause| ListenError::Tcp { address, cause }));
    addresses.iter().map(bind).collect()
}

/// Binds the control socket at `path`, mode 0660. A socket left there by a daemon that has died is replaced; one that
/// somebody answers on, or anything that is not a socket, is left alone.
pub fn bind_socket(path: &Path) -> Result<UnixListener, ListenError> {
    patiently(|| bind_or_replace(path))
}

fn bind_or_replace(path: &Path) -> Result<UnixListener, ListenError> {
    let failed = |cause: io::Error| ListenError::Unix { path: path.to_owned(), cause };
    match try_bind(path) {
        Err(cause) if cause.kind() == io::ErrorKind::AddrInUse => {}
        outcome => return outcome.map_err(failed),
    }
    let found = std::fs::symlink_metadata(path).map_err(failed)?;
    if !found.file_type().is_socket() {
        return Err(ListenError::NotASocket { path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        Err(cause) if cause.kind() == io::ErrorKind::ConnectionRefused => {}
        // A full backlog or a missing right also says that somebody holds it.
        _ => return Err(ListenError::Answered { path: path.to_owned() }),
    }
    std::fs::remove_file(path).map_err(failed)?;
    try_bind(path).map_err(failed)
}

fn try_bind(path: &Path) -> io::Result<UnixListener> {
    let address = SocketAddrUnix::new(path)?;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // The file takes the socket's own mode less the umask, so there is no moment in which everybody may connect.
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(MODE))?;
    rustix::net::bind(&socket, &address)?;
    // The umask may have taken the group's right away.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE))?;
    rustix::net::listen(&socket, 128)?;
    Ok(UnixListener::from(socket))
}

/// Takes the socket's name away at the end. One that is gone already is no error.
pub fn remove_socket(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_told_with_its_address_and_what_to_do() {
        let first = bind_tcp(&["127.0.0.1:0".parse().unwrap()]).unwrap();
        let address = first[0].local_addr().unwrap();
        let said = bind_tcp(&[address]).unwrap_err().to_string();
        assert_eq!(
            said,
            format!(
                "could not listen on {address}: address already in use; is another plimsoll running? choose another http.listen (--set http.listen=127.0.0.1:18761)"
            )
        );
        let elsewhere = bind_tcp(&["192.0.2.1:0".parse().unwrap()]).unwrap_err().to_string();
        assert!(elsewhere.contains("192.0.2.1:0") && elsewhere.contains("no such address"), "{elsewhere}");
    }

    #[test]
    fn the_socket_is_for_owner_and_group() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(SOCKET);
        let _listener = bind_socket(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(SOCKET);
        let live = bind_socket(&path).unwrap();
        assert!(matches!(bind_socket(&path), Err(ListenError::Answered { .. })));
        drop(live);
        assert!(path.exists(), "a closed socket leaves its name behind");
        let _again = bind_socket(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        remove_socket(&path).unwrap();
        remove_socket(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "what is tested is that the other side waits")]
    fn what_a_child_of_the_dead_holds_for_a_moment_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(SOCKET);
        let left = (bind_socket(&path).unwrap(), bind_tcp(&["127.0.0.1:0".parse().unwrap()]).unwrap());
        let address = left.1[0].local_addr().unwrap();
        let child = std::thread::spawn(move || {
            std::thread::sleep(AGAIN * 5);
            drop(left);
        });
        bind_tcp(&[address]).unwrap();
        let _socket = bind_socket(&path).unwrap();
        child.join().unwrap();
    }

    #[test]
    fn what_is_not_a_socket_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(SOCKET);
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(bind_socket(&path), Err(ListenError::NotASocket { .. })));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_path_that_cannot_be_is_told() {
        let long = PathBuf::from(format!("/tmp/{}/{SOCKET}", "x".repeat(200)));
        let said = bind_socket(&long).unwrap_err().to_string();
        assert!(said.starts_with("could not listen on /tmp/xxx"), "{said}");
        assert!(bind_socket(Path::new("/nowhere/at/all.sock")).unwrap_err().to_string().contains("/nowhere/at/all.sock"));
    }
}
