//! `[jobs.NAME]`: what is refused and where, and what is meant by what is left out.

use std::path::PathBuf;
use std::time::Duration;

use plimsoll::config::jobs::{CatchUp, Compress, Format, Job, Kind, Then, Verify};
use plimsoll::config::settings::Rung;
use plimsoll::config::{self, Loaded, Sources};

fn sources(file: &str) -> (tempfile::TempDir, Sources) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("plimsoll.toml"), file).expect("a writable folder");
    let sources = Sources { working_dir: folder.path().to_path_buf(), ..Sources::default() };
    (folder, sources)
}

/// `line:column key: message; allowed` of each problem.
fn problems(file: &str) -> Vec<String> {
    let (_folder, sources) = sources(file);
    let list = config::load(&sources).map(|_| Vec::new()).unwrap_or_else(|problems| problems.list);
    let told = |problem: &config::Problem| {
        let place = problem.place.to_string();
        let place = place.rsplit_once("plimsoll.toml:").map_or(place.clone(), |(_, place)| place.to_owned());
        format!("{place} {}: {}", problem.key, problem.message)
    };
    list.iter().map(told).collect()
}

fn load(sources: &Sources) -> Loaded {
    config::load(sources).unwrap_or_else(|problems| panic!("{problems}"))
}

const FILES: &str = "[jobs.tidy]\nkind = \"files\"\npaths = [\"/app/data/audio\"]\n";
const SESSIONS: &str = "[jobs.old]\nkind = \"sessions\"\ndatabase = \"/app/memory.db\"\n";
const BACKUP: &str = "[jobs.copy]\nkind = \"backup\"\ndatabases = [\"/app/memory.db\"]\nto = \"/backups\"\n";

#[test]
fn what_is_left_out_is_as_the_kind_needs_it() {
    let (_folder, sources) = sources(&format!("{FILES}{SESSIONS}{BACKUP}"));
    let loaded = load(&sources);
    let all: Vec<Job> = loaded.settings.jobs.iter().map(|job| (**job).clone()).collect();
    let [copy, old, tidy] = all.as_slice() else { panic!("{all:?}") };
    assert_eq!(
        [&copy.schedule, &old.schedule, &tidy.schedule].map(|schedule| schedule.as_deref()),
        [Some("0 2 * * *"), Some("0 3 * * *"), Some("@hourly")]
    );
    assert_eq!((tidy.catch_up, tidy.when_high.then, tidy.when_high.wait), (CatchUp::Once, Then::Run, Duration::from_secs(300)));
    assert_eq!((tidy.timeout, tidy.jitter, tidy.dry_run, tidy.after.len()), (Duration::from_secs(3600), Duration::ZERO, false, 0));
    assert_eq!(old.after.iter().map(|name| &**name).collect::<Vec<_>>(), ["copy"], "what it deletes is in a copy first");
    let day = Duration::from_secs(86_400);
    let Kind::Files(files) = &tidy.kind else { panic!() };
    assert_eq!((files.keep, files.min_age, files.max_total), (day, Duration::from_secs(600), None));
    let Kind::Sessions(sessions) = &old.kind else { panic!() };
    assert_eq!(
        (sessions.keep, sessions.second_look, sessions.longest_lock),
        (7 * day, Duration::from_secs(600), Duration::from_millis(10))
    );
    assert_eq!(sessions.format, Format::Auto);
    let Kind::Backup(backup) = &copy.kind else { panic!() };
    assert_eq!((backup.keep, backup.keep_last, backup.compress, backup.verify), (7 * day, 1, Compress::Zstd(3), Verify::Quick));
    assert_eq!(backup.to, PathBuf::from("/backups"));
}

#[test]
fn what_cannot_be_meant_is_refused_with_its_place() {
    let files = |more: &str| format!("{FILES}{more}\n");
    let cases: Vec<(&str, String, &str)> = vec![
        ("no kind", "[jobs.x]\npaths = [\"/a\"]".into(), "1:7 jobs.x.kind: is missing"),
        ("a strange kind", "[jobs.x]\nkind = \"file\"".into(), "2:8 jobs.x.kind: \"file\" is not one of them"),
        ("no folder", "[jobs.x]\nkind = \"files\"".into(), "1:7 jobs.x.paths: is missing"),
        ("the whole machine", "[jobs.x]\nkind = \"files\"\npaths = [\"//.\"]".into(), "3:10 jobs.x.paths[0]: is the whole machine"),
        ("a relative folder", "[jobs.x]\nkind = \"files\"\npaths = [\"data\"]".into(), "3:10 jobs.x.paths[0]: \"data\" is a relative path"),
        ("upwards", "[jobs.x]\nkind = \"files\"\npaths = [\"/a/../b\"]".into(), "3:10 jobs.x.paths[0]: \"/a/../b\" goes up again"),
        ("twice", "[jobs.x]\nkind = \"files\"\npaths = [\"/a\", \"/a/\"]".into(), "3:16 jobs.x.paths[1]: \"/a/\" is there twice"),
        ("of another kind", files("database = \"/a.db\""), "4:12 jobs.tidy.database: is of no use for kind \"files\""),
        ("of another kind", files("key_file = \"/a\""), "4:12 jobs.tidy.key_file: is of no use for kind \"files\""),
        ("a slip", files("kep = \"1h\""), "4:1 jobs.tidy.kep: unknown key"),
        ("a minute's mistake", files("keep = \"5s\""), "4:8 jobs.tidy.keep: \"5s\" is out of range"),
        ("kept longer than it is kept", files("min_age = \"2d\""), "4:11 jobs.tidy.min_age: \"2d\" is longer than keep, \"1d\""),
        ("nothing at all", files("max_total = 0"), "4:13 jobs.tidy.max_total: keeps nothing at all"),
        ("no such day", files("schedule = \"0 3 31 2 *\""), "4:12 jobs.tidy.schedule: \"0 3 31 2 *\" names a moment that never comes"),
        ("seven fields", files("schedule = \"0 0 3 * * * 2027\""), "4:12 jobs.tidy.schedule: \"0 0 3 * * * 2027\" has 7 fields"),
        ("a day that is none", files("schedule = \"0 3 32 * *\""), "4:12 jobs.tidy.schedule: \"0 3 32 * *\" cannot be read"),
        ("a word that is none", files("schedule = \"@nightly\""), "4:12 jobs.tidy.schedule: \"@nightly\" is none of"),
        ("a zone that is none", files("timezone = \"Europe/Nowhere\""), "4:12 jobs.tidy.timezone: \"Europe/Nowhere\" is no time zone"),
        ("after nobody", files("after = [\"copi\"]"), "4:10 jobs.tidy.after[0]: there is no job \"copi\""),
        ("after itself", files("after = [\"tidy\"]"), "4:10 jobs.tidy.after[0]: a job cannot go after itself"),
        ("a bad glob", files("include = [\"../x\"]"), "4:12 jobs.tidy.include[0]: \"../x\" leads out of the folder with .."),
        ("no user", files("owner = \"nobody-at-all\""), "4:9 jobs.tidy.owner: there is no user"),
        ("a lock somewhere", files("lock = \"x.lock\""), "4:8 jobs.tidy.lock: \"x.lock\" is a relative path"),
        ("then what", files("when_high = { then = \"wait\" }"), "4:22 jobs.tidy.when_high.then: \"wait\" is not one of them"),
        (
            "a second look that never ends",
            format!("{SESSIONS}second_look = \"2h\""),
            "4:15 jobs.old.second_look: \"2h\" does not end before timeout, \"1h\"",
        ),
        ("no database", "[jobs.x]\nkind = \"sessions\"".into(), "1:7 jobs.x.database: is missing"),
        ("no table", format!("{SESSIONS}format = \"table\""), "1:7 jobs.old.table: is missing"),
        ("half a table", format!("{SESSIONS}table = {{ name = \"s\", id = \"id\" }}"), "4:1 jobs.old.table.time: is missing"),
        ("nowhere to", "[jobs.x]\nkind = \"backup\"\ndatabases = [\"/a\"]".into(), "1:7 jobs.x.to: is missing"),
        ("packed how", format!("{BACKUP}compress = \"zstd:99\""), "5:12 jobs.copy.compress: \"zstd:99\" is not understood"),
        ("none kept", format!("{BACKUP}keep_last = 0"), "5:13 jobs.copy.keep_last: 0 is out of range"),
        ("a circle", format!("{FILES}after = [\"copy\"]\n{BACKUP}after = [\"tidy\"]"), "jobs.copy.after: the order is a circle"),
        (
            "a job that would delete the database",
            format!("[jobs.tidy]\nkind = \"files\"\npaths = [\"/app\"]\n{SESSIONS}"),
            "3:10 jobs.tidy.paths[0]: \"/app\" would delete what jobs.old.database names",
        ),
        (
            "or the copies",
            format!("[jobs.tidy]\nkind = \"files\"\npaths = [\"/backups\"]\n{BACKUP}"),
            "3:10 jobs.tidy.paths[0]: \"/backups\" would delete what jobs.copy.to names",
        ),
        (
            "or the daemon's own",
            "[daemon]\nstate_dir = \"/state/p\"\n[jobs.tidy]\nkind = \"files\"\npaths = [\"/state\"]\ninclude = [\"*.mp3\"]".into(),
            "5:10 jobs.tidy.paths[0]: \"/state\" would delete what daemon.state_dir names",
        ),
        (
            "a job that is not there",
            "[[policy.disks]]\npath = \"/\"\non_high = [\"job:tidi\"]\n".to_owned() + FILES,
            "3:12 policy.disks[0].on_high[0]: there is no job \"tidi\"",
        ),
        (
            "one that frees nothing",
            format!("[[policy.disks]]\npath = \"/\"\non_high = [\"job:copy\"]\n{BACKUP}"),
            "3:12 policy.disks[0].on_high[0]: \"job:copy\" makes copies",
        ),
        (
            "a job for memory",
            format!("[policy.memory]\non_high = [\"job:tidy\"]\n{FILES}"),
            "2:12 policy.memory.on_high[0]: \"job:tidy\" does nothing for this resource",
        ),
    ];
    let mut wrong = Vec::new();
    for (name, file, expected) in cases {
        let told = problems(&file);
        // This, and nothing else.
        if !matches!(told.as_slice(), [only] if only.contains(expected)) {
            wrong.push(format!("{name}: {expected}\n{told:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_file_that_is_meant_is_taken() {
    let file = format!(
        "[[policy.disks]]\npath = \"/\"\non_high = [\"notify\", \"job:tidy\"]\n{FILES}include = [\"*.mp3\"]\nschedule = \"*/30 * * * * *\"\n\
         [jobs.db]\nkind = \"sessions\"\ndatabase = \"/app/data/audio/x.db\"\nafter = []\n\
         table = {{ name = \"s\", id = \"id\", time = \"t\", children = {{ m = \"s_id\" }} }}\n"
    );
    let (_folder, mut sources) = sources(&file);
    sources.env.push(("PLIMSOLL_JOBS__TIDY__KEEP".to_owned(), "2h".to_owned()));
    sources.set.push("jobs.tidy.schedule=never".to_owned());
    let loaded = load(&sources);
    let jobs = &loaded.settings.jobs;
    assert_eq!((jobs[0].after.len(), jobs[1].schedule.as_deref()), (0, None));
    let Kind::Files(files) = &jobs[1].kind else { panic!() };
    assert_eq!(files.keep, Duration::from_secs(7200));
    let Kind::Sessions(sessions) = &jobs[0].kind else { panic!() };
    assert!(matches!(&sessions.format, Format::Table(table) if table.children == [("m".to_owned(), "s_id".to_owned())]));
    assert_eq!(loaded.settings.policy.disks[0].rule.on_high, [Rung::Notify, Rung::Job("tidy".into())]);
    // What is shown can be read again and means the same.
    let shown = loaded.to_toml(false);
    let (_other, again) = self::sources(&shown);
    let again = config::load(&again).unwrap_or_else(|problems| panic!("{problems}\n{shown}"));
    assert_eq!(&again.settings.jobs, jobs);
    assert_eq!(loaded.settings.diff(&again.settings), Vec::<String>::new());
}

#[test]
fn what_differs_is_named() {
    let settings = |file: &str| {
        let (_folder, sources) = sources(file);
        load(&sources).settings
    };
    let one = settings(&format!("{FILES}{BACKUP}"));
    let other = settings(&format!("{FILES}keep = \"2h\"\nmin_age = \"1h\"\n[jobs.new]\nkind = \"files\"\npaths = [\"/b\"]\n"));
    assert_eq!(one.diff(&other), ["jobs.copy", "jobs.new", "jobs.tidy.keep", "jobs.tidy.min_age"]);
}
