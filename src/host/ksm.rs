//! Kernel samepage merging: whether it is to be had here, and what it saves a process. Touches the calling process's own flag and the
//! files under the given roots; must not turn anything on for others.

use std::path::Path;

use super::cgroupfs::value_of;
use super::paths::Paths;

/// `prctl`: every page of the process that can be is offered for merging; what it executes and forks inherits that (Linux 6.4).
pub const PR_SET_MEMORY_MERGE: libc::c_int = 67;
const PR_GET_MEMORY_MERGE: libc::c_int = 68;

/// Why pages cannot be merged here, and what to do about it; `None` when they can.
pub fn missing(paths: &Paths) -> Option<String> {
    // SAFETY: takes numbers only, and tells of the calling process.
    if unsafe { libc::prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0) } < 0 {
        return Some("this kernel does not merge the pages of a whole process: that needs Linux 6.4 with CONFIG_KSM".to_owned());
    }
    let run = paths.sys.join("kernel/mm/ksm/run");
    match std::fs::read_to_string(&run) {
        Ok(text) if text.trim() == "1" => None,
        Ok(_) => Some(format!("the kernel's merging is switched off: `echo 1 > {}` switches it on, for the whole machine", run.display())),
        Err(error) => Some(format!("{}: {error}", run.display())),
    }
}

/// Bytes a process does without because others have the same: pages it shares that way, and pages of zeros. `None` where
/// the kernel does not tell, or it has ended.
pub fn saved(paths: &Paths, pid: i32, page: u64) -> Option<u64> {
    pages_in(&read(&paths.proc.join(format!("{pid}/ksm_stat")))?).map(|pages| pages.saturating_mul(page))
}

fn read(path: &Path) -> Option<Vec<u8>> {
    std::fs::read(path).ok()
}

fn pages_in(text: &[u8]) -> Option<u64> {
    let merging = value_of(text, "ksm_merging_pages")?;
    Some(merging.saturating_add(value_of(text, "ksm_zero_pages").unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_saved_are_merged_pages_and_zeros() {
        let text = b"ksm_rmap_items 40\nksm_zero_pages 2\nksm_merging_pages 30\nksm_process_profit 1\nksm_merge_any: yes\n";
        assert_eq!(pages_in(text), Some(32));
        assert_eq!(pages_in(b"ksm_rmap_items 40\n"), None);
    }

    #[test]
    fn where_it_is_switched_off_it_is_said_how_to_switch_it_on() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::below(root.path());
        let folder = paths.sys.join("kernel/mm/ksm");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("run"), "0\n").unwrap();
        let said = missing(&paths).unwrap();
        assert!(said.contains("echo 1 >") || said.contains("Linux 6.4"), "{said}");
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            pages_in(&text);
        }
    }
}
