//! Asking the kernel to take back the memory of a single process (`process_madvise`), for where no group can be asked.
//!
//! The kernel wants `CAP_SYS_NICE` and the right to read the process for it; the process notices nothing but that pages it
//! touches again come back from disk. Pages without a file behind them go to swap, or stay.

use std::io;
use std::os::fd::AsRawFd;

use super::Paths;
use super::process::Process;

/// Ranges given to the kernel in one call; its own bound is 1024.
const BATCH: usize = 256;

/// A part of a process's memory: where it begins, and how long it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub start: u64,
    pub bytes: u64,
}

/// The lines of `/proc/PID/maps` that are worth asking for: readable memory of its own, or of a file. Left out is what the
/// kernel put there (`[vdso]` and the like) and what must answer at once (`[stack]`).
pub fn parse_maps(text: &[u8]) -> impl Iterator<Item = Range> {
    text.split(|byte| *byte == b'\n').filter_map(|line| {
        let line = std::str::from_utf8(line).ok()?;
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let rights = fields.next()?;
        let name = fields.nth(3).unwrap_or_default();
        let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
        let is_left_out = name.starts_with('[') && name != "[heap]" && !name.starts_with("[anon");
        (rights.starts_with('r') && end > start && !is_left_out).then(|| Range { start, bytes: end - start })
    })
}

/// Whether the kernel would take such advice about this process: asked with no range at all, it checks only the right to.
pub fn is_taken_for(process: &Process) -> io::Result<()> {
    advise(process, &[]).map(|_| ())
}

/// Asks for `most` bytes of address space at least to be taken back, range by range. Takes as long as writing to swap does:
/// for a thread that may be held up. Returns how much the kernel was asked for.
pub fn page_out(paths: &Paths, process: &Process, most: u64) -> io::Result<u64> {
    let text = std::fs::read(paths.proc.join(process.pid().to_string()).join("maps"))?;
    let ranges: Vec<Range> = parse_maps(&text).collect();
    let mut asked = 0;
    for batch in ranges.chunks(BATCH) {
        if asked >= most {
            break;
        }
        match advise(process, batch) {
            Ok(bytes) => asked += bytes,
            // A range that has gone meanwhile, or is locked: the others are none the worse.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::EINVAL | libc::EAGAIN)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(asked)
}

fn advise(process: &Process, ranges: &[Range]) -> io::Result<u64> {
    let vectors: Vec<libc::iovec> = ranges
        .iter()
        .filter_map(|range| {
            Some(libc::iovec { iov_base: usize::try_from(range.start).ok()? as *mut _, iov_len: usize::try_from(range.bytes).ok()? })
        })
        .collect();
    // SAFETY: the vectors live until the call returns; the addresses in them are of another process and are not followed here.
    let result = unsafe {
        libc::syscall(libc::SYS_process_madvise, process.pidfd().as_raw_fd(), vectors.as_ptr(), vectors.len(), libc::MADV_PAGEOUT, 0)
    };
    u64::try_from(result).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_are_those_worth_asking_for() {
        let text = b"55d0-55e0 r--p 00000000 08:01 1 /usr/bin/app\n\
            6000-7000 rw-p 00000000 00:00 0 [heap]\n\
            8000-9000 rw-p 00000000 00:00 0 \n\
            9000-9000 rw-p 00000000 00:00 0 \n\
            a000-b000 ---p 00000000 00:00 0 \n\
            b000-c000 rw-p 00000000 00:00 0 [stack]\n\
            c000-d000 r-xp 00000000 00:00 0 [vdso]\n\
            nonsense\n";
        let found: Vec<(u64, u64)> = parse_maps(text).map(|range| (range.start, range.bytes)).collect();
        assert_eq!(found, [(0x55d0, 0x10), (0x6000, 0x1000), (0x8000, 0x1000)]);
    }

    #[test]
    fn the_kernel_is_asked_about_a_process_of_ours() {
        let own = Process::open_child(&Paths::default(), std::process::id().cast_signed()).unwrap().unwrap();
        match is_taken_for(&own) {
            Ok(()) => assert!(page_out(&Paths::default(), &own, 1).unwrap() > 0),
            Err(error) => assert!(matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)), "{error}"),
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(parse_maps(&text).all(|range| range.bytes > 0));
        }

        #[test]
        fn any_line_of_that_shape_is_survived(start in any::<u64>(), end in any::<u64>(), rights in "[-rwxp]{0,4}", name in "\\PC{0,12}") {
            let text = format!("{start:x}-{end:x} {rights} 0 0:0 0 {name}\n");
            prop_assert!(parse_maps(text.as_bytes()).all(|range| range.start.checked_add(range.bytes).is_some()));
        }
    }
}
