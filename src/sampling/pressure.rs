//! Pressure stall information of the scope.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::readings::{Pressure, PressureReadings, Reading, Source};
use super::scope::{Extent, Scope};
use super::tally::Tally;
use crate::host::cgroupfs::{Layout, Own, Version};
use crate::host::clock::Moment;
use crate::host::kept::Kept;
use crate::host::{Paths, psi};

/// Reading a pressure file folds its times with a weight in whole jiffies: read faster than that, it loses what it is
/// to count, for every reader of the file.
const SHORTEST: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(super) struct PressureFiles {
    paths: Paths,
    unified: Option<Own>,
    /// The v2 tree is the one that accounts memory.
    has_memory: bool,
    files: Option<Files>,
    last: Option<(Moment, PressureReadings)>,
}

#[derive(Debug)]
struct Files {
    /// The group measured, `None` for the machine.
    group: Option<PathBuf>,
    cpu: Kept,
    memory: Kept,
    io: Kept,
    /// `memory` is the group's, not the machine's.
    memory_is_own: bool,
}

impl PressureFiles {
    pub fn new(paths: &Paths, layout: &Layout) -> PressureFiles {
        let has_memory = layout.memory.as_ref().is_some_and(|own| own.version == Version::V2);
        PressureFiles { paths: paths.clone(), unified: layout.unified.clone(), has_memory, files: None, last: None }
    }

    pub fn read(&mut self, scope: &Scope, now: Moment, scratch: &mut Vec<u8>, tally: &mut Tally) -> PressureReadings {
        self.turn_to(scope);
        if let Some((then, last)) = &self.last
            && now.since(*then) < SHORTEST
        {
            return last.clone();
        }
        let mut read = |file: Option<&mut Kept>| match file {
            // An empty file: the kernel was started with pressure accounting off.
            Some(file) => match file.read(scratch) {
                Ok([]) => Reading::Unsupported,
                text => tally.reading(Source::Psi, text, psi::parse).map(|stall| Pressure { waiting: stall.some, stalled: stall.full }),
            },
            None => Reading::Unsupported,
        };
        let files = &mut self.files;
        let readings = PressureReadings {
            cpu: read(files.as_mut().map(|files| &mut files.cpu)),
            memory: read(files.as_mut().map(|files| &mut files.memory)),
            io: read(files.as_mut().map(|files| &mut files.io)),
        };
        self.last = Some((now, readings.clone()));
        readings
    }

    /// Whether what was read is about the scope alone: a container without files of its own shows the whole machine's.
    pub fn is_of(&self, scope: &Scope) -> bool {
        scope.extent == Extent::Host || self.files.as_ref().is_some_and(|files| files.memory_is_own)
    }

    /// Where the scope's memory pressure is read, once it has been.
    pub fn memory_file(&self) -> Option<&Path> {
        self.files.as_ref().map(|files| files.memory.path())
    }

    /// In a container with a v2 tree its group's files, else the machine's.
    fn turn_to(&mut self, scope: &Scope) {
        let container = scope.extent.is_group();
        let group = self.unified.as_ref().filter(|_| container).map(|own| {
            let carrier = scope.memory_group.as_deref().or(scope.cpu_group.as_deref());
            carrier.filter(|carrier| own.version == Version::V2 && own.dir.starts_with(carrier)).unwrap_or(&own.dir)
        });
        if self.files.as_ref().is_some_and(|files| files.group.as_deref() == group) {
            return;
        }
        // Beside memory groups of v1 the top of the v2 tree may well be the whole machine.
        let at_top = self.unified.as_ref().is_some_and(|own| own.dir == own.mount);
        let file = |group_file: &str, machine_file: &str| {
            let of_group = group.map(|folder| folder.join(group_file)).filter(|path| path.exists());
            Kept::new(&self.paths, of_group.unwrap_or_else(|| self.paths.proc.join("pressure").join(machine_file)))
        };
        self.files = Some(Files {
            group: group.map(PathBuf::from),
            cpu: file("cpu.pressure", "cpu"),
            memory: file("memory.pressure", "memory"),
            io: file("io.pressure", "io"),
            memory_is_own: group.is_some_and(|folder| (self.has_memory || !at_top) && folder.join("memory.pressure").exists()),
        });
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pressure_file_is_never_read_sooner_than_after_ten_milliseconds() {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths::below(folder.path());
        std::fs::create_dir_all(paths.proc.join("pressure")).unwrap();
        let write = |total: u64| std::fs::write(paths.proc.join("pressure/memory"), format!("some avg10=0.00 total={total}\n")).unwrap();
        let mut files = PressureFiles::new(&paths, &Layout::discover(&paths));
        let mut waited = |milliseconds: u64| {
            let now = Moment { steady: Duration::from_millis(milliseconds), wall: std::time::SystemTime::UNIX_EPOCH };
            let readings = files.read(&Scope::default(), now, &mut Vec::new(), &mut Tally::default());
            readings.memory.known().map(|pressure| pressure.waiting.as_micros())
        };
        write(1);
        assert_eq!(waited(1000), Some(1));
        write(2);
        assert_eq!([waited(1001), waited(1009)], [Some(1), Some(1)], "read again too soon");
        assert_eq!(waited(1010), Some(2));
    }
}
