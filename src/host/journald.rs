//! The journal's socket for the output of others: one connection for each life of a worker, each line an entry.
//!
//! The protocol is that of `sd_journal_stream_fd(3)`: seven lines about whoever writes, then whatever is written.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType};

/// As much as systemd asks for: a journal that is restarted must not hold a worker up.
const BUFFER: usize = 8 << 20;

/// A descriptor that brings what is written to it to the journal, under the name `identifier`. Never waits: a journal that
/// takes nobody in counts as not there.
///
/// # Errors
/// Why there is none.
pub fn connect(socket: &Path, identifier: &str) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let stream = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&stream, &SocketAddrUnix::new(socket)?)?;
    let header = header(identifier);
    // Into the empty buffer of a new connection: all of it or nothing.
    if rustix::io::write(&stream, header.as_bytes())? != header.len() {
        return Err(Errno::AGAIN.into());
    }
    // Nothing ever comes back.
    rustix::net::shutdown(&stream, Shutdown::Read)?;
    // A smaller buffer does as well, only for less long.
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&stream, BUFFER);
    let blocking = rustix::fs::fcntl_getfl(&stream)? - rustix::fs::OFlags::NONBLOCK;
    rustix::fs::fcntl_setfl(&stream, blocking)?;
    Ok(stream)
}

/// `DEVICE:INODE` of a descriptor: what `JOURNAL_STREAM` tells a program that its standard error is.
///
/// # Errors
/// Those of fstat.
pub fn stream_of(descriptor: &OwnedFd) -> io::Result<String> {
    let about = rustix::fs::fstat(descriptor)?;
    Ok(format!("{}:{}", about.st_dev, about.st_ino))
}

/// Identifier, unit (the journal finds it by the control group), priority of a line that names none (6, info), whether
/// lines may begin with a priority of their own (`<3>`), and whether they are passed on to syslog, kernel log and console.
fn header(identifier: &str) -> String {
    format!("{identifier}\n\n6\n1\n0\n0\n0\n")
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn lines_come_after_seven_that_say_who_writes() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("stdout");
        let listener = UnixListener::bind(&socket).unwrap();
        let stream = connect(&socket, "web").unwrap();
        assert_eq!(stream_of(&stream).unwrap().split(':').count(), 2);
        std::fs::File::from(stream).write_all(b"<3>broken\nagain\n").unwrap();
        let lines: Vec<String> = BufReader::new(listener.accept().unwrap().0).lines().map(Result::unwrap).collect();
        assert_eq!(lines, ["web", "", "6", "1", "0", "0", "0", "<3>broken", "again"]);
    }

    #[test]
    fn a_journal_that_is_not_there_or_takes_nobody_in_is_an_error_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("stdout");
        assert_eq!(connect(&socket, "web").unwrap_err().kind(), io::ErrorKind::NotFound);
        let listener = UnixListener::bind(&socket).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        // Nobody accepts: before long the queue is full, and the next is told so instead of waiting.
        let waiting: Vec<_> = std::iter::repeat_with(|| connect(&socket, "web")).take(8).collect();
        assert!(waiting.iter().any(Result::is_err));
        drop(listener);
        assert_eq!(connect(&socket, "web").unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
