//! `/proc/PID/mountinfo`: what is mounted where.
//!
//! Not read with the procfs crate: it gives up the whole file for one line it cannot follow, and paths need not be UTF-8.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// `major:minor` of the device, as `io.max` wants it.
    pub device: (u32, u32),
    /// The folder of the filesystem that forms the root of this mount.
    pub root: PathBuf,
    /// Where it is mounted, seen from the process's root.
    pub point: PathBuf,
    /// `ext4`, `cgroup2` …
    pub kind: String,
    /// Options of the filesystem itself; a v1 cgroup mount lists its controllers here.
    pub options: Vec<String>,
}

/// Every mount of the text, in its order; lines that make no sense are left out.
pub fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

/// The mount `path` lies on: the longest mount point that is its prefix, the last mounted of equals.
pub fn holding<'m>(mounts: &'m [Mount], path: &Path) -> Option<&'m Mount> {
    mounts.iter().filter(|mount| path.starts_with(&mount.point)).max_by_key(|mount| mount.point.components().count())
}

// 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut device = std::str::from_utf8(fields.nth(2)?).ok()?.split(':');
    let device = (device.next()?.parse().ok()?, device.next()?.parse().ok()?);
    let root = unescape(fields.next()?);
    let point = unescape(fields.next()?);
    // After the mount's own options come optional fields, ended by a lone dash.
    fields.find(|field| *field == b"-")?;
    let kind = String::from_utf8_lossy(fields.next()?).into_owned();
    let options = fields.nth(1).unwrap_or_default();
    let options = options.split(|byte| *byte == b',').map(|option| String::from_utf8_lossy(option).into_owned()).collect();
    Some(Mount { device, root, point, kind, options })
}

/// The kernel writes space, tab, newline, backslash and hash as three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                plain.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(plain))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_with_every_kind_of_field() {
        let text = b"nonsense\n36 35 98:7 /a\\040b /mnt\\134x\\012 rw,noatime master:1 shared:2 - cgroup cgroup rw,cpu,cpuacct\n";
        assert_eq!(
            parse(text),
            [Mount {
                device: (98, 7),
                root: "/a b".into(),
                point: "/mnt\\x\n".into(),
                kind: "cgroup".into(),
                options: vec!["rw".into(), "cpu".into(), "cpuacct".into()],
            }]
        );
    }

    #[test]
    fn a_path_lies_on_its_longest_mount() {
        let mounts = parse(b"1 0 8:1 / / rw - ext4 a rw\n2 1 8:2 / /app rw - ext4 b rw\n3 1 8:3 / /app rw - ext4 c rw\n");
        assert_eq!(holding(&mounts, Path::new("/app/data")).map(|mount| mount.device), Some((8, 3)));
        assert_eq!(holding(&mounts, Path::new("/application")).map(|mount| mount.device), Some((8, 1)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(text in proptest::collection::vec(any::<u8>(), 0..400)) {
            parse(&text);
        }

        #[test]
        fn any_line_of_near_sense_is_survived(text in "[0-9]{0,3} ?[0-9]{0,2} [0-9:]{0,5} [/a-z\\\\0-9]{0,9} [/\\\\0-9]{0,9} rw (x:1 )?-? ?cgroup2? ?[a-z,]{0,9}") {
            parse(text.as_bytes());
        }
    }
}
