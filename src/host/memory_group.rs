//! The memory controller's files of one group of ours: what it holds, the line above which it is slowed, and asking for
//! memory back. Bound to the very group it was opened for: a folder made anew under the same name is refused.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::Paths;
use super::cgroupfs::{self, Version};
use super::folder::{Folder, GroupFile};
use super::procfs::parse_meminfo;
use super::psi;

#[derive(Clone, Debug)]
pub struct MemoryGroup {
    version: Version,
    folder: Arc<Folder>,
}

/// What a group holds, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// All that is charged.
    pub current: u64,
    /// Anonymous and shared memory: what can go nowhere but to swap.
    pub anonymous: u64,
    /// File pages, which the kernel can drop.
    pub cache: u64,
    /// The line in force (`memory.high`, v1 `memory.soft_limit_in_bytes`); `None`: there is none.
    pub line: Option<u64>,
    /// How often it was slowed for being over the line (`memory.events high`); 0 on v1, where nobody is.
    pub slowed: u64,
}

/// How a group gets on, as totals since it began. `None`: not accounted here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// CPU time.
    pub ran: Option<Duration>,
    /// Time in which every task of it that had something to do waited for memory (`full` of `memory.pressure`).
    pub stalled: Option<Duration>,
}

impl MemoryGroup {
    pub fn new(version: Version, folder: Arc<Folder>) -> MemoryGroup {
        MemoryGroup { version, folder }
    }

    pub fn version(&self) -> Version {
        self.version
    }

    /// The file that holds the line.
    pub fn line_file(&self) -> GroupFile {
        let name = match self.version {
            Version::V2 => "memory.high",
            Version::V1 => "memory.soft_limit_in_bytes",
        };
        GroupFile { folder: self.folder.clone(), name }
    }

    /// What it holds now. An error when a figure is missing: none is made up.
    pub fn figures(&self) -> io::Result<Figures> {
        let read = |name: &str| self.folder.read(name);
        let unclear = |name: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{name} is not understood"));
        let number = |name: &str| cgroupfs::parse_number(&read(name)?).ok_or_else(|| unclear(name));
        let stat = read("memory.stat")?;
        let of = |key: &str| cgroupfs::value_of(&stat, key).ok_or_else(|| unclear("memory.stat"));
        let line = cgroupfs::parse_limit(&read(self.line_file().name)?).ok_or_else(|| unclear("the line"))?;
        Ok(match self.version {
            Version::V2 => Figures {
                current: number("memory.current")?,
                anonymous: of("anon")?.saturating_add(of("shmem")?),
                cache: of("inactive_file")?.saturating_add(of("active_file")?),
                line,
                slowed: cgroupfs::value_of(&read("memory.events")?, "high").ok_or_else(|| unclear("memory.events"))?,
            },
            Version::V1 => Figures {
                current: number("memory.usage_in_bytes")?,
                anonymous: of("total_rss")?.saturating_add(of("total_shmem").unwrap_or(0)),
                cache: of("total_inactive_file")?.saturating_add(of("total_active_file")?),
                line,
                slowed: 0,
            },
        })
    }

    /// How it gets on. On v1 the processor's account is in another tree, and pressure in none. Not to be asked more often than
    /// every ten milliseconds, as any pressure file.
    pub fn pace(&self) -> Pace {
        let read = |name: &str| self.folder.read(name).ok();
        match self.version {
            Version::V1 => Pace::default(),
            Version::V2 => Pace {
                ran: read("cpu.stat").and_then(|text| cgroupfs::value_of(&text, "usage_usec")).map(Duration::from_micros),
                stalled: read("memory.pressure").and_then(|text| psi::parse(&text)?.full),
            },
        }
    }

    /// Sets the line. Below present use the kernel first takes memory back from the group, however long that takes: for a
    /// thread that may be held up.
    pub fn set_line(&self, line: &str) -> io::Result<()> {
        self.line_file().write(line)
    }

    /// Asks the kernel to take back `bytes`; returns when it has, or has given up (`EAGAIN`, which is no error here: what
    /// came back is measured). For a thread that may be held up. On v1 there is only [`Self::empty`].
    pub fn reclaim(&self, bytes: u64) -> io::Result<()> {
        match self.folder.write("memory.reclaim", &bytes.to_string()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            other => other,
        }
    }

    /// v1: asks the kernel to take back everything it can, all of the file cache and, where there is swap, all the rest.
    pub fn empty(&self) -> io::Result<()> {
        self.folder.write("memory.force_empty", "0")
    }

    /// How much of its memory could go to swap: what is free of the machine's, within every `memory.swap.max` above it.
    pub fn swap_room(&self, paths: &Paths) -> Option<u64> {
        if self.version == Version::V1 && self.folder.read("memory.swappiness").is_ok_and(|text| text.trim_ascii() == b"0") {
            return Some(0);
        }
        let of_groups = self.folder.path().ancestors().map_while(|folder| {
            let most = cgroupfs::parse_limit(&std::fs::read(folder.join("memory.swap.max")).ok()?)?;
            let used = cgroupfs::parse_number(&std::fs::read(folder.join("memory.swap.current")).ok()?)?;
            Some(most.map_or(u64::MAX, |most| most.saturating_sub(used)))
        });
        Some(of_groups.fold(swap_free(paths)?, u64::min))
    }
}

/// What is free of the machine's swap; 0 where there is none, `None` where it cannot be read.
pub fn swap_free(paths: &Paths) -> Option<u64> {
    parse_meminfo(&std::fs::read(paths.proc.join("meminfo")).ok()?).map(|info| info.swap_free)
}

/// Whole pages: what the kernel makes of any number of bytes, so that what is read back is what was written.
pub fn whole_pages(bytes: u64) -> u64 {
    let page = rustix::param::page_size() as u64;
    bytes / page * page
}

/// What works on groups made here, each else with the reason why not.
#[derive(Clone, Debug)]
pub struct Tried {
    pub version: Version,
    /// A line can be set.
    pub line: Result<(), String>,
    /// Memory can be asked back.
    pub reclaim: Result<(), String>,
}

impl Tried {
    pub fn failed(version: Version, why: &str) -> Tried {
        Tried { version, line: Err(why.to_owned()), reclaim: Err(why.to_owned()) }
    }
}

/// Tries out on a group made for the purpose whether a line can be set and memory asked back.
pub fn probe(version: Version, folder: &Arc<Folder>) -> Tried {
    let said = |what: &str, error: io::Error| format!("{what}: {}: {error}", folder.path().display());
    let group = MemoryGroup::new(version, folder.clone());
    let line = group
        .line_file()
        .read()
        .and_then(|old| {
            group.set_line(&whole_pages(1 << 30).to_string())?;
            group.set_line(&old)
        })
        .map_err(|error| said("no line for memory", error));
    let reclaim = match version {
        // Nobody is in it: nothing is taken from anybody.
        Version::V2 => group.reclaim(rustix::param::page_size() as u64),
        Version::V1 => group.empty(),
    };
    Tried { version, line, reclaim: reclaim.map_err(|error| said("memory cannot be asked back", error)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn v2(folder: &Path) {
        let files = [
            ("memory.current", "1000\n"),
            ("memory.stat", "anon 700\nshmem 100\ninactive_file 50\nactive_file 40\n"),
            ("memory.events", "low 0\nhigh 7\nmax 0\n"),
            ("memory.high", "max\n"),
            ("memory.reclaim", ""),
            ("memory.swap.max", "500\n"),
            ("memory.swap.current", "100\n"),
        ];
        for (name, text) in files {
            std::fs::write(folder.join(name), text).unwrap();
        }
    }

    #[test]
    fn figures_are_read_and_none_is_made_up() {
        let root = tempfile::tempdir().unwrap();
        v2(root.path());
        let group = MemoryGroup::new(Version::V2, Arc::new(Folder::open(root.path()).unwrap()));
        let expected = Figures { current: 1000, anonymous: 800, cache: 90, line: None, slowed: 7 };
        assert_eq!(group.figures().unwrap(), expected);
        for missing in ["memory.current", "memory.stat", "memory.events", "memory.high"] {
            let text = std::fs::read(root.path().join(missing)).unwrap();
            std::fs::write(root.path().join(missing), "").unwrap();
            assert!(group.figures().is_err(), "{missing}");
            std::fs::write(root.path().join(missing), text).unwrap();
        }
    }

    #[test]
    fn pace_is_read_where_it_is_accounted() {
        let root = tempfile::tempdir().unwrap();
        let pace = |version| MemoryGroup::new(version, Arc::new(Folder::open(root.path()).unwrap())).pace();
        assert_eq!(pace(Version::V2), Pace::default());
        std::fs::write(root.path().join("cpu.stat"), "usage_usec 1500\nuser_usec 1000\n").unwrap();
        let pressure = "some avg10=0.00 avg60=0.00 avg300=0.00 total=90\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=70\n";
        std::fs::write(root.path().join("memory.pressure"), pressure).unwrap();
        let expected = Pace { ran: Some(Duration::from_micros(1500)), stalled: Some(Duration::from_micros(70)) };
        assert_eq!((pace(Version::V2), pace(Version::V1)), (expected, Pace::default()));
        // Pressure is switched off: the file is there, and empty.
        std::fs::write(root.path().join("memory.pressure"), "").unwrap();
        assert_eq!(pace(Version::V2), Pace { stalled: None, ..expected });
    }

    #[test]
    fn a_group_made_anew_is_not_touched() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("w-1");
        std::fs::create_dir(&folder).unwrap();
        v2(&folder);
        let group = MemoryGroup::new(Version::V2, Arc::new(Folder::open(&folder).unwrap()));
        group.set_line("4096").unwrap();
        assert_eq!(std::fs::read_to_string(folder.join("memory.high")).unwrap(), "4096");
        std::fs::remove_dir_all(&folder).unwrap();
        std::fs::create_dir(&folder).unwrap();
        v2(&folder);
        assert!(group.set_line("8192").is_err() && group.reclaim(1).is_err() && group.figures().is_err());
        assert_eq!(std::fs::read_to_string(folder.join("memory.high")).unwrap(), "max\n");
    }

    #[test]
    fn swap_is_what_every_group_above_leaves() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::below(root.path());
        std::fs::create_dir_all(paths.proc.clone()).unwrap();
        let folder = root.path().join("group");
        std::fs::create_dir(&folder).unwrap();
        v2(&folder);
        let group = MemoryGroup::new(Version::V2, Arc::new(Folder::open(&folder).unwrap()));
        assert_eq!(group.swap_room(&paths), None, "it cannot be read");
        for (free, room) in [("0 kB", 0), ("1 kB", 400)] {
            std::fs::write(paths.proc.join("meminfo"), format!("MemTotal: 1000 kB\nMemFree: 500 kB\nSwapFree: {free}\n")).unwrap();
            assert_eq!(group.swap_room(&paths), Some(room));
        }
    }
}
