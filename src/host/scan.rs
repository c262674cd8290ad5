//! One pass over all processes.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags, RawDir};
use rustix::io::Errno;

use super::clock::Moment;
use super::paths::Paths;
use super::procfs::{self, Stat};

/// The longest `stat` there can be is half of it.
const TEXT: usize = 1024;

/// Entries of a folder are read so many bytes at a time, into the stack: a pass allocates nothing.
const ROOM: usize = 8192;

/// Which run of the machine this is, where the kernel says so.
pub fn boot_id(paths: &Paths) -> Option<String> {
    let text = std::fs::read_to_string(paths.proc.join("sys/kernel/random/boot_id")).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// Reads `/proc/PID/stat` of every process into `found`, in the order of their pids. Processes that end meanwhile, or
/// that may not be looked at, are left out. Gives how long it took: it is the most expensive look there is.
///
/// # Errors
/// When `/proc` cannot be listed, or a process could not be looked at for a reason of ours (no descriptor left): a list
/// with holes would make living processes look ended.
pub fn processes(paths: &Paths, found: &mut Vec<Stat>, scratch: &mut Vec<u8>) -> Result<Duration, Errno> {
    let begun = Moment::now();
    found.clear();
    scratch.resize(TEXT, 0);
    let root = rustix::fs::open(&paths.proc, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut room = [MaybeUninit::uninit(); ROOM];
    let mut entries = RawDir::new(&root, &mut room);
    while let Some(entry) = entries.next() {
        let Some(pid) = pid_of(entry?.file_name()) else { continue };
        match read_stat(&root, pid, scratch) {
            Ok(stat) => found.push(stat),
            Err(Errno::NOENT | Errno::SRCH | Errno::ACCESS | Errno::PERM | Errno::BADMSG) => {}
            Err(errno) => return Err(errno),
        }
    }
    found.sort_unstable_by_key(|stat| stat.pid);
    Ok(Moment::now().since(begun))
}

/// Brings what [`processes`] gave up to date for a fraction of its price: who is not there any more is left out, who is
/// new is looked at, and what was read of all others stands. Gives how long it took.
///
/// # Errors
/// As [`processes`]; `found` is then not to be used before the next full pass.
pub fn newcomers(paths: &Paths, found: &mut Vec<Stat>, scratch: &mut Vec<u8>) -> Result<Duration, Errno> {
    let begun = Moment::now();
    let root = rustix::fs::open(&paths.proc, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let known = found.len();
    let mut text = [0_u8; TEXT];
    // One mark for each that is known: still here.
    scratch.clear();
    scratch.resize(known, 0);
    let mut room = [MaybeUninit::uninit(); ROOM];
    let mut entries = RawDir::new(&root, &mut room);
    while let Some(entry) = entries.next() {
        let Some(pid) = pid_of(entry?.file_name()) else { continue };
        let place = found.get(..known).and_then(|known| known.binary_search_by_key(&pid, |stat| stat.pid).ok());
        if let Some(mark) = place.and_then(|at| scratch.get_mut(at)) {
            *mark = 1;
            continue;
        }
        match read_stat(&root, pid, &mut text) {
            Ok(stat) => found.push(stat),
            Err(Errno::NOENT | Errno::SRCH | Errno::ACCESS | Errno::PERM | Errno::BADMSG) => {}
            Err(errno) => return Err(errno),
        }
    }
    let mut marks = scratch.iter();
    // Those pushed after the known ones have none, and are all here.
    found.retain(|_| marks.next().is_none_or(|mark| *mark == 1));
    found.sort_unstable_by_key(|stat| stat.pid);
    Ok(Moment::now().since(begun))
}

/// `/proc/PID/stat` of one process.
///
/// # Errors
/// `ENOENT` or `ESRCH` when it has ended, `EBADMSG` when its text was not understood, else what the kernel said.
pub fn process(paths: &Paths, pid: i32, scratch: &mut Vec<u8>) -> Result<Stat, Errno> {
    let root = open_root(paths)?;
    scratch.resize(TEXT, 0);
    read_stat(&root, pid, scratch)
}

/// The children of one process that its first thread has, by `/proc/PID/task/PID/children`: those it forked, and those that were
/// handed to it. Zombies are among them.
///
/// # Errors
/// `ENOENT` where the kernel was built without that file (`CONFIG_PROC_CHILDREN`), `EBADMSG` when its text was not understood, else
/// what the kernel said.
pub fn children(paths: &Paths, pid: i32, found: &mut Vec<i32>, text: &mut Vec<u8>) -> Result<(), Errno> {
    found.clear();
    let root = open_root(paths)?;
    let thread = rustix::fs::openat(&root, below(pid, "task", &mut [0u8; NAME])?, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let file = rustix::fs::openat(&thread, below(pid, "children", &mut [0u8; NAME])?, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    super::kept::read_all(&file, text)?;
    numbers(text, found).ok_or(Errno::BADMSG)
}

/// Pids that follow each other in a text.
fn numbers(text: &[u8], found: &mut Vec<i32>) -> Option<()> {
    for number in text.split(u8::is_ascii_whitespace).filter(|number| !number.is_empty()) {
        let number = std::str::from_utf8(number).ok().and_then(|number| number.parse().ok());
        found.push(number.filter(|number| *number > 0)?);
    }
    Some(())
}

/// `/proc/PID/cgroup` of one process, into `text`.
///
/// # Errors
/// `ENOENT` or `ESRCH` when it has ended, else what the kernel said.
pub fn cgroup(paths: &Paths, pid: i32, text: &mut Vec<u8>) -> Result<(), Errno> {
    let root = open_root(paths)?;
    let mut name = [0u8; NAME];
    let file = rustix::fs::openat(&root, below(pid, "cgroup", &mut name)?, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    super::kept::read_all(&file, text)
}

/// One variable of the environment a process was started with. `None` when it has none of that name, or may not be looked at.
pub fn variable(paths: &Paths, pid: i32, wanted: &str, text: &mut Vec<u8>) -> Option<String> {
    let root = open_root(paths).ok()?;
    let mut name = [0u8; NAME];
    let path = below(pid, "environ", &mut name).ok()?;
    let file = rustix::fs::openat(&root, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    super::kept::read_all(&file, text).ok()?;
    let value = text.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(wanted.as_bytes())?.strip_prefix(b"="))?;
    String::from_utf8(value.to_vec()).ok()
}

/// How often the kernel has killed a process for want of memory, anywhere on this machine (Linux 4.13). `None` where it does
/// not count that.
pub fn oom_kills(paths: &Paths, text: &mut Vec<u8>) -> Option<u64> {
    let root = open_root(paths).ok()?;
    let file = rustix::fs::openat(&root, c"vmstat", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    super::kept::read_all(&file, text).ok()?;
    super::cgroupfs::value_of(text, "oom_kill")
}

/// How many files process `pid` has open.
///
/// # Errors
/// `ENOENT` or `ESRCH` when it has ended, `EACCES` when it may not be looked at.
pub fn descriptors(paths: &Paths, pid: i32) -> Result<u64, Errno> {
    let root = open_root(paths)?;
    let mut name = [0u8; NAME];
    let folder = below(pid, "fd", &mut name)?;
    // Since Linux 6.2 the size of the folder is their number.
    let size = rustix::fs::statat(&root, folder, AtFlags::empty())?.st_size;
    if let Some(count) = u64::try_from(size).ok().filter(|count| *count > 0 && paths.is_live()) {
        return Ok(count);
    }
    let open = rustix::fs::openat(&root, folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut count = 0;
    let mut room = [MaybeUninit::uninit(); ROOM];
    let mut entries = RawDir::new(&open, &mut room);
    while let Some(entry) = entries.next() {
        count += u64::from(!entry?.file_name().to_bytes().starts_with(b"."));
    }
    Ok(count)
}

fn pid_of(name: &CStr) -> Option<i32> {
    procfs::number(name.to_bytes()).filter(|pid| *pid > 0)
}

/// Room for `2147483647/cgroup` and its end: no allocation for each of hundreds of processes.
const NAME: usize = 24;

fn below<'n>(pid: i32, file: &str, name: &'n mut [u8; NAME]) -> Result<&'n CStr, Errno> {
    use std::io::Write;
    write!(&mut name[..], "{pid}/{file}").map_err(|_| Errno::NAMETOOLONG)?;
    CStr::from_bytes_until_nul(name).map_err(|_| Errno::NAMETOOLONG)
}

fn open_root(paths: &Paths) -> Result<OwnedFd, Errno> {
    rustix::fs::open(&paths.proc, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn read_stat(root: &impl std::os::fd::AsFd, pid: i32, text: &mut [u8]) -> Result<Stat, Errno> {
    let mut name = [0u8; NAME];
    let name = below(pid, "stat", &mut name)?;
    let file = rustix::fs::openat(root, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let read = rustix::io::retry_on_intr(|| rustix::io::read(&file, &mut *text))?;
    let text = text.get(..read).unwrap_or_default();
    // The pid within a machine that is a folder is the folder's name.
    procfs::parse_stat(text).map(|stat| Stat { pid, ..stat }).ok_or(Errno::BADMSG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn we_are_among_all_processes_once_and_in_order() {
        let (mut found, mut scratch) = (Vec::new(), Vec::new());
        processes(&Paths::default(), &mut found, &mut scratch).unwrap();
        let own = std::process::id() as i32;
        assert_eq!(found.iter().filter(|stat| stat.pid == own).count(), 1);
        assert!(found.is_sorted_by(|a, b| a.pid < b.pid));
        let alone = process(&Paths::default(), own, &mut scratch).unwrap();
        assert!(found.iter().any(|stat| stat.pid == own && stat.started == alone.started && stat.ppid == alone.ppid));
    }

    #[test]
    fn the_children_of_a_process_are_told_and_no_others() {
        let script = "sleep 1000 >/dev/null & sleep 1000 >/dev/null & echo $!; wait";
        #[expect(clippy::disallowed_methods, reason = "a test needs a process of its own")]
        let mut shell = std::process::Command::new("sh").args(["-c", script]).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut second = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(shell.stdout.take().unwrap()), &mut second).unwrap();
        let (mut found, mut text) = (vec![7], Vec::new());
        let told = children(&Paths::default(), shell.id() as i32, &mut found, &mut text);
        for pid in found.iter().filter_map(|pid| rustix::process::Pid::from_raw(*pid)) {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
        shell.wait().unwrap();
        if told == Err(Errno::NOENT) {
            eprintln!("skipped: this kernel tells nobody's children (CONFIG_PROC_CHILDREN)");
            return;
        }
        assert_eq!(told, Ok(()));
        assert_eq!((found.len(), found.last()), (2, second.trim().parse().ok().as_ref()));
    }

    proptest::proptest! {
        #[test]
        fn numbers_are_read_whole_or_not_at_all(text in "[0-9 \\-a\n]{0,40}") {
            let mut found = Vec::new();
            let words: Option<Vec<i32>> = text.split_whitespace().map(|word| word.parse().ok().filter(|number| *number > 0)).collect();
            proptest::prop_assert_eq!(numbers(text.as_bytes(), &mut found).map(|()| found), words);
        }
    }

    #[test]
    fn newcomers_are_found_and_those_gone_left_out() {
        let (mut found, mut scratch) = (Vec::new(), Vec::new());
        processes(&Paths::default(), &mut found, &mut scratch).unwrap();
        #[expect(clippy::disallowed_methods, reason = "a test needs a process of its own")]
        let mut child = std::process::Command::new("sleep").arg("1000").stdout(std::process::Stdio::null()).spawn().unwrap();
        let is_there = |found: &[Stat]| found.iter().filter(|stat| stat.pid == child.id() as i32).count();
        newcomers(&Paths::default(), &mut found, &mut scratch).unwrap();
        assert_eq!(is_there(&found), 1);
        assert!(found.is_sorted_by(|a, b| a.pid < b.pid));
        newcomers(&Paths::default(), &mut found, &mut scratch).unwrap();
        assert_eq!(is_there(&found), 1);
        let pid = child.id() as i32;
        child.kill().unwrap();
        child.wait().unwrap();
        newcomers(&Paths::default(), &mut found, &mut scratch).unwrap();
        assert!(!found.iter().any(|stat| stat.pid == pid));
        assert!(found.iter().any(|stat| stat.pid == std::process::id() as i32));
    }

    #[test]
    fn open_files_are_counted() {
        let before = descriptors(&Paths::default(), std::process::id() as i32).unwrap();
        assert!(before >= 3, "{before}");
        assert!(descriptors(&Paths::default(), i32::MAX).is_err());
    }
}
