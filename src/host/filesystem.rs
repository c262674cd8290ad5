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
