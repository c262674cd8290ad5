//! Processes: does to a child of our own what may have to be done to a worker.

use super::report::{Level, Report};
use super::{Means, Patient, tried};
use crate::host::probe::{self, Habit, Subject};
use crate::host::{scan, scheduling};

const AREA: &str = "processes";

pub fn examine(patient: &Patient, report: &mut Report, means: &mut Means) {
    if !patient.is_live() {
        report.note(AREA, "signals, priorities, memory", "not tried: this machine is a folder");
        return;
    }
    let paths = &patient.paths;
    let subject = match Subject::start(paths, Habit::Idle) {
        Ok(subject) => subject,
        Err(error) => {
            report.bad(
                AREA,
                Level::Fail,
                "a child",
                format!("could not be started or seen: {error}"),
                "look at ulimit -u, pids.max and that /proc is mounted",
            );
            (means.duty, means.nice) = (Some(false), Some(false));
            return;
        }
    };
    let old = "a kernel before 5.3, or a seccomp profile that forbids pidfd_open and pidfd_send_signal: allow them";
    tried(report, AREA, "pidfd", subject.reach(), |()| "a child can be held and reached by it".to_owned(), Level::Fail, old);
    let stop = subject.stop_and_continue(paths);
    let told = |took: std::time::Duration| format!("seen stopped after {:.1} ms, and going on", took.as_secs_f64() * 1000.0);
    means.duty = Some(tried(
        report,
        AREA,
        "SIGSTOP and SIGCONT",
        stop,
        told,
        Level::Warn,
        "duty cycles do not work; look for a tracer or a seccomp profile",
    ));
    // On a thread of its own, which takes what it was granted along.
    let first = std::thread::scope(|scope| scope.spawn(|| scheduling::run_first(&patient.layout)).join());
    tried(
        report,
        AREA,
        "real-time priority",
        first.unwrap_or_else(|_| Err("it panicked".to_owned())).map_err(std::io::Error::other),
        |()| "granted: under load the daemon is not late".to_owned(),
        Level::Note,
        "it needs CAP_SYS_NICE or RLIMIT_RTPRIO, and in a group of cgroup v1 a cpu.rt_runtime_us above 0; \
         without it a machine at full load may answer some tens of milliseconds later",
    );
    let capability = "it needs CAP_SYS_NICE; only throttle = \"nice\" asks for it";
    means.nice = Some(tried(
        report,
        AREA,
        "nice, and back",
        subject.nice_and_back(),
        |()| "raised and taken back".to_owned(),
        Level::Note,
        capability,
    ));
    let idle = subject.idle_and_back();
    tried(
        report,
        AREA,
        "SCHED_IDLE, and back",
        idle,
        |()| "set and taken back".to_owned(),
        Level::Note,
        "only throttle = \"nice\" asks for it",
    );
    let lowered = subject.lower_oom_score(paths);
    let spared = "it needs CAP_SYS_RESOURCE; workers are put above the daemon instead, so the kernel takes one of them first";
    tried(report, AREA, "lowering oom_score_adj", lowered, |()| "done to a child".to_owned(), Level::Note, spared);
    drop(subject);
    let limit = "it needs CAP_IPC_LOCK or a larger ulimit -l; a daemon that is paged out reacts later";
    tried(report, AREA, "mlockall", probe::lock_memory(), |()| "our memory can be kept in place".to_owned(), Level::Note, limit);
    let orphans = "orphans of workers are found by their session and group only";
    tried(report, AREA, "subreaper", probe::adopt_orphans(), |()| "orphans of workers come to the daemon".to_owned(), Level::Warn, orphans);
    seen(patient, report);
}

/// Whom we see, and who is first among them.
fn seen(patient: &Patient, report: &mut Report) {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let first = probe::name_of(&patient.paths, 1).unwrap_or_else(|| "hidden".to_owned());
    let mut found = Vec::new();
    match scan::processes(&patient.paths, &mut found, &mut Vec::new()) {
        Ok(_) => {
            let count = found.len();
            match (own, first.as_str()) {
                (1, _) => report.ok(AREA, "process 1", "ourselves: as an entry point the daemon reaps orphans and passes signals on"),
                (_, "pause") => report.note(
                    AREA,
                    "process 1",
                    format!("pause: a pod with shared processes; {count} are seen, the other containers' among them"),
                ),
                _ => report.ok(AREA, "process 1", format!("{first}; {count} processes are seen")),
            }
        }
        Err(error) => report.bad(
            AREA,
            Level::Fail,
            "the list of processes",
            format!("cannot be read: {error}"),
            "mount /proc, without hidepid for the daemon's user",
        ),
    }
}
