//! Processes that somebody else has started: what tells which one is meant, before it is held by a descriptor.
//!
//! Owns the parsers of a pidfile, a command line and the owner of a process, and the way from a unit or a group to its members.
//! Nothing here is proof: whoever acts opens the process and looks again (`Process::open_seen`).

use std::collections::VecDeque;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{Mode, OFlags};

use super::mounts::{self, Mount};
use super::paths::Paths;
use super::procfs::{fields, number};

/// A pid and a newline; some programs write more lines, which are not read.
const LONGEST_PIDFILE: u64 = 4096;

/// Of a command line no more is looked at.
pub const LONGEST_COMMAND_LINE: u64 = 4096;

/// `status` of a process is about 1.5 kB; what is wanted stands in its first part.
const LONGEST_STATUS: u64 = 4096;

/// Groups that are looked through for a unit, and how deep: systemd makes slices in slices.
const MOST_GROUPS: usize = 4096;
const DEEPEST: usize = 8;

/// Groups below one whose members are taken together.
const MOST_BELOW: usize = 256;

/// The file that lists the members of a group.
const MEMBERS: &str = "cgroup.procs";

/// What a pidfile says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pidfile {
    pub pid: i32,
    pub written: SystemTime,
    /// Who it belongs to, and so could have written anything.
    pub owner: u32,
}

/// Reads a pidfile. Never waits for one that is no regular file.
///
/// # Errors
/// Those of the file; `InvalidData` where it holds no pid.
pub fn read_pidfile(path: &Path) -> io::Result<Pidfile> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let about = file.metadata()?;
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    if !about.is_file() {
        return Err(bad("is no regular file"));
    }
    let pid = parse_pid(&read_up_to(file, LONGEST_PIDFILE)?).ok_or_else(|| bad("holds no pid in its first line"))?;
    Ok(Pidfile { pid, written: changed(&about)?, owner: about.uid() })
}

fn changed(about: &Metadata) -> io::Result<SystemTime> {
    about.modified()
}

fn read_up_to(file: File, longest: u64) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    file.take(longest).read_to_end(&mut text)?;
    Ok(text)
}

/// The first line, if it is a pid and nothing else.
pub fn parse_pid(text: &[u8]) -> Option<i32> {
    let line = text.split(|byte| *byte == b'\n').next()?;
    number(line).filter(|pid| *pid > 0)
}

/// The command line of a process, its words joined by blanks. Empty for a zombie and for a thread of the kernel.
///
/// # Errors
/// `NotFound` once it has ended, else what the kernel said.
pub fn command_line(paths: &Paths, pid: i32) -> io::Result<String> {
    let file = File::open(paths.proc.join(format!("{pid}/cmdline")))?;
    Ok(joined(&read_up_to(file, LONGEST_COMMAND_LINE)?))
}

/// Words that end with a NUL each, joined by blanks.
pub fn joined(text: &[u8]) -> String {
    let end = text.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let text = text.get(..end).unwrap_or_default();
    let plain: Vec<u8> = text.iter().map(|byte| if *byte == 0 { b' ' } else { *byte }).collect();
    String::from_utf8_lossy(&plain).into_owned()
}

/// The user a process runs as; `None` where the real and the effective one differ: it is on its way from one to the other.
///
/// # Errors
/// `NotFound` once it has ended, else what the kernel said.
pub fn owner(paths: &Paths, pid: i32) -> io::Result<Option<u32>> {
    let file = File::open(paths.proc.join(format!("{pid}/status")))?;
    Ok(parse_owner(&read_up_to(file, LONGEST_STATUS)?))
}

/// Of the line `Uid:` (real, effective, saved, file system). Who the folder in `/proc` belongs to says less: that of a process
/// that may not be traced is root's.
pub fn parse_owner(text: &[u8]) -> Option<u32> {
    // A name in the lines before it cannot hold a newline: the kernel writes it as an escape.
    let line = text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Uid:"))?;
    let mut ids = fields(line).map(number::<u32>);
    let (real, effective) = (ids.next()??, ids.next()??);
    (real == effective).then_some(real)
}

/// A group that is not ours, and all groups in it. By its name, not by a descriptor: the name is what somebody has configured,
/// and a unit that is restarted is the same unit. It is only read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignGroup {
    path: PathBuf,
}

impl ForeignGroup {
    /// One that was found before, at this folder.
    pub fn found_before(path: PathBuf) -> ForeignGroup {
        ForeignGroup { path }
    }

    /// Everybody in it and below; nobody once it is gone. To be asked after all processes were looked through, so that a number
    /// given away in between is found out by its start time.
    pub fn pids(&self) -> Vec<i32> {
        let mut pids = Vec::new();
        let mut left = VecDeque::from([self.path.clone()]);
        let mut seen = 0;
        while let Some(folder) = left.pop_front().filter(|_| seen < MOST_BELOW) {
            seen += 1;
            let text = std::fs::read(folder.join(MEMBERS)).unwrap_or_default();
            pids.extend(text.split(|byte| *byte == b'\n').filter_map(number::<i32>).filter(|pid| *pid > 0));
            left.extend(folders_in(&folder));
        }
        pids
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Why no group was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoGroup {
    NotThere,
    /// Several have the name.
    Ambiguous(Vec<PathBuf>),
}

/// The group of a systemd unit: the one folder of its name in the v2 tree or, where systemd has a v1 tree, in that.
///
/// # Errors
/// Where there is none, or more than one that holds somebody.
pub fn find_unit(paths: &Paths, unit: &str) -> Result<ForeignGroup, NoGroup> {
    for top in trees(paths, |mount| mount.kind == "cgroup2" || mount.options.iter().any(|option| option == "name=systemd")) {
        let mut found = named(&top, unit);
        // Users' managers have units too, and one that has ended may leave its group behind.
        found.retain(|path| !(ForeignGroup { path: path.clone() }).pids().is_empty());
        match found.len() {
            0 => {}
            1 => return found.pop().map(|path| ForeignGroup { path }).ok_or(NoGroup::NotThere),
            _ => return Err(NoGroup::Ambiguous(found)),
        }
    }
    Err(NoGroup::NotThere)
}

/// The group at `path`, in the first tree that has one with somebody in it: v2 first, then the v1 trees in the order of their mounts.
///
/// # Errors
/// `NotThere`.
pub fn find_group(paths: &Paths, path: &Path) -> Result<ForeignGroup, NoGroup> {
    let below = path.strip_prefix("/").unwrap_or(path);
    let groups = trees(paths, |_| true).into_iter().map(|top| ForeignGroup { path: top.join(below) });
    groups.into_iter().find(|group| !group.pids().is_empty()).ok_or(NoGroup::NotThere)
}

/// Where the cgroup trees are mounted, v2 first.
fn trees(paths: &Paths, which: impl Fn(&Mount) -> bool) -> Vec<PathBuf> {
    let mounts = mounts::parse(&std::fs::read(paths.proc.join("self/mountinfo")).unwrap_or_default());
    let mut found: Vec<&Mount> =
        mounts.iter().filter(|mount| ["cgroup", "cgroup2"].contains(&mount.kind.as_str()) && which(mount)).collect();
    found.sort_by_key(|mount| mount.kind != "cgroup2");
    found.into_iter().filter_map(|mount| paths.rebase(&mount.point)).collect()
}

/// Folders of this name below slices and managers of users, where units are.
fn named(top: &Path, name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = VecDeque::from([(top.to_path_buf(), 0)]);
    let mut seen = 0;
    while let Some((folder, depth)) = left.pop_front().filter(|_| seen < MOST_GROUPS) {
        seen += 1;
        for inner in folders_in(&folder) {
            let Some(called) = inner.file_name().and_then(|called| called.to_str()) else { continue };
            if called == name {
                found.push(inner);
            } else if depth < DEEPEST && (called.ends_with(".slice") || called.starts_with("user@")) {
                left.push_back((inner, depth + 1));
            }
        }
    }
    found
}

/// The groups in a group; a link leads nowhere.
fn folders_in(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    #[test]
    fn a_pidfile_holds_a_pid_in_its_first_line() {
        for (text, pid) in [
            ("123\n", Some(123)),
            ("123", Some(123)),
            (" 123 \n/var/lib/postgres\n", Some(123)),
            ("", None),
            ("\n123\n", None),
            ("-1\n", None),
            ("0\n", None),
            ("12 13\n", None),
            ("99999999999\n", None),
            ("app\n", None),
        ] {
            assert_eq!(parse_pid(text.as_bytes()), pid, "{text:?}");
        }
    }

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read_pidfile(&folder.path().join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(read_pidfile(folder.path()).unwrap_err().to_string(), "is no regular file");
        let fifo = folder.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert_eq!(read_pidfile(&fifo).unwrap_err().to_string(), "is no regular file");
        let path = folder.path().join("app.pid");
        fs::write(&path, "17\n").unwrap();
        let found = read_pidfile(&path).unwrap();
        assert_eq!((found.pid, found.owner), (17, rustix::process::getuid().as_raw()));
    }

    #[test]
    fn we_ourselves_are_described() {
        let own = std::process::id() as i32;
        assert_eq!(owner(&Paths::default(), own).unwrap(), Some(rustix::process::geteuid().as_raw()));
        assert!(command_line(&Paths::default(), own).unwrap().contains("plimsoll"));
        assert_eq!(joined(b"a\0b c\0\0"), "a b c");
        assert_eq!(joined(b""), "");
        assert_eq!(parse_owner(b"Name:\tx\nUid:\t5\t0\t0\t0\n"), None, "a program on its way to be root");
    }

    /// A machine with these groups, each with these members.
    fn machine(mounts: &str, groups: &[(&str, &str)]) -> (tempfile::TempDir, Paths) {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths::below(folder.path());
        fs::create_dir_all(paths.proc.join("self")).unwrap();
        fs::write(paths.proc.join("self/mountinfo"), mounts).unwrap();
        for (group, members) in groups {
            fs::create_dir_all(paths.cgroup.join(group)).unwrap();
            fs::write(paths.cgroup.join(group).join(MEMBERS), members).unwrap();
        }
        (folder, paths)
    }

    const V2: &str = "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
    const V1: &str = "31 20 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
                      32 20 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";

    #[test]
    fn a_unit_is_found_by_its_name_wherever_systemd_puts_it() {
        let (_folder, paths) = machine(
            V2,
            &[
                ("system.slice/app.service", "7\n"),
                ("system.slice/app.service/inner", "8\n9\n"),
                ("system.slice/system-x.slice/x@1.service", "10\n"),
                ("user.slice/user-5.slice/user@5.service/app.slice/mine.service", "11\n"),
                ("system.slice/twice.service", "12\n"),
                ("user.slice/twice.service", "13\n"),
                ("other/hidden.service", "14\n"),
                ("system.slice/empty.service", ""),
            ],
        );
        let pids = |unit: &str| find_unit(&paths, unit).map(|group| group.pids());
        assert_eq!(pids("app.service"), Ok(vec![7, 8, 9]));
        assert_eq!(pids("x@1.service"), Ok(vec![10]));
        assert_eq!(pids("mine.service"), Ok(vec![11]));
        assert!(matches!(pids("twice.service"), Err(NoGroup::Ambiguous(both)) if both.len() == 2));
        for none in ["hidden.service", "empty.service", "none.service"] {
            assert_eq!(pids(none), Err(NoGroup::NotThere), "{none}");
        }
        assert_eq!(find_group(&paths, Path::new("/other/hidden.service")).map(|group| group.pids()), Ok(vec![14]));
        assert_eq!(find_group(&paths, Path::new("/other")).map(|group| group.pids()), Ok(vec![14]), "and below");
    }

    #[test]
    fn where_systemd_has_a_tree_of_its_own_that_is_the_one() {
        let (_folder, paths) = machine(V1, &[("systemd/system.slice/app.service", "7\n"), ("cpu/app", "8\n")]);
        assert_eq!(find_unit(&paths, "app.service").map(|group| group.pids()), Ok(vec![7]));
        assert_eq!(find_group(&paths, Path::new("/app")).map(|group| group.pids()), Ok(vec![8]));
        assert_eq!(find_unit(&paths, "app"), Err(NoGroup::NotThere), "only units");
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Some(pid) = parse_pid(&text) {
                prop_assert!(pid > 0);
            }
            parse_owner(&text);
            prop_assert!(!joined(&text).contains('\0'));
        }

        #[test]
        fn an_owner_is_read_whatever_stands_around_it(before in "([A-Za-z]{1,9}:\t[^\n]{0,20}\n){0,6}", uid in any::<u32>(), after in "(?s).{0,40}") {
            prop_assume!(!before.lines().any(|line| line.starts_with("Uid:")));
            let text = format!("{before}Uid:\t{uid}\t{uid}\t0\t0\n{after}");
            prop_assert_eq!(parse_owner(text.as_bytes()), Some(uid));
        }
    }
}
