//! What lies beneath one folder, reached from a descriptor of it and never by a whole path: nobody who renames, links or mounts
//! something meanwhile leads a deletion out of it.
//!
//! Owns the descent, the look at one entry and its removal. Must not know why something is removed.

use std::ffi::{CStr, OsStr};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;

/// How a folder is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The kernel walks the whole way and keeps the promises (`openat2`, Linux 5.6).
    AtOnce,
    /// We walk, a name at a time, and keep them: for kernels without that call, and for sandboxes that refuse it.
    StepByStep,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Folder,
    Symlink,
    /// A socket, a pipe, a device.
    Other,
    /// The filesystem does not say it in its listing: look.
    Unknown,
}

impl From<FileType> for Kind {
    fn from(kind: FileType) -> Kind {
        match kind {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Folder,
            FileType::Symlink => Kind::Symlink,
            FileType::Unknown => Kind::Unknown,
            _ => Kind::Other,
        }
    }
}

/// What the kernel says of one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    pub kind: Kind,
    pub device: u64,
    pub inode: u64,
    pub links: u32,
    /// The user it belongs to.
    pub owner: u32,
    /// What it takes on the disk, in sectors of 512 bytes.
    pub sectors: u64,
    /// When it was last written, changed (renamed, linked, given away) or made, whichever came last, in nanoseconds since 1970.
    /// Whatever is done to a file moves it; copying an old time onto a new file does not move it back.
    pub youngest: i64,
    /// `None` where the kernel does not say (before Linux 5.8).
    pub is_mount_root: Option<bool>,
    /// Which mount it lies on, where the kernel says (Linux 5.8): two mounts of one device differ in it.
    pub mount: Option<u64>,
}

impl Facts {
    /// What lies at `path`, which itself is not followed when it is a symlink.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn at(path: &Path) -> Result<Facts, Errno> {
        facts(rustix::fs::CWD, path.as_os_str(), AtFlags::SYMLINK_NOFOLLOW)
    }
}

/// One folder, held open.
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
    facts: Facts,
    way: Way,
}

/// To be listed.
const LISTED: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// To be walked through.
const PASSED: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// `PATH_MAX`: a longer way is gone step by step.
const LONGEST: usize = 4096;
/// The kernel gives up a walk when something is renamed or mounted meanwhile (`EAGAIN`).
const ATTEMPTS: usize = 16;

impl Directory {
    /// Opens a folder by its absolute path. No part of it may be a symlink.
    ///
    /// # Errors
    /// `ELOOP` or `ENOTDIR` when a part is a symlink, `EINVAL` for a path that is not absolute or leads upwards, else what the kernel said.
    pub fn open(path: &Path) -> Result<Directory, Errno> {
        match Directory::open_by(path, Way::AtOnce) {
            // The second is what sandboxes of before 2020 say to a call they have not heard of.
            Err(Errno::NOSYS | Errno::PERM) => Directory::open_by(path, Way::StepByStep),
            opened => opened,
        }
    }

    /// [`Directory::open`], in the way that is asked for; what is opened beneath it goes the same way.
    ///
    /// # Errors
    /// As [`Directory::open`]; for [`Way::AtOnce`] also `ENOSYS` or `EPERM` where it is not to be had.
    pub fn open_by(path: &Path, way: Way) -> Result<Directory, Errno> {
        let mut components = path.components();
        let is_plain = components.next() == Some(Component::RootDir) && components.all(|part| matches!(part, Component::Normal(_)));
        if !is_plain {
            return Err(Errno::INVAL);
        }
        let fd = match way {
            Way::AtOnce => {
                let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
                again(|| rustix::fs::openat2(rustix::fs::CWD, path, LISTED, Mode::empty(), resolve))?
            }
            Way::StepByStep => {
                let root = rustix::fs::open("/", LISTED, Mode::empty())?;
                // The path itself may lead over mounts.
                let below: Vec<&[u8]> =
                    path.as_os_str().as_bytes().split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".").collect();
                if below.is_empty() { root } else { steps(root.as_fd(), below.into_iter(), None)? }
            }
        };
        Directory::holding(fd, way)
    }

    fn holding(fd: OwnedFd, way: Way) -> Result<Directory, Errno> {
        let mut facts = facts(fd.as_fd(), OsStr::new(""), AtFlags::EMPTY_PATH)?;
        if facts.mount.is_none() && way == Way::StepByStep {
            facts.mount = Some(mount_of(fd.as_fd())?);
        }
        Ok(Directory { fd, facts, way })
    }

    /// Opens a folder beneath this one, by names with `/` between them; none of them may be a symlink, or lie on another mount.
    /// Nothing opens this one anew.
    ///
    /// # Errors
    /// `ELOOP` or `ENOTDIR` for what is no folder (any more), `EXDEV` for another mount and for what was moved out meanwhile, `ENOENT` for what is gone, else what the
    /// kernel said.
    pub fn descend(&self, relative: &[u8]) -> Result<Directory, Errno> {
        let fd = if relative.is_empty() {
            rustix::fs::openat(&self.fd, ".", LISTED, Mode::empty())?
        } else if self.way == Way::AtOnce && relative.len() < LONGEST {
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
            again(|| rustix::fs::openat2(&self.fd, OsStr::from_bytes(relative), LISTED, Mode::empty(), resolve))?
        } else {
            let mount = self.facts.mount.map_or_else(|| mount_of(self.fd.as_fd()), Ok)?;
            let found = steps(self.fd.as_fd(), relative.split(|byte| *byte == b'/'), Some(mount))?;
            // As the kernel does at the end of its walk: what was moved out meanwhile is not beneath.
            self.climb(found.as_fd(), relative.split(|byte| *byte == b'/').count())?;
            found
        };
        Directory::holding(fd, self.way)
    }

    /// Makes sure that so many steps up from a folder lead to this one.
    fn climb(&self, from: BorrowedFd<'_>, steps: usize) -> Result<(), Errno> {
        let mut held: Option<OwnedFd> = None;
        for _ in 0..steps {
            let at = held.as_ref().map_or(from, AsFd::as_fd);
            held = Some(rustix::fs::openat(at, "..", PASSED, Mode::empty())?);
        }
        let top = rustix::fs::fstat(held.as_ref().map_or(from, AsFd::as_fd))?;
        if (top.st_dev, top.st_ino) == (self.facts.device, self.facts.inode) { Ok(()) } else { Err(Errno::XDEV) }
    }

    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// What an entry is, itself and not what it may lead to.
    ///
    /// # Errors
    /// `ENOENT` when it is gone, else what the kernel said.
    pub fn look(&self, name: &CStr) -> Result<Facts, Errno> {
        facts(self.fd.as_fd(), OsStr::from_bytes(name.to_bytes()), AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT)
    }

    /// Tells every entry but `.` and `..`, until `each` gives false. Once for each opening: the kernel remembers how far it was read.
    ///
    /// # Errors
    /// What the kernel said; what was told before is right.
    pub fn entries(&self, room: &mut [MaybeUninit<u8>], mut each: impl FnMut(&CStr, Kind) -> bool) -> Result<(), Errno> {
        let mut entries = RawDir::new(&self.fd, room);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if !matches!(name.to_bytes(), b"." | b"..") && !each(name, entry.file_type().into()) {
                break;
            }
        }
        Ok(())
    }

    /// Opens a file of this folder to be looked at, without waiting: for a pipe's other end, or for whoever holds it under a lease.
    ///
    /// # Errors
    /// `EWOULDBLOCK` when somebody holds a lease on it, `ELOOP` for a symlink, else what the kernel said.
    pub fn open_file(&self, name: &CStr) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        rustix::fs::openat(&self.fd, name, flags, Mode::empty())
    }

    /// Removes a name that is no folder.
    ///
    /// # Errors
    /// `EISDIR` for a folder, `EBUSY` where something is mounted on it, else what the kernel said.
    pub fn unlink(&self, name: &CStr) -> Result<(), Errno> {
        rustix::fs::unlinkat(&self.fd, name, AtFlags::empty())
    }

    /// Removes an empty folder.
    ///
    /// # Errors
    /// `ENOTEMPTY` or `EEXIST` while something is in it, `ENOTDIR` for what is no folder, else what the kernel said.
    pub fn remove_folder(&self, name: &CStr) -> Result<(), Errno> {
        rustix::fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR)
    }
}

fn again<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    for _ in 1..ATTEMPTS {
        match call() {
            Err(Errno::AGAIN | Errno::INTR) => {}
            answer => return answer,
        }
    }
    call()
}

/// Walks from `from`, a name at a time; each must be a folder itself, and on `mount` where that is given.
fn steps<'n>(from: BorrowedFd<'_>, names: impl Iterator<Item = &'n [u8]>, mount: Option<u64>) -> Result<OwnedFd, Errno> {
    let mut names = names.peekable();
    let mut held: Option<OwnedFd> = None;
    while let Some(name) = names.next() {
        if matches!(name, b"" | b"." | b"..") {
            return Err(Errno::INVAL);
        }
        let flags = if names.peek().is_some() { PASSED } else { LISTED };
        let at = held.as_ref().map_or(from, AsFd::as_fd);
        let next = rustix::fs::openat(at, OsStr::from_bytes(name), flags, Mode::empty())?;
        if mount.is_some_and(|mount| mount_of(next.as_fd()) != Ok(mount)) {
            return Err(Errno::XDEV);
        }
        held = Some(next);
    }
    held.ok_or(Errno::INVAL)
}

/// Which mount a descriptor lies on.
fn mount_of(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    if let Some(mount) = facts(fd, OsStr::new(""), AtFlags::EMPTY_PATH)?.mount {
        return Ok(mount);
    }
    mount_by_table(fd)
}

/// Before Linux 5.8, and where `statx` is refused.
fn mount_by_table(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).map_err(|_| Errno::OPNOTSUPP)?;
    let mount = text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    mount.ok_or(Errno::OPNOTSUPP)
}

fn facts(at: BorrowedFd<'_>, name: &OsStr, flags: AtFlags) -> Result<Facts, Errno> {
    let wanted = StatxFlags::BASIC_STATS.difference(StatxFlags::ATIME) | StatxFlags::BTIME | StatxFlags::MNT_ID;
    let found = match rustix::fs::statx(at, name, flags, wanted) {
        Ok(found) => found,
        Err(Errno::NOSYS) => return plain_facts(at, name, flags),
        Err(errno) => return Err(errno),
    };
    let given = StatxFlags::from_bits_retain(found.stx_mask);
    let mut youngest = nanoseconds(found.stx_mtime.tv_sec, found.stx_mtime.tv_nsec.into());
    youngest = youngest.max(nanoseconds(found.stx_ctime.tv_sec, found.stx_ctime.tv_nsec.into()));
    if given.contains(StatxFlags::BTIME) {
        youngest = youngest.max(nanoseconds(found.stx_btime.tv_sec, found.stx_btime.tv_nsec.into()));
    }
    let says = found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT);
    Ok(Facts {
        kind: FileType::from_raw_mode(found.stx_mode.into()).into(),
        device: rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor),
        inode: found.stx_ino,
        links: found.stx_nlink,
        owner: found.stx_uid,
        sectors: found.stx_blocks,
        youngest,
        is_mount_root: says.then(|| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)),
        mount: given.contains(StatxFlags::MNT_ID).then_some(found.stx_mnt_id),
    })
}

/// Where `statx` is refused: without the time of making, and without mounts.
fn plain_facts(at: BorrowedFd<'_>, name: &OsStr, flags: AtFlags) -> Result<Facts, Errno> {
    let found = rustix::fs::statat(at, name, flags)?;
    let modified = nanoseconds(found.st_mtime, i64::try_from(found.st_mtime_nsec).unwrap_or_default());
    Ok(Facts {
        kind: FileType::from_raw_mode(found.st_mode).into(),
        device: found.st_dev,
        inode: found.st_ino,
        links: u32::try_from(found.st_nlink).unwrap_or(u32::MAX),
        owner: found.st_uid,
        sectors: u64::try_from(found.st_blocks).unwrap_or_default(),
        youngest: modified.max(nanoseconds(found.st_ctime, i64::try_from(found.st_ctime_nsec).unwrap_or_default())),
        is_mount_root: None,
        mount: None,
    })
}

fn nanoseconds(seconds: i64, nanoseconds: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A folder whose own path has no symlink in it.
    fn root() -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap();
        (folder, path)
    }

    const WAYS: [Way; 2] = [Way::AtOnce, Way::StepByStep];

    #[test]
    fn what_lies_beneath_is_found_and_what_leads_out_is_not() {
        let (_guard, path) = root();
        std::fs::create_dir_all(path.join("in/a/b")).unwrap();
        std::fs::create_dir(path.join("out")).unwrap();
        std::fs::write(path.join("in/a/file"), "12345").unwrap();
        symlink(path.join("out"), path.join("in/link")).unwrap();
        symlink("a", path.join("in/a/inner")).unwrap();
        for way in WAYS {
            let inside = Directory::open_by(&path.join("in"), way).unwrap();
            let deep = inside.descend(b"a/b").unwrap();
            assert_eq!(deep.facts().inode, Facts::at(&path.join("in/a/b")).unwrap().inode, "{way:?}");
            assert_eq!(inside.descend(b"").unwrap().facts().inode, inside.facts().inode);
            for (name, errors) in [
                (&b"link"[..], &[Errno::LOOP, Errno::NOTDIR][..]),
                (b"link/x", &[Errno::LOOP, Errno::NOTDIR]),
                (b"a/inner", &[Errno::LOOP, Errno::NOTDIR]),
                (b"a/file", &[Errno::NOTDIR]),
                (b"a/gone", &[Errno::NOENT]),
                (b"../out", &[Errno::XDEV, Errno::INVAL]),
                (b"/etc", &[Errno::XDEV, Errno::INVAL]),
                (b"a/../../out", &[Errno::XDEV, Errno::INVAL]),
            ] {
                let error = inside.descend(name).map(|_| ()).unwrap_err();
                assert!(errors.contains(&error), "{way:?} {}: {error:?}", String::from_utf8_lossy(name));
            }
            let link = inside.look(c"link").unwrap();
            assert_eq!(link.kind, Kind::Symlink);
        }
    }

    #[test]
    fn a_way_to_the_root_has_no_symlinks_and_no_way_up() {
        let (_guard, path) = root();
        std::fs::create_dir(path.join("real")).unwrap();
        symlink("real", path.join("alias")).unwrap();
        for way in WAYS {
            assert!(Directory::open_by(&path.join("real"), way).is_ok());
            assert!(Directory::open_by(Path::new("/"), way).is_ok());
            let error = Directory::open_by(&path.join("alias"), way).map(|_| ()).unwrap_err();
            assert!([Errno::LOOP, Errno::NOTDIR].contains(&error), "{error:?}");
            for bad in [Path::new("relative"), &path.join("real/../real"), Path::new("")] {
                assert_eq!(Directory::open_by(bad, way).map(|_| ()).unwrap_err(), Errno::INVAL, "{}", bad.display());
            }
        }
    }

    #[test]
    fn another_mount_is_not_entered() {
        // The process table is a mount of its own on every machine.
        for way in WAYS {
            let root = Directory::open_by(Path::new("/"), way).unwrap();
            assert_eq!(root.descend(b"proc/self").map(|_| ()).map_err(|error| error == Errno::XDEV || error == Errno::LOOP), Err(true));
            assert_eq!(root.descend(b"proc").map(|_| ()).unwrap_err(), Errno::XDEV, "{way:?}");
        }
        for path in ["/", "/proc"] {
            let folder = Directory::open(Path::new(path)).unwrap();
            assert_eq!(mount_by_table(folder.fd.as_fd()), mount_of(folder.fd.as_fd()), "{path}");
        }
    }

    #[test]
    fn entries_are_told_once_and_the_facts_are_the_kernels() {
        use std::os::unix::fs::MetadataExt;
        let (_guard, path) = root();
        for number in 0..3000 {
            std::fs::write(path.join(format!("file-{number}")), "x").unwrap();
        }
        std::fs::create_dir(path.join("folder")).unwrap();
        let folder = Directory::open(&path).unwrap();
        let mut room = [MaybeUninit::uninit(); 8192];
        let mut names = std::collections::BTreeSet::new();
        folder.entries(&mut room, |name, _| names.insert(name.to_owned())).unwrap();
        assert_eq!(names.len(), 3001);
        let seen = folder.look(c"file-7").unwrap();
        let meta = std::fs::metadata(path.join("file-7")).unwrap();
        assert_eq!((seen.kind, seen.inode, u64::from(seen.links), seen.sectors), (Kind::File, meta.ino(), meta.nlink(), meta.blocks()));
        assert!(seen.youngest >= meta.ctime() * 1_000_000_000 + meta.ctime_nsec());
        let plain = plain_facts(folder.fd.as_fd(), OsStr::new("file-7"), AtFlags::SYMLINK_NOFOLLOW).unwrap();
        assert_eq!((plain.inode, plain.device, plain.sectors, plain.owner), (seen.inode, seen.device, seen.sectors, seen.owner));
    }

    /// Somebody swaps a folder for a symlink that leads out, as fast as the kernel lets them.
    #[test]
    fn a_folder_that_is_swapped_for_a_symlink_leads_nowhere() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let (_guard, path) = root();
        std::fs::create_dir_all(path.join("in/a/b")).unwrap();
        std::fs::create_dir_all(path.join("out/b")).unwrap();
        std::fs::write(path.join("out/b/precious"), "x").unwrap();
        symlink(path.join("out"), path.join("bait")).unwrap();
        let real = Facts::at(&path.join("in/a/b")).unwrap().inode;
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..10_000 {
                    let (from, to) = (path.join("in/a"), path.join("bait"));
                    rustix::fs::renameat_with(rustix::fs::CWD, &from, rustix::fs::CWD, &to, rustix::fs::RenameFlags::EXCHANGE).unwrap();
                }
                is_over.store(true, Ordering::Relaxed);
            });
            let roots = WAYS.map(|way| Directory::open_by(&path.join("in"), way).unwrap());
            let (mut inside, mut refused) = (0, 0);
            // At least so often after the last swap that the folder is found at all.
            while !is_over.load(Ordering::Relaxed) || inside + refused < 1000 {
                for root in &roots {
                    match root.descend(b"a/b") {
                        Ok(found) => {
                            assert_eq!(found.facts().inode, real, "led out of the folder");
                            inside += 1;
                        }
                        Err(Errno::LOOP | Errno::NOTDIR | Errno::AGAIN | Errno::XDEV) => refused += 1,
                        Err(errno) => panic!("{errno:?}"),
                    }
                }
            }
            assert!(inside > 0 && refused > 0, "nothing was raced: {inside} inside, {refused} refused");
        });
    }

    #[test]
    fn an_old_time_on_a_new_file_makes_it_no_older() {
        let (_guard, path) = root();
        std::fs::write(path.join("file"), "x").unwrap();
        let folder = Directory::open(&path).unwrap();
        let before = folder.look(c"file").unwrap().youngest;
        let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        std::fs::File::options().write(true).open(path.join("file")).unwrap().set_modified(old).unwrap();
        assert!(folder.look(c"file").unwrap().youngest >= before);
    }
}
