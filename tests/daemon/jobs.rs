//! Jobs with the whole binary: real files, a real state database, real processes.

use std::fs;
use std::path::PathBuf;
use std::process::Output;

use serde_json::Value;

use crate::faults::SmallDisk;
use crate::outside;
use crate::stage::{Stage, skip, wait_for};

/// A job that leaves one file of those that are older than a second, when it is asked for or as `more` says. (Nothing can be made old:
/// the time of birth and of change of a file are the kernel's.)
fn tidy(more: &str) -> String {
    format!(
        "[jobs.tidy]\nkind = \"files\"\npaths = [\"{{here}}/data\"]\ninclude = [\"*.tmp\"]\nkeep = \"1h\"\nmin_age = \"1s\"\nmax_files = 1\n{more}\n"
    )
}

fn put(stage: &Stage, names: &[&str]) {
    let folder = stage.path("data");
    fs::create_dir_all(&folder).unwrap();
    for name in names {
        fs::write(folder.join(name), vec![b'x'; 8192]).unwrap();
    }
}

fn left(stage: &Stage) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(stage.path("data")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", said(output)))
}

fn ended(stage: &Stage, outcome: &str) -> Value {
    stage.event("job_finished", |event| event["outcome"] == outcome)
}

#[test]
fn a_job_that_is_asked_for_runs_in_a_process_of_its_own_and_is_on_every_page() {
    let mut stage = Stage::new(&tidy("schedule = \"never\""));
    put(&stage, &["a.tmp", "b.tmp", "c.tmp", "keep.txt"]);
    stage.start();
    assert_eq!(stage.events_named("scheduler_started")[0]["jobs"], "tidy");
    let is_old =
        |name: &str| fs::metadata(stage.path("data").join(name)).unwrap().created().unwrap().elapsed().is_ok_and(|age| age.as_secs() >= 2);
    wait_for("the files are old enough", || ["a.tmp", "b.tmp", "c.tmp"].into_iter().all(is_old).then_some(()));
    let planned = stage.ask(&["jobs", "run", "tidy", "--dry-run", "--json"]);
    assert!(planned.status.success(), "{}", said(&planned));
    let plan = json(&planned);
    assert_eq!(plan["plan"]["totals"]["deleted"]["file"]["count"], 2, "{plan:#}");
    assert_eq!(plan["outcome"], "planned");
    assert_eq!(left(&stage), ["a.tmp", "b.tmp", "c.tmp", "keep.txt"], "a dry run deletes nothing");

    let run = stage.ask(&["jobs", "run", "tidy", "--yes", "--json"]);
    assert!(run.status.success(), "{}", said(&run));
    let run = json(&run);
    assert_eq!(run["outcome"], "done");
    // Exactly what was planned is what is done.
    assert_eq!(run["run"]["deleted"]["file"], 2);
    let mut planned: Vec<String> =
        plan["plan"]["items"].as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect();
    planned.sort();
    let gone = planned.iter().all(|path| !std::path::Path::new(path).exists());
    assert!(gone && planned.len() == 2 && left(&stage).len() == 2, "{planned:?}, {:?}", left(&stage));
    let again = json(&stage.ask(&["jobs", "run", "tidy", "--json"]));
    assert_eq!(
        (&again["outcome"], again["run"]["deleted"]["file"].as_u64().unwrap_or(0)),
        (&Value::from("done"), 0),
        "a second run finds nothing"
    );

    let started = stage.events_named("job_started");
    assert_eq!(started.len(), 3);
    assert_ne!(started[0]["pid"].as_i64().unwrap(), i64::from(stage.pid()));
    assert_eq!(stage.metric("plimsoll_job_runs_total{name=\"tidy\",outcome=\"done\"}"), Some(2.0));
    assert_eq!(stage.metric("plimsoll_job_deleted_total{name=\"tidy\",what=\"file\"}"), Some(2.0));
    assert!(stage.metric("plimsoll_job_reclaimed_bytes_total{name=\"tidy\"}").is_some_and(|bytes| bytes >= 16384.0));
    assert_eq!(stage.metric("plimsoll_job_running{name=\"tidy\"}"), Some(0.0));
    assert!(stage.metric("plimsoll_job_last_success_timestamp_seconds{name=\"tidy\"}").is_some());
    assert_eq!(stage.metric("plimsoll_job_next_run_timestamp_seconds{name=\"tidy\"}"), None);

    let runs = stage.get("/admin/jobs/tidy/runs").unwrap();
    assert_eq!(runs["runs"].as_array().unwrap().len(), 3);
    assert_eq!(stage.request("GET", "/admin/jobs/nope/runs").unwrap().status, 404);
    assert_eq!(stage.request("POST", "/admin/jobs/nope/run").unwrap().status, 404);
    assert_eq!(stage.request("POST", "/admin/jobs/tidy/run?dry=1").unwrap().status, 400);
    let unknown = stage.ask(&["jobs", "run", "nope"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(said(&unknown).contains("there are tidy"), "{}", said(&unknown));
    assert!(said(&stage.ask(&["jobs"])).contains("tidy"));
    assert_eq!(stage.stop(), 0);

    // And without a daemon: what was is known, and it runs here.
    let history = json(&stage.ask(&["jobs", "history", "--json"]));
    assert_eq!(history.as_array().unwrap().len(), 3);
    let here = stage.ask(&["jobs", "run", "tidy", "--json"]);
    assert!(here.status.success(), "{}", said(&here));
    assert_eq!(json(&stage.ask(&["jobs", "history", "--json"])).as_array().unwrap().len(), 4);
}

#[test]
fn what_is_due_runs_by_itself_and_the_daemon_stays_itself() {
    let mut stage = Stage::new(&tidy("schedule = \"* * * * * *\""));
    put(&stage, &["a.tmp"]);
    stage.start();
    let first = ended(&stage, "done");
    assert_eq!((&first["job"], &first["kind"]), (&Value::from("tidy"), &Value::from("files")));
    wait_for("a few runs", || (stage.events_named("job_finished").len() >= 3).then_some(()));
    let started = stage.events_named("job_started");
    assert!(started.iter().all(|event| event["cause"] == "schedule"), "{started:?}");
    assert_eq!(left(&stage), ["a.tmp"], "young");
    assert_eq!(stage.stop(), 0);
    let events: Vec<String> = stage.events().iter().filter_map(|event| event["event"].as_str().map(str::to_owned)).collect();
    // Never two at once.
    let mut running = 0;
    for event in &events {
        running += match event.as_str() {
            "job_started" => 1,
            "job_finished" => -1,
            _ => 0,
        };
        assert!((0..=1).contains(&running), "{events:?}");
    }
    let steps = stage.events_named("shutdown_step");
    assert!(steps.iter().any(|step| step["step"] == "jobs" && step["ok"] == true), "{steps:?}");
}

#[test]
fn what_was_missed_while_no_daemon_was_there_is_caught_up_once() {
    let mut stage = Stage::new(&tidy("schedule = \"*/2 * * * * *\""));
    put(&stage, &[]);
    stage.start();
    ended(&stage, "done");
    assert_eq!(stage.stop(), 0);
    // Its mark is made to be of days ago, as after three days off.
    let database = rusqlite::Connection::open(stage.path("state/plimsoll.db")).unwrap();
    let (until, runs): (f64, i64) = database
        .query_row("SELECT (SELECT until FROM job_marks WHERE job = 'tidy'), (SELECT count(*) FROM job_runs)", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .unwrap();
    assert!(until > 1.7e9 && runs >= 1);
    database.execute("UPDATE job_marks SET until = until - 3 * 86400", []).unwrap();
    drop(database);
    stage.write(&tidy("schedule = \"0 0 3 * * *\"\ntimezone = \"UTC\""));
    stage.start();
    let started = stage.event("job_started", |_| true);
    assert_eq!(started["cause"], "catch_up");
    ended(&stage, "done");
    assert_eq!(stage.events_named("job_started").len(), 1);
    let jobs = stage.get("/admin/jobs").unwrap();
    assert!(jobs["jobs"][0]["next_run"].as_f64().unwrap() > jobs["jobs"][0]["last_run"]["started"].as_f64().unwrap());
}

#[test]
fn one_daemon_or_one_person_runs_jobs_on_a_state_folder() {
    let mut stage = Stage::new(&tidy("schedule = \"never\""));
    put(&stage, &[]);
    stage.start();
    // The lock of runs is held by somebody else.
    let lock = fs::File::options().create(true).truncate(false).write(true).open(stage.path("state/jobs.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    let refused = stage.ask(&["jobs", "run", "tidy"]);
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(said(&refused).contains("jobs.lock"), "{}", said(&refused));
    drop(lock);
    assert!(stage.ask(&["jobs", "run", "tidy"]).status.success());
    // A daemon that cannot be asked holds the folder all the same.
    fs::rename(stage.socket(), stage.path("run/hidden.sock")).unwrap();
    let other = stage.ask(&["jobs", "run", "tidy"]);
    assert_eq!(other.status.code(), Some(1), "{}", said(&other));
    assert!(said(&other).contains("another plimsoll is running"), "{}", said(&other));
    fs::rename(stage.path("run/hidden.sock"), stage.socket()).unwrap();
}

#[test]
fn a_daemon_that_is_killed_leaves_no_run_behind_and_the_next_one_knows() {
    let mut stage = Stage::new(&tidy("schedule = \"* * * * * *\""));
    put(&stage, &[]);
    for _ in 0..3 {
        stage.start();
        let pid = stage.event("job_started", |_| true)["pid"].as_i64().unwrap() as i32;
        stage.kill();
        wait_for("its run ends too", || outside::process(pid).is_none_or(|process| process.state == 'Z').then_some(()));
    }
    stage.start();
    ended(&stage, "done");
    let runs = stage.get("/admin/jobs/tidy/runs").unwrap();
    let runs = runs["runs"].as_array().unwrap();
    assert!(runs.iter().all(|run| run["outcome"].is_string()), "no run is left open: {runs:?}");
}

#[test]
fn a_state_folder_that_cannot_be_used_keeps_no_job_from_running() {
    let mut stage = Stage::new(&tidy("schedule = \"* * * * * *\""));
    put(&stage, &[]);
    fs::create_dir_all(stage.path("state")).unwrap();
    fs::write(stage.path("state/plimsoll.db"), "no database at all").unwrap();
    stage.start();
    ended(&stage, "done");
    let files: Vec<PathBuf> = fs::read_dir(stage.path("state")).unwrap().map(|entry| entry.unwrap().path()).collect();
    wait_for("the file is set aside", || {
        fs::read_dir(stage.path("state"))
            .unwrap()
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().contains("corrupt"))
            .then_some(())
    });
    assert!(!files.is_empty());
}

#[test]
fn jobs_run_where_the_state_folder_cannot_be_written() {
    for is_full in [false, true] {
        let mut stage = Stage::new(&tidy("schedule = \"* * * * * *\""));
        let Some(disk) = SmallDisk::mount(stage.path("state")) else { return skip("no file system can be mounted here") };
        if is_full {
            disk.fill();
        } else {
            disk.make_read_only();
        }
        put(&stage, &[]);
        stage.start();
        stage.event("degraded", |event| event["part"] == "state database");
        ended(&stage, "done");
        assert_eq!(stage.stop(), 0);
        let run = stage.ask(&["jobs", "run", "tidy", "--json"]);
        assert!(run.status.success(), "{}", said(&run));
    }
}

/// A deployment in the middle of the night costs no backup.
#[test]
fn a_run_that_ends_with_its_daemon_is_caught_up_by_the_next() {
    let mut stage = slow("schedule = \"*/4 * * * * *\"", 100);
    stage.start();
    running(&stage);
    assert_eq!(stage.stop(), 0);
    ended(&stage, "stopped");
    // So that nothing is due by itself.
    let far = tidy("rate = 2\nschedule = \"0 0 1 1 *\"");
    let before = tidy("rate = 2\nschedule = \"*/4 * * * * *\"");
    assert_ne!(far, before);
    stage.write(&far);
    stage.start();
    let again = stage.event("job_started", |event| event["cause"] == "catch_up");
    assert_eq!(again["job"], "tidy");
}

#[test]
fn a_job_that_only_reports_says_what_it_would_do() {
    let mut stage = Stage::new(&tidy("schedule = \"never\"\ndry_run = true"));
    put(&stage, &["a.tmp", "b.tmp", "c.tmp"]);
    stage.start();
    let is_old = || fs::metadata(stage.path("data/c.tmp")).unwrap().created().unwrap().elapsed().is_ok_and(|age| age.as_secs() >= 2);
    wait_for("the files are old enough", || is_old().then_some(()));
    let run = stage.ask(&["jobs", "run", "tidy"]);
    assert!(run.status.success() && said(&run).contains("would delete: 2 file"), "{}", said(&run));
    let finished = ended(&stage, "planned");
    assert!(finished["detail"].as_str().is_some_and(|detail| detail.starts_with("would delete 2 file (")), "{finished}");
    assert_eq!(left(&stage).len(), 3);
}

#[test]
fn there_is_a_bar_on_a_terminal_and_plain_text_elsewhere() {
    let mut stage = slow("schedule = \"never\"", 8);
    stage.start();
    let command = stage.plimsoll(&["jobs", "run", "tidy", "--yes"]);
    let words: Vec<String> =
        std::iter::once(command.get_program()).chain(command.get_args()).map(|word| format!("'{}'", word.to_string_lossy())).collect();
    // util-linux: runs it on a terminal of its own, and prints what appears there.
    let mut terminal = std::process::Command::new("script");
    terminal.args(["-qec", &words.join(" "), "/dev/null"]).envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let Ok(shown) = terminal.output() else { return skip("there is no script(1) to make a terminal") };
    let shown = said(&shown);
    assert!(shown.contains("█") && shown.contains("] ") && shown.contains(" of 7, "), "{shown:?}");
    assert!(shown.contains("tidy: done: deleted 7 file"), "{shown:?}");
    put(&stage, &["again.tmp"]);
    let plain = said(&stage.ask(&["jobs", "run", "tidy", "--yes"]));
    assert!(!plain.contains('\r') && !plain.contains("█") && plain.contains("tidy: done"), "{plain:?}");
}

#[test]
fn other_settings_are_taken_on_while_it_runs() {
    let mut stage = Stage::new(&tidy("schedule = \"never\""));
    put(&stage, &[]);
    stage.start();
    stage.write(&tidy("schedule = \"* * * * * *\""));
    let reload = stage.ask(&["reload"]);
    assert!(reload.status.success() && said(&reload).contains("jobs.tidy.schedule"), "{}", said(&reload));
    ended(&stage, "done");
    stage.write("");
    assert!(stage.ask(&["reload"]).status.success());
    assert_eq!(stage.get("/admin/jobs").unwrap()["jobs"], serde_json::json!([]));
    assert_eq!(stage.stop(), 0);
}

#[test]
fn a_disk_over_its_line_begins_the_job_that_is_to_free_it() {
    // Any disk is over a line of so little, and stays so: nothing there can be freed.
    let policy = "[sampling]\ninterval = \"200ms\"\n[[policy.disks]]\npath = \"/\"\nhigh = \"2kB\"\nlow = \"1kB\"\nsustain = \"0s\"\non_high = [\"job:tidy\"]\non_critical = []\n";
    let mut stage = Stage::new(&format!("{policy}{}", tidy("schedule = \"never\"")));
    put(&stage, &[]);
    stage.start();
    let started = stage.event("job_started", |_| true);
    assert_eq!(started["cause"], "disk");
    ended(&stage, "done");
    let action = stage.event("action_performed", |event| event["action"] == "job");
    assert_eq!((&action["resource"], &action["outcome"]), (&Value::from("disk:/"), &Value::from("done")));
    assert!(stage.metric("plimsoll_actions_total{resource=\"disk:/\",action=\"job\"}").is_some_and(|count| count >= 1.0));
}

/// A run that takes its time: so many files at two a second.
fn slow(more: &str, files: usize) -> Stage {
    let stage = Stage::new(&tidy(&format!("rate = 2\n{more}")));
    let names: Vec<String> = (0..files).map(|number| format!("{number}.tmp")).collect();
    put(&stage, &names.iter().map(String::as_str).collect::<Vec<_>>());
    let is_old = || fs::metadata(stage.path("data/0.tmp")).unwrap().created().unwrap().elapsed().is_ok_and(|age| age.as_secs() >= 2);
    wait_for("the files are old enough", || is_old().then_some(()));
    stage
}

fn running(stage: &Stage) -> Value {
    wait_for("a run that has begun to delete", || {
        let jobs = stage.get("/admin/jobs")?;
        Some(jobs["jobs"][0]["running"].clone()).filter(|running| running["done"].as_u64().is_some_and(|done| done > 0))
    })
}

#[test]
fn a_run_whose_time_is_up_stops_and_the_next_goes_on() {
    let mut stage = slow("schedule = \"never\"\ntimeout = \"3s\"", 200);
    stage.start();
    let run = stage.ask(&["jobs", "run", "tidy", "--yes", "--json"]);
    assert_eq!(run.status.code(), Some(1), "{}", said(&run));
    let run = json(&run);
    assert_eq!(run["outcome"], "stopped", "{run:#}");
    let deleted = run["run"]["deleted"]["file"].as_u64().unwrap();
    let seconds = run["run"]["seconds"].as_f64().unwrap();
    assert!((1..100).contains(&deleted) && (2.0..12.0).contains(&seconds), "{deleted} in {seconds} s");
    assert_eq!(left(&stage).len() as u64, 200 - deleted, "what is done is done, and nothing else");
    assert!(run["run"]["detail"].as_str().unwrap().contains("its time was up"), "{run:#}");
}

#[test]
fn a_daemon_that_ends_stops_its_run_at_a_safe_point() {
    let mut stage = slow("schedule = \"never\"", 200);
    stage.start();
    assert_eq!(stage.request("POST", "/admin/jobs/tidy/run?yes=true&wait=0s").unwrap().status, 202);
    let going = running(&stage);
    assert!(going["of"].as_u64().unwrap() >= 199 && going["seconds_left"].is_number(), "{going}");
    assert_eq!(stage.metric("plimsoll_job_running{name=\"tidy\"}"), Some(1.0));
    assert_eq!(stage.request("POST", "/admin/jobs/tidy/run").unwrap().status, 409, "one at a time");
    let pid = going["pid"].as_i64().unwrap() as i32;
    // Behind everybody else: nice 19 and, where the kernel tells, the policy for the idle.
    let (nice, policy) = outside::priority(pid).unwrap();
    assert_eq!((nice, policy), (19, 5));
    assert_eq!(stage.stop(), 0);
    assert!(outside::process(pid).is_none(), "it has ended with the daemon");
    let finished = stage.events_named("job_finished");
    assert_eq!(finished[0]["outcome"], "stopped", "{finished:?}");
    let step = stage.events_named("shutdown_step").into_iter().find(|step| step["step"] == "jobs").unwrap();
    assert!(step["ok"] == true && step["took_seconds"].as_f64().unwrap() < 5.0, "{step}");
}

#[test]
fn a_run_that_is_killed_is_told_and_the_daemon_goes_on() {
    let mut stage = slow("schedule = \"never\"", 200);
    stage.start();
    assert_eq!(stage.request("POST", "/admin/jobs/tidy/run?yes=true&wait=0s").unwrap().status, 202);
    let pid = running(&stage)["pid"].as_i64().unwrap() as i32;
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
    let finished = stage.event("job_finished", |_| true);
    assert_eq!(finished["outcome"], "failed");
    assert!(finished["detail"].as_str().unwrap().contains("SIGKILL"), "{finished}");
    assert_eq!(stage.metric("plimsoll_job_runs_total{name=\"tidy\",outcome=\"failed\"}"), Some(1.0));
    assert_eq!(stage.stop(), 0);
}

#[test]
fn killed_in_the_middle_of_a_run_the_next_daemon_catches_up_on_it() {
    let mut stage = slow("schedule = \"*/5 * * * * *\"", 60);
    stage.start();
    let pid = running(&stage)["pid"].as_i64().unwrap() as i32;
    stage.kill();
    wait_for("its run stops by itself", || outside::process(pid).is_none_or(|process| process.state == 'Z').then_some(()));
    let before = left(&stage).len();
    assert!(before > 10, "{before}");
    // From here on it is due at no time soon: whatever runs is the one that was interrupted.
    stage.write(&tidy("rate = 50\nschedule = \"0 0 3 1 1 *\""));
    stage.start();
    let started = stage.event("job_started", |_| true);
    assert_eq!(started["cause"], "catch_up");
    ended(&stage, "done");
    assert_eq!(left(&stage).len(), 1);
    assert_eq!(stage.events_named("job_started").len(), 1);
}

#[test]
fn a_job_that_is_due_while_it_runs_is_not_begun_twice() {
    let mut stage = slow("schedule = \"* * * * * *\"", 12);
    stage.start();
    let skipped = stage.event("job_skipped", |event| event["reason"] == "running");
    assert_eq!(skipped["job"], "tidy");
    ended(&stage, "done");
    assert!(stage.metric("plimsoll_job_skips_total{name=\"tidy\",reason=\"running\"}").is_some_and(|count| count >= 1.0));
}

#[test]
fn a_plan_that_follows_a_clock_jump_is_held_until_somebody_says_yes() {
    let mut stage = slow("schedule = \"never\"", 3);
    fs::write(stage.path("data/only.tmp"), "x").unwrap();
    // A run of its own, so that there is something to compare the clocks with.
    stage.start();
    assert!(stage.ask(&["jobs", "run", "tidy"]).status.success());
    assert_eq!(stage.stop(), 0);
    // As if the wall clock had been a day behind then.
    let database = rusqlite::Connection::open(stage.path("state/plimsoll.db")).unwrap();
    let changed =
        database.execute("UPDATE job_runs SET body = json_set(body, '$.started', json_extract(body, '$.started') - 86400)", []).unwrap();
    assert_eq!(changed, 1);
    drop(database);
    put(&stage, &["a.tmp", "b.tmp", "c.tmp"]);
    let is_old = || fs::metadata(stage.path("data/c.tmp")).unwrap().modified().unwrap().elapsed().is_ok_and(|age| age.as_secs() >= 2);
    wait_for("the files are old enough", || is_old().then_some(()));
    stage.start();
    let before = left(&stage);
    let held = stage.ask(&["jobs", "run", "tidy", "--json"]);
    assert_eq!(held.status.code(), Some(1), "{}", said(&held));
    assert_eq!(json(&held)["outcome"], "held", "{}", said(&held));
    assert_eq!(left(&stage), before, "nothing is deleted");
    assert_eq!(stage.metric("plimsoll_job_held{name=\"tidy\"}"), Some(1.0));
    assert!(said(&stage.ask(&["jobs"])).contains("--yes"), "{}", said(&stage.ask(&["jobs"])));
    let done = stage.ask(&["jobs", "run", "tidy", "--yes", "--json"]);
    assert_eq!(json(&done)["outcome"], "done", "{}", said(&done));
    assert!(left(&stage).len() < before.len());
    assert_eq!(stage.metric("plimsoll_job_held{name=\"tidy\"}"), Some(0.0));
}

#[test]
fn a_lock_that_daemons_share_lets_one_of_them_run() {
    let mut stage = Stage::new(&tidy("schedule = \"never\"\nlock = \"{here}/shared.lock\""));
    put(&stage, &[]);
    stage.start();
    let lock = fs::File::options().create(true).truncate(false).write(true).open(stage.path("shared.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    let refused = stage.request("POST", "/admin/jobs/tidy/run").unwrap();
    assert_eq!(refused.status, 409, "{}", refused.body);
    assert!(refused.body.contains("shared.lock"), "{}", refused.body);
    drop(lock);
    assert_eq!(stage.request("POST", "/admin/jobs/tidy/run").unwrap().status, 200);
}

#[test]
fn a_daemon_that_becomes_another_program_has_its_run_stop_and_catches_up_on_it() {
    let mut stage = slow("schedule = \"*/4 * * * * *\"", 100);
    stage.start();
    let pid = running(&stage)["pid"].as_i64().unwrap() as i32;
    let upgraded = stage.ask(&["upgrade"]);
    assert!(upgraded.status.success(), "{}", said(&upgraded));
    wait_for("the run stops", || outside::process(pid).is_none_or(|process| process.state == 'Z').then_some(()));
    let again = stage.event("job_started", |event| event["cause"] == "catch_up");
    assert_ne!(again["pid"].as_i64().unwrap() as i32, pid);
    let runs = stage.get("/admin/jobs/tidy/runs").unwrap();
    let interrupted = runs["runs"].as_array().unwrap().iter().find(|run| run["outcome"] == "failed").cloned().unwrap_or_default();
    assert!(interrupted["detail"].as_str().is_some_and(|detail| detail.contains("the daemon ended before the run did")), "{runs:#}");
    assert_eq!(stage.stop(), 0);
}

/// It would take a whole processor, and one is free: nothing but its allowance keeps it from that.
#[test]
fn a_run_keeps_to_what_the_workers_leave_of_the_processors() {
    let settings = "
[sampling]
interval = \"100ms\"
[policy.cpu]
limit = 1.0
[workers.hog]
command = {hungry burn=1}
throttle = \"never\"
[jobs.copy]
kind = \"backup\"
databases = [\"{here}/app.db\"]
to = \"{here}/copies\"
schedule = \"never\"
";
    let mut stage = Stage::new(settings);
    let database = rusqlite::Connection::open(stage.path("app.db")).unwrap();
    database
        .execute_batch(
            "PRAGMA journal_mode = WAL; CREATE TABLE pieces (piece BLOB);
             WITH RECURSIVE number(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < 32000)
             INSERT INTO pieces SELECT randomblob(1000) FROM number;",
        )
        .unwrap();
    stage.start();
    wait_for("the hog is seen", || {
        let status = stage.status();
        let mut resources = status["policy"]["resources"].as_array()?.iter();
        resources.find(|one| one["resource"] == "cpu" && one["used"].as_f64() > Some(0.9)).map(drop)
    });
    let asked = stage.request("POST", "/admin/jobs/copy/run?wait=0s").unwrap();
    assert!(asked.status < 300, "{}", asked.status);
    let hog = outside::process(stage.status()["workers"][0]["replicas"][0]["pid"].as_i64().unwrap() as i32).unwrap();
    let taken_by_the_hog = || outside::cpu_time(outside::process(hog.pid).as_slice()).as_secs_f64();
    let (begun, before) = (std::time::Instant::now(), taken_by_the_hog());
    let (mut used, mut allowed) = (std::time::Duration::ZERO, Vec::new());
    let end = wait_for("the run is over", || {
        if let Some(running) = stage.get("/admin/jobs").and_then(|jobs| jobs["jobs"][0].get("running").cloned()) {
            allowed.extend(running["allowed_cores"].as_f64());
            let process = running["pid"].as_i64().and_then(|pid| outside::process(i32::try_from(pid).ok()?));
            used = used.max(outside::cpu_time(process.as_slice()));
        }
        stage.events_named("job_finished").pop()
    });
    let took = begun.elapsed();
    let others = (taken_by_the_hog() - before) / took.as_secs_f64();
    assert_eq!(end["outcome"], "done", "{end}");
    // A twentieth of the limit is always its own; the low line is all there is, less what the hog takes. On a busy machine that is not
    // its whole processor all the time.
    assert!(!allowed.is_empty() && allowed.iter().all(|cores| (0.049..0.701).contains(cores)), "{allowed:?}");
    let mean = allowed.iter().sum::<f64>() / allowed.len() as f64;
    assert!(mean < (0.7 - others).max(0.05) + 0.2, "{mean} on the average beside {others}: {allowed:?}");
    let most = allowed.iter().copied().fold(0.0, f64::max);
    assert!(used.as_millis() >= 100, "too little to tell: {used:?}");
    assert!(used.as_secs_f64() <= most * took.as_secs_f64() + 0.1, "{used:?} in {took:?}, allowed {most}");
    assert_eq!(stage.stop(), 0);
}
