//! `/proc`: parsers for what is read each tick, written for bytes the kernel (or a process's name) may hold.
//!
//! A parser gives `None` for text it cannot follow; none panics. What is read rarely goes through the procfs crate.

use std::time::Duration;

use super::cgroupfs::Refaults;

/// The fields of `/proc/PID/stat` that are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    pub pid: i32,
    /// `R`, `S`, `D`, `T` (stopped), `Z` (zombie) …
    pub state: u8,
    pub ppid: i32,
    pub session: i32,
    /// Clock ticks in user and kernel mode, all threads.
    pub busy: u64,
    /// The same of children it has waited for.
    pub waited: u64,
    pub threads: u32,
    /// Clock ticks from boot to its start: with the pid, its identity.
    pub started: u64,
}

impl Stat {
    /// It has ended and only waits for its parent to ask how. (A program whose first thread has left looks the same but
    /// for its other threads.)
    pub fn has_ended(&self) -> bool {
        matches!(self.state, b'Z' | b'X') && self.threads <= 1
    }
}

pub fn parse_stat(text: &[u8]) -> Option<Stat> {
    // The name stands in parentheses and may hold spaces, parentheses and newlines itself: it ends at the last one.
    let open = text.iter().position(|byte| *byte == b'(')?;
    let close = text.iter().rposition(|byte| *byte == b')')?;
    let pid = number(text.get(..open)?)?;
    let mut fields = fields(text.get(close + 1..)?);
    let state = *fields.next()?.first()?;
    let ppid = number(fields.next()?)?;
    // Process group, then session.
    let session = number(fields.nth(1)?)?;
    // Terminal, its group, flags and four fault counters.
    let utime: u64 = number(fields.nth(7)?)?;
    let stime: u64 = number(fields.next()?)?;
    // Waited-for times are signed in the kernel's format.
    let cutime: i64 = number(fields.next()?)?;
    let cstime: i64 = number(fields.next()?)?;
    // Priority and nice.
    let threads = number(fields.nth(2)?)?;
    // An interval timer that is always zero.
    let started = number(fields.nth(1)?)?;
    Some(Stat {
        pid,
        state,
        ppid,
        session,
        busy: utime.saturating_add(stime),
        waited: cutime.max(0).unsigned_abs().saturating_add(cstime.max(0).unsigned_abs()),
        threads,
        started,
    })
}

/// `/proc/PID/statm`, in pages. All zero for a zombie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statm {
    /// Of the address space.
    pub size: u64,
    pub resident: u64,
    /// File and shared-memory pages among the resident ones.
    pub shared: u64,
}

pub fn parse_statm(text: &[u8]) -> Option<Statm> {
    let mut fields = fields(text);
    Some(Statm { size: number(fields.next()?)?, resident: number(fields.next()?)?, shared: number(fields.next()?)? })
}

/// `/proc/meminfo`, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meminfo {
    pub total: u64,
    pub free: u64,
    /// Kernels before 3.14 do not say.
    pub available: Option<u64>,
    pub inactive_file: u64,
    pub active_file: u64,
    pub swap_total: u64,
    pub swap_free: u64,
    /// Of the kernel's own memory, what it could give back (`SReclaimable`) and what it could not.
    pub kernel_reclaimable: u64,
    pub kernel_unreclaimable: u64,
}

impl Meminfo {
    /// The part of the kernel's own memory that it cannot give back. `None` where it does not say what it uses.
    pub fn kernel_share(&self) -> Option<f64> {
        let whole = self.kernel_reclaimable.saturating_add(self.kernel_unreclaimable);
        (self.kernel_unreclaimable > 0).then(|| self.kernel_unreclaimable as f64 / whole as f64)
    }
}

/// `None` without a `MemTotal` above zero and a `MemFree`: a machine without memory is a file that could not be read, and
/// one whose free memory is not known is not full.
pub fn parse_meminfo(text: &[u8]) -> Option<Meminfo> {
    let mut meminfo = Meminfo::default();
    let mut free = None;
    for line in text.split(|byte| *byte == b'\n') {
        let mut fields = fields(line);
        let (Some(name), Some(value)) = (fields.next(), fields.next()) else { continue };
        let Some(value) = number::<u64>(value).and_then(|kib| kib.checked_mul(1024)) else { continue };
        match name {
            b"MemTotal:" => meminfo.total = value,
            b"MemFree:" => free = Some(value),
            b"MemAvailable:" => meminfo.available = Some(value),
            b"Inactive(file):" => meminfo.inactive_file = value,
            b"Active(file):" => meminfo.active_file = value,
            b"SReclaimable:" => meminfo.kernel_reclaimable = value,
            b"SUnreclaim:" | b"KernelStack:" | b"PageTables:" | b"SecPageTables:" | b"Percpu:" => {
                meminfo.kernel_unreclaimable = meminfo.kernel_unreclaimable.saturating_add(value);
            }
            b"SwapTotal:" => meminfo.swap_total = value,
            b"SwapFree:" => meminfo.swap_free = value,
            _ => {}
        }
    }
    meminfo.free = free?;
    (meminfo.total > 0).then_some(meminfo)
}

/// Of `/proc/vmstat` what was reclaimed and wanted back, since boot.
pub fn parse_refaults(text: &[u8]) -> Refaults {
    let mut refaults = Refaults::default();
    for line in text.split(|byte| *byte == b'\n') {
        let mut fields = fields(line);
        if let (Some(name), Some(pages)) = (fields.next(), fields.next().and_then(number::<u64>)) {
            refaults.take(name, pages);
        }
    }
    refaults
}

/// One `cpu` line of `/proc/stat`, in clock ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTicks {
    /// user, nice, system, irq and softirq. Guest time is in user already.
    pub busy: u64,
    /// Time the hypervisor gave to others: nobody here used it, and nobody here could have.
    pub steal: u64,
}

/// The number of the processor (`None` for the line of all together) and its times, for each `cpu` line.
pub fn parse_cpu_lines(text: &[u8]) -> impl Iterator<Item = (Option<u32>, CpuTicks)> {
    text.split(|byte| *byte == b'\n').map_while(|line| line.strip_prefix(b"cpu")).filter_map(|line| {
        let mut fields = fields(line);
        let cpu = if line.starts_with(b" ") { None } else { Some(number(fields.next()?)?) };
        let mut next = || fields.next().and_then(number::<u64>);
        let (user, nice, system, _idle) = (next()?, next()?, next()?, next()?);
        // Ancient kernels end here.
        let (_iowait, irq, softirq, steal) = (next(), next().unwrap_or(0), next().unwrap_or(0), next().unwrap_or(0));
        let busy = [user, nice, system, irq, softirq].into_iter().fold(0, u64::saturating_add);
        Some((cpu, CpuTicks { busy, steal }))
    })
}

/// The last field of `/proc/loadavg`: the pid given out last. While it stands still no process was started.
pub fn parse_last_pid(text: &[u8]) -> Option<i32> {
    number(fields(text).nth(4)?)
}

/// A list of processors such as `0-3,5`, as numbers; a range with its end before its start is left out.
pub fn parse_cpu_list(text: &[u8]) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    for range in cpu_ranges(text)? {
        cpus.extend(range?);
    }
    cpus.sort_unstable();
    cpus.dedup();
    Some(cpus)
}

/// How many processors such a list names, without making it: the kernel names none twice.
pub fn count_cpu_list(text: &[u8]) -> Option<usize> {
    cpu_ranges(text)?.try_fold(0, |sum, range| Some(sum + range?.count()))
}

fn cpu_ranges(text: &[u8]) -> Option<impl Iterator<Item = Option<std::ops::RangeInclusive<u32>>>> {
    // More than the kernel can be built for; a bound against a list made to exhaust us.
    const MOST: u32 = 8192;
    let text = std::str::from_utf8(text).ok()?.trim();
    Some(text.split(',').filter(|part| !part.is_empty()).map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        (last < MOST).then_some(first..=last)
    }))
}

/// Clock ticks as used by `/proc/PID/stat` and `/proc/stat`, made into time.
pub fn ticks(count: u64) -> Duration {
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    let nanos = u128::from(count) * 1_000_000_000 / u128::from(per_second);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Fields separated by white space.
pub(super) fn fields(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty())
}

pub(super) fn number<T: std::str::FromStr>(field: &[u8]) -> Option<T> {
    std::str::from_utf8(field.trim_ascii()).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TAIL: &str = "S 12 34 56 0 -1 4194560 1 2 3 4 150 50 7 8 20 0 3 0 9876 1000 200 18446744073709551615 1 1 0";

    #[test]
    fn stat_with_any_name() {
        for name in ["sh", "a b", "a) R 1 (b", "new\nline", ") S 1 1 1", ""] {
            let stat = parse_stat(format!("77 ({name}) {TAIL}").as_bytes());
            assert_eq!(
                stat,
                Some(Stat { pid: 77, state: b'S', ppid: 12, session: 56, busy: 200, waited: 15, threads: 3, started: 9876 }),
                "name {name:?}"
            );
        }
    }

    #[test]
    fn a_zombie_has_ended_unless_other_threads_live_on() {
        for (state, threads, ended) in [('Z', 1, true), ('X', 0, true), ('Z', 5, false), ('S', 1, false), ('T', 1, false)] {
            let tail = TAIL.replacen('S', &state.to_string(), 1).replace("20 0 3 0", &format!("20 0 {threads} 0"));
            assert_eq!(parse_stat(format!("1 (x) {tail}").as_bytes()).unwrap().has_ended(), ended, "{state} with {threads} threads");
        }
    }

    #[test]
    fn stat_cut_short_is_not_understood() {
        let whole = format!("77 (sh) {}", TAIL.split(" 9876").next().unwrap());
        for end in 0..whole.len() {
            assert_eq!(parse_stat(&whole.as_bytes()[..end]), None, "first {end} bytes");
        }
    }

    #[test]
    fn the_machine_we_run_on_is_understood() {
        let own = parse_stat(&std::fs::read("/proc/self/stat").unwrap()).unwrap();
        assert_eq!(own.pid, std::process::id() as i32);
        let statm = parse_statm(&std::fs::read("/proc/self/statm").unwrap()).unwrap();
        assert!(statm.resident > 0 && statm.shared <= statm.resident);
        let meminfo = parse_meminfo(&std::fs::read("/proc/meminfo").unwrap()).unwrap();
        assert!(meminfo.available.unwrap() <= meminfo.total && meminfo.free <= meminfo.total);
        let stat = std::fs::read("/proc/stat").unwrap();
        let lines: Vec<_> = parse_cpu_lines(&stat).collect();
        assert_eq!(lines[0].0, None);
        assert!(lines.len() > 1 && lines[0].1.busy > 0);
        assert!(parse_last_pid(&std::fs::read("/proc/loadavg").unwrap()).unwrap() > 0);
    }

    #[test]
    fn cpu_lines_new_and_old() {
        let text = b"cpu  10 20 30 1000 5 1 2 7 3 0\ncpu1 1 2 3 4\ncpu12 1 1 1 1 1 1 1 1\nintr 1\ncpu9 1 1 1 1\n";
        let lines: Vec<_> = parse_cpu_lines(text).collect();
        assert_eq!(
            lines,
            [
                (None, CpuTicks { busy: 63, steal: 7 }),
                (Some(1), CpuTicks { busy: 6, steal: 0 }),
                (Some(12), CpuTicks { busy: 5, steal: 1 }),
            ]
        );
    }

    #[test]
    fn cpu_lists() {
        for (text, cpus) in [
            ("0-3,5\n", Some(vec![0, 1, 2, 3, 5])),
            ("7", Some(vec![7])),
            ("", Some(vec![])),
            ("\n", Some(vec![])),
            ("3-1", Some(vec![])),
            ("1,1-2", Some(vec![1, 2])),
            ("0-4294967295", None),
            ("a", None),
            ("-", None),
        ] {
            assert_eq!(parse_cpu_list(text.as_bytes()), cpus, "{text:?}");
            if text != "1,1-2" {
                assert_eq!(count_cpu_list(text.as_bytes()), cpus.map(|cpus| cpus.len()), "{text:?}");
            }
        }
    }

    #[test]
    fn meminfo_without_a_total_is_no_answer() {
        assert_eq!(parse_meminfo(b"MemFree: 5 kB\n"), None);
        assert_eq!(parse_meminfo(b"MemTotal: 0 kB\nMemFree: 0 kB\n"), None);
        assert_eq!(parse_meminfo(b"MemTotal: 5 kB\n"), None);
        let meminfo = parse_meminfo(b"MemTotal: 2 kB\nMemFree: 0 kB\nMemAvailable: 1 kB\nInactive(file):   3 kB\nJunk\nSwapFree: x kB\n");
        assert_eq!(meminfo, Some(Meminfo { total: 2048, available: Some(1024), inactive_file: 3072, ..Meminfo::default() }));
        assert_eq!(meminfo.and_then(|meminfo| meminfo.kernel_share()), None);
    }

    #[test]
    fn the_kernels_own_memory_is_told_apart() {
        let text =
            b"MemTotal: 100 kB\nMemFree: 50 kB\nSReclaimable: 30 kB\nSUnreclaim: 5 kB\nKernelStack: 3 kB\nPageTables: 1 kB\nPercpu: 1 kB\n";
        assert_eq!(parse_meminfo(text).and_then(|meminfo| meminfo.kernel_share()), Some(0.25));
    }

    #[test]
    fn refaults_of_old_and_new_kernels() {
        let refaults = |all, activated, major_faults| Refaults { all, activated, major_faults };
        assert_eq!(parse_refaults(b"pgmajfault 1\nworkingset_refault 9\nworkingset_activate 5\n"), refaults(Some(9), Some(5), Some(1)));
        assert_eq!(parse_refaults(b"workingset_activate_anon 2\nworkingset_activate_file 5\n"), refaults(None, Some(7), None));
        assert_eq!(parse_refaults(b"pgfault 1\nworkingset_activate x\n"), Refaults::default());
    }

    #[test]
    fn ticks_are_hundredths_of_a_second_here() {
        let per_second = rustix::param::clock_ticks_per_second();
        assert_eq!(ticks(per_second * 3), Duration::from_secs(3));
        assert_eq!(ticks(0), Duration::ZERO);
        ticks(u64::MAX);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            parse_stat(&text);
            parse_statm(&text);
            parse_meminfo(&text);
            parse_refaults(&text);
            parse_cpu_lines(&text).count();
            parse_last_pid(&text);
            parse_cpu_list(&text);
        }

        #[test]
        fn near_sense_is_survived(text in "(cpu|MemTotal:|[0-9]{1,3} \\(x\\))?( ?-?[0-9]{0,21}){0,30}(kB)?\n?") {
            parse_stat(text.as_bytes());
            parse_statm(text.as_bytes());
            parse_meminfo(text.as_bytes());
            parse_refaults(text.as_bytes());
            parse_cpu_lines(text.as_bytes()).count();
            parse_last_pid(text.as_bytes());
            parse_cpu_list(text.as_bytes());
        }

        #[test]
        fn stat_is_read_whatever_the_name(name in "[^\\x00]{0,20}", started in any::<u64>(), ppid in 0..i32::MAX) {
            let text = format!("9 ({name}) R {ppid} 1 2 0 -1 0 0 0 0 0 1 1 0 0 20 0 1 0 {started} 0");
            let stat = parse_stat(text.as_bytes()).unwrap();
            prop_assert_eq!((stat.started, stat.ppid), (started, ppid));
        }
    }
}
