//! Owns the making of a child process that shares our memory until it executes something else.
//! May touch the memory of the calling thread, as everything between fork and exec does.
//! Must not know what the child is to become.
//!
//! A fork copies the tables of all pages, and after it each page that either writes to is copied as well: with 8 MiB resident that was
//! 0.75 ms of the 1.5 ms a fork, an exec of `true` and its end took here. A child that borrows our memory (`CLONE_VM`) and holds us
//! up until its exec (`CLONE_VFORK`) copies nothing. It runs on a stack of its own: on ours it would write over what we come back to.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `clone3`: the child begins in the group it is given (Linux 5.7). The constant of `libc` is too narrow for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What a child runs; it never comes back.
pub type Run = extern "C" fn(*mut c_void) -> !;

/// Makes a child that runs `run` with `with`; in this control group of the v2 tree, if one is given. With `shares` it borrows our
/// memory where we know how, and the call returns when it has executed a program or ended.
///
/// # Errors
/// What the kernel says. For a group also where it does not know how to begin in one (before 5.7), or that is kept from us (containers
/// answer `ENOSYS` or `EPERM`).
///
/// # Safety
/// `run` may make system calls, and write to what `with` points to and to nothing else: with `shares` it is we whose memory that is, while
/// other threads of ours go on. `with` is to live until the call returns. Signals are to be blocked: our handlers would run in the child.
pub unsafe fn fork(group: Option<BorrowedFd<'_>>, shares: bool, run: Run, with: *mut c_void) -> io::Result<i32> {
    let stack = if shares && BORROWS { Some(Stack::new()?) } else { None };
    let flags = if stack.is_some() { (libc::CLONE_VM | libc::CLONE_VFORK) as u64 } else { 0 };
    let pid = match (group, &stack) {
        (Some(group), _) => {
            // SAFETY: clone_args is plain data for which all zeros asks for nothing.
            let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
            arguments.flags = CLONE_INTO_CGROUP | flags;
            arguments.exit_signal = libc::SIGCHLD as u64;
            arguments.cgroup = group.as_raw_fd() as u64;
            if let Some(stack) = &stack {
                arguments.stack = stack.base as u64;
                arguments.stack_size = STACK as u64;
            }
            let at = (&raw const arguments) as usize;
            // SAFETY: the structure is of the length that is told and outlives the call; with CLONE_VM it names a stack.
            unsafe { clone(libc::SYS_clone3, [at, size_of::<libc::clone_args>(), 0, 0, 0], stack.is_some(), run, with) }
        }
        (None, Some(stack)) => {
            let flags = flags as usize | libc::SIGCHLD as usize;
            // SAFETY: the child is given a stack of its own.
            unsafe { clone(libc::SYS_clone, [flags, stack.base as usize + STACK, 0, 0, 0], true, run, with) }
        }
        // SAFETY: the child has memory of its own, and the caller has seen to what it does.
        (None, None) => match unsafe { libc::fork() } {
            0 => run(with),
            -1 => return Err(io::Error::last_os_error()),
            pid => i64::from(pid),
        },
    };
    match pid {
        ..0 => Err(io::Error::from_raw_os_error(i32::try_from(-pid).unwrap_or(libc::EIO))),
        _ => i32::try_from(pid).map_err(|_| io::Error::other("pid out of range")),
    }
}

/// Far more than the calls between fork and exec take.
const STACK: usize = 256 * 1024;

/// For a child that borrows our memory, with a page below it that nobody may touch.
struct Stack {
    below: *mut c_void,
    base: *mut c_void,
    whole: usize,
}

impl Stack {
    fn new() -> io::Result<Stack> {
        use rustix::mm::{MapFlags, ProtFlags};
        let guard = rustix::param::page_size();
        let whole = guard + STACK;
        // SAFETY: a mapping of our own, at a place the kernel chooses.
        let below = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), whole, ProtFlags::empty(), MapFlags::PRIVATE)? };
        // SAFETY: within the mapping.
        let base = unsafe { below.byte_add(guard) };
        let stack = Stack { below, base, whole };
        // SAFETY: the rest of the mapping, which nobody uses yet.
        unsafe { rustix::mm::mprotect(base, STACK, rustix::mm::MprotectFlags::READ | rustix::mm::MprotectFlags::WRITE)? };
        Ok(stack)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: made by us, and the child that ran on it has its own memory now, or has ended.
        let _ = unsafe { rustix::mm::munmap(self.below, self.whole) };
    }
}

/// Whether we know how a child begins on another stack: the C library's way to it runs its own code in the child.
const BORROWS: bool = cfg!(target_arch = "x86_64");

/// One of the calls that clone. The child runs `run`, on the stack it was given where it `moves` to one, else on its copy of ours. Gives
/// what the kernel answers: a pid, or a negated errno.
///
/// # Safety
/// As [`fork`]; the arguments are to be what the call takes, and with CLONE_VM are to name a stack.
#[cfg(target_arch = "x86_64")]
unsafe fn clone(number: i64, arguments: [usize; 5], _moves: bool, run: Run, with: *mut c_void) -> i64 {
    let [first, second, third, fourth, fifth] = arguments;
    let answer: i64;
    // SAFETY: the parent finds every register but those named as it was. The child has the same registers and begins behind the call too,
    // with the stack it was given, whose end is aligned as a call wants it, or a copy of ours; it never leaves `run`.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            // The end of the chain of frames, for whoever unwinds.
            "xor ebp, ebp",
            "and rsp, -16",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") number => answer,
            in("rdi") first,
            in("rsi") second,
            in("rdx") third,
            in("r10") fourth,
            in("r8") fifth,
            in("r12") with,
            in("r13") run,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    answer
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn clone(number: i64, arguments: [usize; 5], moves: bool, run: Run, with: *mut c_void) -> i64 {
    if moves {
        return -i64::from(libc::ENOSYS);
    }
    let [first, second, third, fourth, fifth] = arguments;
    // SAFETY: without CLONE_VM this is a fork: the child has memory of its own and comes back on the same stack.
    match unsafe { libc::syscall(number, first, second, third, fourth, fifth) } {
        0 => run(with),
        -1 => -i64::from(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)),
        pid => pid,
    }
}
