//! Helpers: this same program once more, as a small process that outlives what is done to the daemon.
//!
//! A helper is started by a word after the program's name that is on no help page. It is handed descriptors by number and
//! takes them over before anything else; it has a session of its own, no environment, and the root as its folder.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use super::scheduling;

/// Starts a helper as our child: `plimsoll SUBCOMMAND DESCRIPTOR… ARGUMENT…`. Returns its pid.
///
/// # Errors
/// Those of fork and exec.
#[expect(clippy::disallowed_methods, reason = "this is where helpers are started")]
pub fn spawn(subcommand: &str, descriptors: &[BorrowedFd<'_>], arguments: &[&OsStr]) -> io::Result<i32> {
    let handed: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let mut command = Command::new("/proc/self/exe");
    command.arg0("plimsoll").arg(subcommand).args(handed.iter().map(ToString::to_string)).args(arguments);
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
    // SAFETY: between fork and exec only system calls on numbers that were prepared before.
    unsafe {
        command.pre_exec(move || {
            rustix::process::setsid()?;
            scheduling::ordinary_slack();
            handed.iter().try_for_each(|fd| survive_exec(*fd))
        });
    }
    let child = command.spawn()?;
    // Not waited for through std: `process::reap_one` is the only waiter.
    i32::try_from(child.id()).map_err(|_| io::Error::other("pid out of range"))
}

fn survive_exec(fd: RawFd) -> io::Result<()> {
    // SAFETY: the descriptor is open in the parent and so in the child.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    Ok(rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?)
}

/// The helper's side of [`spawn`]: the descriptors it was handed, which are the first `N` of `arguments`, and what is left of
/// these. `None` when that is not what the arguments say. To be called once, before anything else is opened.
pub fn take_over<const N: usize>(arguments: &[String]) -> Option<([OwnedFd; N], &[String])> {
    let (numbers, rest) = arguments.split_at_checked(N)?;
    let numbers: Vec<RawFd> = numbers.iter().map(|number| number.parse().ok()).collect::<Option<_>>()?;
    let is_open = |number: RawFd| {
        // SAFETY: it is only asked whether there is such a descriptor.
        number > 2 && rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) }).is_ok()
    };
    let is_alone = |place: usize, number: RawFd| numbers.iter().skip(place + 1).all(|other| *other != number);
    if !numbers.iter().enumerate().all(|(place, number)| is_open(*number) && is_alone(place, *number)) {
        return None;
    }
    // SAFETY: `spawn` passed these on, they are open and each there once; nothing else in this process uses their numbers.
    let owned: Vec<OwnedFd> = numbers.iter().map(|number| unsafe { OwnedFd::from_raw_fd(*number) }).collect();
    Some((owned.try_into().ok()?, rest))
}

/// Closes whatever else was inherited: a helper that lives for months must not keep a terminal or a socket of whoever once
/// started the daemon. Best effort: without the call (before Linux 5.9) they stay open, and do no more harm than in the daemon.
pub fn close_all_but(kept: &[BorrowedFd<'_>]) {
    let mut kept: Vec<u32> = kept.iter().filter_map(|fd| u32::try_from(fd.as_raw_fd()).ok()).chain([0, 1, 2]).collect();
    kept.sort_unstable();
    for (place, fd) in kept.iter().enumerate() {
        let next = kept.get(place + 1).copied();
        let (first, last) = (fd + 1, next.map_or(u32::MAX, |next| next.saturating_sub(1)));
        if first <= last {
            // SAFETY: called at the beginning of a helper, when nothing but what is kept is owned by anybody in it.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
    }
}

/// From now on these are nothing to us: they are meant for the daemon, which sees to it that we end.
pub fn ignore(signals: &[i32]) {
    for signal in signals {
        // SAFETY: no handler is installed, so none has to be safe. Refused only for SIGKILL and SIGSTOP.
        unsafe { libc::signal(*signal, libc::SIG_IGN) };
    }
}

/// Takes over a descriptor that whoever was this process before left open for us. `None` when the number is not of one. Each
/// number is claimed once.
pub fn claim(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: the number was left to us, so nobody else here uses it; one that is not open is told by the call below, and given back
    // untouched.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    match rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC) {
        Ok(()) => Some(fd),
        Err(_) => {
            std::mem::forget(fd);
            None
        }
    }
}

/// Descriptors that are to be there still for whom we become, each spoken of by its number.
#[derive(Debug, Default)]
pub struct Kept<'a>(Vec<BorrowedFd<'a>>);

impl<'a> Kept<'a> {
    pub fn keep(&mut self, fd: BorrowedFd<'a>) -> RawFd {
        self.0.push(fd);
        fd.as_raw_fd()
    }

    pub fn all(&self) -> &[BorrowedFd<'a>] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_handed_over_is_not_taken() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let (a, b) = (read.as_raw_fd().to_string(), write.as_raw_fd().to_string());
        for bad in [&[][..], &["x", &b], &[&a], &["1", &b], &[&a, &a], &["-1", &b], &[&a, "999999"]] {
            assert!(take_over::<2>(&words(bad)).is_none(), "{bad:?}");
        }
        let arguments = words(&[&a, &b, "rest"]);
        let (owned, rest) = take_over::<2>(&arguments).unwrap();
        assert_eq!(rest, ["rest"]);
        // Owned twice by now; each is closed once.
        std::mem::forget((read, write));
        assert_eq!(rustix::io::write(&owned[1], b"x"), Ok(1));
    }
}
