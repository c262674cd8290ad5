//! Whether a disk has room for a copy, known before the first byte is written: a backup that fills the disk of the application it is for
//! does more harm than none.

use super::watch::megabytes;
use crate::config::jobs::{Compress, Verify};
use crate::host::filesystem::Space;

/// Always left to the application: a fiftieth of the disk, within these bounds, in bytes.
const RESERVE_SHARE: u64 = 50;
const LEAST_RESERVE: u64 = 1 << 20;
const MOST_RESERVE: u64 = 64 << 20;

/// Left free of a disk of this size, in bytes.
pub fn reserve(space: &Space) -> u64 {
    (space.size / RESERVE_SHARE).clamp(LEAST_RESERVE, MOST_RESERVE)
}

/// What a copy will take, in bytes. `last` is what the last one of this database took, of how much.
pub fn estimate(database_bytes: u64, compress: Compress, last: Option<(u64, u64)>) -> u64 {
    match (compress, last) {
        (Compress::None, _) => database_bytes,
        // A quarter more than its share last time.
        (Compress::Zstd(_), Some((file, database))) if database > 0 => {
            let share = (file as f64 / database as f64 * 1.25).min(1.1);
            (database_bytes as f64 * share) as u64
        }
        // Text packs to a sixth; what packs worse ends at the reserve, and the next time it is known.
        (Compress::Zstd(_), _) => database_bytes / 4,
    }
}

/// Whether the whole database lies beside the copy for a while, to be checked: what is not checked in its snapshot is. `can_open` where
/// a copy can be opened here once it is made.
pub fn is_unpacked(verify: Verify, is_wal: bool, can_open: bool) -> bool {
    match verify {
        Verify::None => false,
        Verify::Quick => !is_wal,
        Verify::Full => !is_wal || can_open,
    }
}

/// # Errors
/// In words for people, when there is not.
pub fn judge(space: &Space, needed: u64) -> Result<(), String> {
    let wanted = needed.saturating_add(reserve(space));
    if space.avail >= wanted {
        return Ok(());
    }
    Err(format!(
        "{} are left on the disk; the copy takes about {} and {} stay free",
        megabytes(space.avail),
        megabytes(needed),
        megabytes(reserve(space))
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1_000_000_000;

    fn space(size: u64, avail: u64) -> Space {
        Space { size, avail, files: 0, files_free: 0 }
    }

    #[test]
    fn the_last_copy_says_what_the_next_will_take() {
        let zstd = Compress::Zstd(3);
        assert_eq!(estimate(GB, Compress::None, Some((1, 10))), GB);
        assert_eq!(estimate(GB, zstd, None), GB / 4);
        assert_eq!(estimate(GB, zstd, Some((GB / 10, GB))), GB / 8);
        assert_eq!(estimate(1000, zstd, Some((2000, 1000))), 1100);
        assert_eq!(estimate(1000, zstd, Some((0, 0))), 250);
    }

    #[test]
    fn what_is_brought_back_to_be_checked_takes_room_too() {
        let cases = [
            ((Verify::None, false, true), false),
            ((Verify::Quick, true, true), false),
            ((Verify::Quick, false, true), true),
            ((Verify::Full, true, true), true),
            // Checked in the snapshot, or in a scratch file before it is sealed.
            ((Verify::Full, true, false), false),
            ((Verify::Full, false, false), true),
        ];
        for ((verify, is_wal, can_open), expected) in cases {
            assert_eq!(is_unpacked(verify, is_wal, can_open), expected, "{verify:?} {is_wal} {can_open}");
        }
    }

    #[test]
    fn a_disk_with_too_little_left_is_not_filled() {
        assert_eq!(judge(&space(10 * GB, 164 * 1_048_576), 100 * 1_048_576), Ok(()));
        let error = judge(&space(10 * GB, 100_000_000), 100_000_000).unwrap_err();
        assert_eq!(error, "100 MB are left on the disk; the copy takes about 100 MB and 67 MB stay free");
        assert_eq!(reserve(&space(1000, 0)), LEAST_RESERVE);
    }
}
