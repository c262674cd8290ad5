//! Where what workers print goes, and that nothing that happens to the daemon, to the helper or to the disk holds them up.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};

use crate::outside::{self, Process};
use crate::stage::{Stage, skip, wait_for};

const QUICK: &str = "[sampling]\ninterval = \"100ms\"\n";

/// A worker that runs a script and prints to `{here}/out`.
pub fn printing(script: &str, output: &str) -> String {
    let command = serde_json::json!(["sh", "-c", script]);
    format!("{QUICK}[workers.web]\ncommand = {command}\nstop = {{ within = \"2s\" }}\noutput = {{ file = \"{{here}}/out\", {output} }}\n")
}

/// Prints numbered lines until it finds the file `stop`, then says how many, and is there until it is ended.
pub const COUNTING: &str = "i=0; while [ ! -e stop ]; do i=$((i+1)); echo \"line $i\"; done; echo $i > count; exec sleep 1000";

/// What the worker has printed so far, from all files, the oldest first.
fn printed(stage: &Stage) -> String {
    let log = stage.path("out");
    let mut older =
        (1..).map(|number| PathBuf::from(format!("{}.{number}", log.display()))).take_while(|file| file.exists()).collect::<Vec<_>>();
    older.reverse();
    older.iter().chain([&log]).filter_map(|file| fs::read_to_string(file).ok()).collect()
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |about| about.len())
}

pub fn captures(stage: &Stage) -> Vec<Process> {
    outside::captures_below(&stage.path(""))
}

pub fn the_capture(stage: &Stage) -> Process {
    wait_for("one helper", || {
        let found = captures(stage);
        (found.len() == 1).then(|| found[0].clone())
    })
}

pub fn no_capture_is_left(stage: &Stage) {
    wait_for("no helper is left", || captures(stage).is_empty().then_some(()));
}

/// Ends the counting worker's loop; every line it has printed must be there once, in order.
pub fn all_lines_are_there(stage: &Stage) {
    fs::write(stage.path("stop"), "").expect("it is ours");
    let count: usize =
        wait_for("the worker has stopped", || fs::read_to_string(stage.path("count")).ok()?.trim().parse().ok().filter(|count| *count > 0));
    let last = format!("line {count}\n");
    // Read again when files were moved on meanwhile.
    let text = wait_for("every line", || Some(printed(stage)).filter(|text| text.ends_with(&last) && text.lines().count() == count));
    for (number, line) in (1..).zip(text.lines()) {
        assert_eq!(line, format!("line {number}"));
    }
}

pub fn signal(process: &Process, signal: Signal) {
    kill_process(Pid::from_raw(process.pid).expect("a pid"), signal).expect("it is ours");
}

#[test]
fn lines_of_all_lives_and_both_streams_arrive_in_order() {
    let script = "echo life >> lives; echo \"out $(wc -l < lives)\"; echo \"err $(wc -l < lives)\" >&2";
    let settings = printing(script, "max_size = \"1MB\"")
        .replace("[workers.web]", "[workers.web]\nbackoff = { first = \"10ms\", longest = \"10ms\" }");
    let mut stage = Stage::running(&settings);
    let text = wait_for("three lives", || Some(printed(&stage)).filter(|text| text.contains("err 3\n")));
    assert!(text.starts_with("out 1\nerr 1\nout 2\nerr 2\nout 3\nerr 3\n"), "{text}");
    assert_eq!(stage.stop(), 0);
    no_capture_is_left(&stage);
}

#[test]
fn files_are_moved_on_between_lines_and_hold_everything() {
    let mut stage = Stage::running(&printing("seq 1000000 1624999; exec sleep 1000", "max_size = \"1MB\", keep = 10"));
    let text = wait_for("all of it", || Some(printed(&stage)).filter(|text| text.len() == 5_000_000));
    for (number, line) in (1_000_000..).zip(text.lines()) {
        assert_eq!(line, number.to_string());
    }
    // Lines of eight bytes: a million bytes are just full.
    let sizes: Vec<u64> = (1..=4).map(|number| size(&stage.path(&format!("out.{number}")))).chain([size(&stage.path("out"))]).collect();
    assert_eq!(sizes, [1_000_000; 5]);
    assert!(!stage.path("out.5").exists());
    assert_eq!(stage.stop(), 0);
}

#[test]
fn as_many_files_are_kept_as_were_asked_for() {
    for (keep, last) in [(2, "1624999\n"), (0, "1624999\n")] {
        let stage = Stage::running(&printing("seq 1000000 1624999; exec sleep 1000", &format!("max_size = \"64kB\", keep = {keep}")));
        wait_for("the last line", || printed(&stage).ends_with(last).then_some(()));
        let there: Vec<bool> = (1..=3).map(|number| stage.path(&format!("out.{number}")).exists()).collect();
        assert_eq!(there, [keep >= 1, keep >= 2, false]);
        assert!(size(&stage.path("out")) <= 64_000);
    }
}

#[test]
fn a_stopped_daemon_holds_up_nobody_who_prints() {
    let script = "until [ -e go ]; do sleep 0.02; done; yes 0123456789abcde | head -c 100000000; echo done > done; exec sleep 1000";
    let mut stage = Stage::running(&printing(script, "max_size = \"1GB\""));
    the_capture(&stage);
    stage.signal(Signal::STOP);
    wait_for("the daemon is stopped", || outside::process(stage.pid()).filter(|daemon| daemon.state == 'T'));
    fs::write(stage.path("go"), "").expect("it is ours");
    wait_for("the worker is done", || stage.path("done").exists().then_some(()));
    wait_for("all of it is written", || (size(&stage.path("out")) == 100_000_000).then_some(()));
    assert_eq!(outside::process(stage.pid()).map(|daemon| daemon.state), Some('T'), "all that without the daemon");
    stage.signal(Signal::CONT);
    assert_eq!(stage.stop(), 0);
    no_capture_is_left(&stage);
}

#[test]
fn a_killed_helper_is_followed_by_another_and_nothing_is_lost() {
    let stage = Stage::running(&printing(COUNTING, "max_size = \"100kB\", keep = 1000"));
    let mut seen: Vec<i32> = Vec::new();
    for _ in 0..6 {
        let helper = wait_for("a new helper", || captures(&stage).into_iter().find(|helper| !seen.contains(&helper.pid)));
        let before = printed(&stage).len();
        wait_for("it writes", || (printed(&stage).len() > before + 50_000).then_some(()));
        helper.kill();
        seen.push(helper.pid);
    }
    wait_for("a new helper", || captures(&stage).into_iter().find(|helper| !seen.contains(&helper.pid)));
    all_lines_are_there(&stage);
    stage.event("degraded", |event| event["part"] == "output");
    assert!(stage.events_named("worker_exited").is_empty(), "no SIGPIPE");
}

#[test]
fn a_killed_daemon_takes_no_line_with_it() {
    let mut stage = Stage::running(&printing(COUNTING, "max_size = \"100kB\", keep = 1000"));
    let worker = stage.worker("web");
    let helper = the_capture(&stage);
    wait_for("it writes", || (printed(&stage).len() > 50_000).then_some(()));
    stage.kill();
    let before = printed(&stage).len();
    wait_for("it goes on", || (printed(&stage).len() > before + 200_000).then_some(()));
    let left = outside::process(worker).expect("the worker goes on");
    assert_eq!(captures(&stage).iter().map(|one| one.pid).collect::<Vec<_>>(), [helper.pid]);
    all_lines_are_there(&stage);
    assert_eq!(captures(&stage).len(), 1, "as long as somebody could print");
    left.kill();
    no_capture_is_left(&stage);
}

/// Taken off again whatever becomes of the test.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_costs_lines_and_holds_nobody_up() {
    let script = "seq 1000000 1124999; echo done > done; until [ -e go ]; do sleep 0.02; done; echo after; exec sleep 1000";
    let mut stage = Stage::new(&printing(script, "max_size = \"10MB\"").replace("{here}/out", "{here}/small/out"));
    let small = stage.path("small");
    fs::create_dir(&small).expect("it is ours");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "small"]).arg(&small).output();
    if !mounted.as_ref().is_ok_and(|output| output.status.success()) {
        return skip(&format!("no small disk can be made: {mounted:?}"));
    }
    let _mounted = Mounted(small.clone());
    fs::write(small.join("filler"), vec![0; 128 << 10]).expect("there is room for it");
    stage.start();
    wait_for("the worker is done", || stage.path("done").exists().then_some(()));
    let log = small.join("out");
    wait_for("the disk is full", || (size(&log) == 128 << 10).then_some(()));
    fs::remove_file(small.join("filler")).expect("it is ours");
    let notice = wait_for("it is told, though nobody prints", || {
        fs::read_to_string(&log).ok()?.lines().find(|line| line.starts_with("[plimsoll: ")).map(str::to_owned)
    });
    fs::write(stage.path("go"), "").expect("it is ours");
    let text = wait_for("the next line", || fs::read_to_string(&log).ok().filter(|text| text.ends_with("after\n")));
    let lost =
        notice.strip_prefix("[plimsoll: ").and_then(|rest| rest.strip_suffix(" bytes of output were lost: No space left on device]"));
    let lost: usize = lost.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{notice}"));
    assert_eq!((128 << 10) + lost, 1_000_000, "every byte is there or counted");
    assert_eq!(text[128 << 10..], format!("{notice}\nafter\n"));
    assert_eq!(stage.stop(), 0);
}

#[test]
fn a_helper_is_small_apart_and_not_easily_ended() {
    let mut stage = Stage::running(&printing("echo up; exec sleep 1000", "max_size = \"1MB\""));
    wait_for("it writes", || (printed(&stage) == "up\n").then_some(()));
    let helper = the_capture(&stage);
    assert_eq!((helper.name.as_str(), helper.session, helper.parent), ("capture", helper.pid, stage.pid()));
    for number in [Signal::TERM, Signal::INT, Signal::HUP] {
        signal(&helper, number);
    }
    let links: Vec<PathBuf> = fs::read_dir(format!("/proc/{}/fd", helper.pid))
        .expect("it lives")
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .collect();
    let pipes = links.iter().filter(|link| link.to_string_lossy().starts_with("pipe:")).count();
    // Standard input, output and error; the file; one end of the worker's pipe, both of the spool and of what is looked at.
    assert_eq!((links.len(), pipes), (9, 5), "{links:?}");
    let about = fs::metadata(stage.path("out")).expect("it is there");
    assert_eq!((about.mode() & 0o777, about.uid()), (0o640, rustix::process::getuid().as_raw()));
    let status = fs::read_to_string(format!("/proc/{}/status", helper.pid)).expect("it lives");
    let own =
        status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok()).expect("a figure");
    assert!(own < 2048, "{own} KiB of its own");
    assert_eq!(the_capture(&stage).pid, helper.pid, "it lives on");
    assert_eq!(stage.stop(), 0);
    assert!(captures(&stage).is_empty(), "gone before the daemon");
    let step = stage.event("shutdown_step", |event| event["step"] == "output");
    assert_eq!(step["ok"], true, "{step}");
}

#[test]
fn what_others_move_away_is_begun_anew() {
    let stage = Stage::running(&printing(COUNTING, "max_size = \"10MB\""));
    wait_for("it writes", || (size(&stage.path("out")) > 10_000).then_some(()));
    // As logrotate does: the helper has the older file open still.
    fs::rename(stage.path("out"), stage.path("out.1")).expect("it is ours");
    wait_for("it is begun anew", || (size(&stage.path("out")) > 10_000).then_some(()));
    all_lines_are_there(&stage);
}

#[test]
fn another_size_replaces_no_worker_and_another_place_does() {
    let stage = Stage::running(&printing(COUNTING, "max_size = \"100kB\", keep = 1000"));
    let (worker, first) = (stage.worker("web"), the_capture(&stage));
    wait_for("it writes", || (printed(&stage).len() > 50_000).then_some(()));
    stage.write(&printing(COUNTING, "max_size = \"200kB\", keep = 1000"));
    assert!(stage.ask(&["reload"]).status.success());
    let second = wait_for("another helper", || captures(&stage).into_iter().find(|helper| helper.pid != first.pid));
    wait_for("the new size holds", || (size(&stage.path("out.1")) > 150_000).then_some(()));
    assert_eq!(stage.worker("web"), worker);
    assert!(stage.events_named("degraded").is_empty(), "all of that was meant");
    all_lines_are_there(&stage);

    stage.write(&printing("echo elsewhere; exec sleep 1000", "max_size = \"200kB\"").replace("{here}/out", "{here}/other"));
    assert!(stage.ask(&["reload"]).status.success());
    wait_for("the new file", || fs::read_to_string(stage.path("other")).ok().filter(|text| text == "elsewhere\n"));
    wait_for("the old helper has nothing left to do", || captures(&stage).iter().all(|helper| helper.pid != second.pid).then_some(()));
    assert_ne!(stage.worker("web"), worker);
}

#[test]
fn the_journal_gets_lines_under_the_workers_name() {
    let script =
        "[ \"$JOURNAL_STREAM\" = \"$(stat -L -c %d:%i /proc/self/fd/2)\" ] && echo 'it is the journal'; echo '<3>bad' >&2; exec sleep 1000";
    let command = serde_json::json!(["sh", "-c", script]);
    let stage = Stage::new(&format!("[host]\njournal = \"{{here}}/journal\"\n[workers.web]\ncommand = {command}\noutput = \"journald\""));
    let journal = UnixListener::bind(stage.path("journal")).expect("a socket of ours");
    journal.set_nonblocking(true).expect("it is ours");
    let mut stage = stage;
    stage.start();
    let (connection, _) = wait_for("a connection", || journal.accept().ok());
    connection.set_nonblocking(false).expect("it is ours");
    let lines: Vec<String> = BufReader::new(connection).lines().map_while(Result::ok).take(9).collect();
    assert_eq!(lines, ["web", "", "6", "1", "0", "0", "0", "it is the journal", "<3>bad"]);
    assert_eq!(stage.stop(), 0);
}

#[test]
fn without_a_journal_a_worker_runs_and_it_is_told_once() {
    let script = "echo 'said all the same' >&2; exit 1";
    let command = serde_json::json!(["sh", "-c", script]);
    let mut stage = Stage::running(&format!(
        "[host]\njournal = \"{{here}}/journal\"\n[workers.web]\ncommand = {command}\noutput = \"journald\"\nbackoff = {{ first = \"10ms\", longest = \"10ms\" }}"
    ));
    wait_for("three lives", || (stage.events_named("worker_exited").len() >= 3).then_some(()));
    assert!(!fs::metadata(stage.path("journal")).is_ok_and(|about| about.file_type().is_socket()));
    let told: Vec<_> = stage.events_named("degraded").into_iter().filter(|event| event["part"] == "output").collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0]["detail"].as_str().is_some_and(|detail| detail.contains("journal") && detail.contains("web")), "{told:?}");
    assert!(stage.log().contains("said all the same"));
    assert_eq!(stage.stop(), 0);
}

#[test]
fn the_file_is_the_daemons_whoever_the_worker_is() {
    if !rustix::process::geteuid().is_root() {
        return skip("only root can start workers of other users");
    }
    let settings = printing("id -u; exec sleep 1000", "max_size = \"1MB\"").replace("[workers.web]", "[workers.web]\nuser = 65534");
    let stage = Stage::running(&settings);
    wait_for("its line", || (printed(&stage) == "65534\n").then_some(()));
    let about = fs::metadata(stage.path("out")).expect("it is there");
    assert_eq!((about.mode() & 0o777, about.uid()), (0o640, 0));
}
