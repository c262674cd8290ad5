//! Signals as something to wait for: the handler only writes a byte, everything else happens in the loop.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

use crate::host::spawn;

#[derive(Debug)]
pub struct Signals(SignalDelivery<UnixStream, SignalOnly>);

impl Signals {
    /// From now on these are delivered here. PID 1 has no default actions, so a container's stop signal would be lost
    /// without it.
    pub fn listen() -> io::Result<Signals> {
        let (read, write) = UnixStream::pair()?;
        read.set_nonblocking(true)?;
        write.set_nonblocking(true)?;
        let signals = [SIGTERM, SIGINT, SIGHUP, SIGCHLD, SIGUSR1, SIGUSR2, SIGQUIT, SIGWINCH];
        let listening = Signals(SignalDelivery::with_pipe(read, write, SignalOnly, signals)?);
        // Whoever started us may have left them blocked: then nothing could end us, and no end of a child would be heard of.
        spawn::unblock_signals();
        Ok(listening)
    }

    /// Readable when a signal has arrived.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.get_read().as_fd()
    }

    /// Those that have arrived since the last call, each once.
    pub fn pending(&mut self) -> Vec<i32> {
        self.0.pending().collect()
    }
}
