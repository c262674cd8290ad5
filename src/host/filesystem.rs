//! Room on a filesystem.

use std::path::Path;

use rustix::io::Errno;

/// What `statvfs` says, in bytes and inodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    pub size: u64,
    /// For an unprivileged process: what is reserved for root is not in it.
    pub avail: u64,
    /// Zero where the filesystem has no fixed number of inodes (btrfs, many network filesystems).
    pub files: u64,
    /// For an unprivileged process.
    pub files_free: u64,
}

/// Asks the filesystem `path` lies on. **May hang for ever** on a dead network or FUSE mount: never called from the loop.
///
/// # Errors
/// What the kernel said; `ENOENT` when `path` is not there.
pub fn space(path: &Path) -> Result<Space, Errno> {
    let answer = rustix::fs::statvfs(path)?;
    Ok(Space {
        size: answer.f_blocks.saturating_mul(answer.f_frsize),
        avail: answer.f_bavail.saturating_mul(answer.f_frsize),
        files: answer.f_files,
        files_free: answer.f_favail,
    })
}

/// What `statfs` says of filesystems whose files go with the machine or the container.
const FLEETING: [(rustix::fs::FsWord, &str); 3] =
    [(0x0102_1994, "in memory (tmpfs)"), (0x8584_58f6, "in memory (ramfs)"), (0x794c_7630, "in the container's own layer (overlay)")];

/// Where `path` lies, in words, if what is there does not outlive the machine or the container. May hang like [`space`].
pub fn fleeting(path: &Path) -> Option<&'static str> {
    let kind = rustix::fs::statfs(path).ok()?.f_type;
    FLEETING.iter().find(|(known, _)| *known == kind).map(|(_, words)| *words)
}

/// What `statfs` says of control groups, of either version.
const CGROUP: [rustix::fs::FsWord; 2] = [0x0027_e0eb, 0x6367_7270];

/// True for a folder that the kernel itself shows groups in.
pub fn is_cgroup(folder: &Path) -> bool {
    rustix::fs::statfs(folder).is_ok_and(|answer| CGROUP.contains(&answer.f_type))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_real_filesystem_has_room_and_a_missing_path_none() {
        let space = space(Path::new("/")).unwrap();
        assert!(space.size > 0 && space.avail <= space.size && space.files_free <= space.files, "{space:?}");
        assert_eq!(super::space(Path::new("/no/such/path")), Err(Errno::NOENT));
    }
}
