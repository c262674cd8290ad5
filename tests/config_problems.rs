//! Every impossible setting is refused, all at once, each with its place; and what is possible comes from the layer it should.

use std::path::{Path, PathBuf};
use std::time::Duration;

use plimsoll::config::settings::{Line, Replicas, Rung, Scope};
use plimsoll::config::{self, Loaded, Place, Problems, Sources};
use proptest::prelude::*;

/// A folder with one settings file, and everything else that can say something.
struct Case {
    folder: tempfile::TempDir,
    sources: Sources,
}

impl Case {
    fn new(file: &str) -> Case {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("plimsoll.toml");
        std::fs::write(path, file).expect("a writable folder");
        let env = vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())];
        let sources = Sources { env, working_dir: folder.path().to_path_buf(), ..Sources::default() };
        Case { folder, sources }
    }

    fn env(mut self, name: &str, value: &str) -> Case {
        self.sources.env.push((name.to_owned(), value.to_owned()));
        self
    }

    fn set(mut self, argument: &str) -> Case {
        self.sources.set.push(argument.to_owned());
        self
    }

    fn command(mut self, words: &[&str]) -> Case {
        self.sources.command = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    fn load(&self) -> Result<Loaded, Problems> {
        config::load(&self.sources)
    }

    fn good(&self) -> Loaded {
        self.load().unwrap_or_else(|problems| panic!("refused:\n{problems}"))
    }

    fn bad(&self) -> Problems {
        match self.load() {
            Ok(_) => panic!("accepted"),
            Err(problems) => problems,
        }
    }
}

/// `line:column key: message` for each problem, without the folder.
fn told(problems: &Problems) -> Vec<String> {
    problems
        .list
        .iter()
        .map(|problem| {
            let place = match &problem.place {
                Place::Text { line, column, .. } => format!("{line}:{column}"),
                other => other.to_string(),
            };
            format!("{place} {}: {}", problem.key, problem.message)
        })
        .collect()
}

const WORKER: &str = "[workers.web]\ncommand = [\"sh\"]\n";

#[test]
fn each_impossible_setting_is_refused_at_its_place() {
    let worker = |rest: &str| format!("{WORKER}{rest}");
    let legacy = |rest: &str| format!("[workers.legacy]\n{rest}");
    let adopted = |rest: &str| format!("[workers.legacy]\nadopt = {{ pidfile = \"/run/app.pid\" }}\n{rest}");
    let cases: Vec<(&str, String, &str)> = vec![
        ("unknown section", "[gatway]".into(), "1:2 gatway: unknown section"),
        ("no file for a limit", "[policy.memory]\nlimit = { divisor = \"1Mi\" }".into(), "2:1 policy.memory.limit.file: is missing"),
        (
            "a divisor of another resource",
            "[policy.cpu]\nlimit = { file = \"/x\", divisor = \"1k\" }".into(),
            "2:34 policy.cpu.limit.divisor: \"1k\" is not understood",
        ),
        (
            "a limit that is a folder",
            "[policy.cpu]\nlimit = { file = \"/etc/\" }".into(),
            "2:18 policy.cpu.limit.file: \"/etc/\" is a folder",
        ),
        ("unknown key of a limit", "[policy.cpu]\nlimit = { path = \"/x\" }".into(), "2:11 policy.cpu.limit.path: unknown key"),
        ("a limit of the wrong kind", "[policy.cpu]\nlimit = [1]".into(), "2:9 policy.cpu.limit: is a list"),
        ("a limit that is none", "[policy.memory]\nlimit = \"lots\"".into(), "2:9 policy.memory.limit: \"lots\" is not understood"),
        ("a scope there is not", "[sampling]\nscope = \"pod\"".into(), "2:9 sampling.scope: \"pod\" is not one of them"),
        ("a scope without a worker", "[sampling]\nscope = {}".into(), "2:1 sampling.scope.worker: is missing"),
        (
            "the scope of nobody",
            worker("[sampling]\nscope = { worker = \"wep\" }"),
            "4:20 sampling.scope.worker: no worker is called \"wep\"",
        ),
        ("unknown key", "[daemon]\nstate_dri = \"/x\"".into(), "2:1 daemon.state_dri: unknown key"),
        ("relative state folder", "[daemon]\nstate_dir = \"state\"".into(), "2:13 daemon.state_dir: \"state\" is a relative path"),
        ("empty path", "[daemon]\nstate_dir = \"\"".into(), "2:13 daemon.state_dir: is empty"),
        ("no unit", "[daemon]\nshutdown_timeout = 5".into(), "2:20 daemon.shutdown_timeout: 5 has no unit"),
        ("unknown word", "[log]\nlevel = \"inof\"".into(), "2:9 log.level: \"inof\" is not one of them"),
        ("text for a boolean", "[http]\ndashboard = \"yes\"".into(), "2:13 http.dashboard: \"yes\" is text"),
        ("not an address", "[http]\nlisten = [\"[::1]:1\", \"localhost\"]".into(), "2:22 http.listen[1]: \"localhost\" is not understood"),
        (
            "address twice",
            "[http]\nlisten = [\"127.0.0.1:1\", \"localhost:1\"]".into(),
            "2:26 http.listen[1]: \"127.0.0.1:1\" is there twice",
        ),
        (
            "no key file",
            "[http]\napi_key_file = \"/no/such/key\"".into(),
            "2:16 http.api_key_file: \"/no/such/key\" could not be read: No such file or directory (os error 2)",
        ),
        ("empty key file", "[http]\napi_key_file = \"/dev/null\"".into(), "2:16 http.api_key_file: does not give a usable key"),
        ("a key in the file", "[http]\napi_key = \"k\"".into(), "2:11 http.api_key: a key does not belong here, where others can read it"),
        ("interval too short", "[sampling]\ninterval = \"99ms\"".into(), "2:12 sampling.interval: \"99ms\" is out of range"),
        ("a date", "[sampling]\ninterval = 2026-01-01".into(), "2:12 sampling.interval: 2026-01-01 is a date"),
        ("over 100 %", "[policy.cpu]\nhigh = \"101%\"".into(), "2:8 policy.cpu.high: \"101%\" is outside 0 % to 100 %"),
        ("nothing at all", "[policy.cpu]\nhigh = \"0%\"".into(), "2:8 policy.cpu.high: \"0%\" is outside 0 % to 100 %"),
        ("low over high", "[policy.memory]\nlow = \"80%\"".into(), "2:7 policy.memory.low: \"80%\" is not below high, \"80%\""),
        (
            "high over critical",
            "[policy.cpu]\nhigh = \"90%\"\ncritical = \"85%\"".into(),
            "3:12 policy.cpu.critical: \"85%\" is not above high, \"90%\"",
        ),
        (
            "sizes the wrong way round",
            "[policy.memory]\nhigh = \"300MB\"\nlow = \"350MB\"".into(),
            "3:7 policy.memory.low: \"350MB\" is not below high, \"300MB\"",
        ),
        (
            "a size and a share, known by the limit",
            "[policy.memory]\nlimit = \"500MB\"\nhigh = \"300MB\"\nlow = \"70%\"".into(),
            "4:7 policy.memory.low: \"70%\" is not below high, \"300MB\"",
        ),
        (
            "over the limit",
            "[policy.cpu]\nlimit = 1.5\nhigh = 2\ncritical = \"99%\"".into(),
            "3:8 policy.cpu.high: \"2\" is over the limit and never reached",
        ),
        ("unknown rung", "[policy.cpu]\non_high = [\"notify\", \"throtle\"]".into(), "2:22 policy.cpu.on_high[1]: \"throtle\" is no rung"),
        (
            "a rung of another resource",
            "[policy.cpu]\non_high = [\"shed\"]".into(),
            "2:12 policy.cpu.on_high[0]: \"shed\" does nothing for this resource",
        ),
        (
            "a rung twice",
            "[policy.cpu]\non_high = [\"notify\", \"notify\"]".into(),
            "2:22 policy.cpu.on_high[1]: \"notify\" is there twice",
        ),
        (
            "no such job",
            "[[policy.disks]]\npath = \"/\"\non_high = [\"job:tidy\"]".into(),
            "3:12 policy.disks[0].on_high[0]: there is no job \"tidy\"",
        ),
        ("a disk that is not there", "[[policy.disks]]\npath = \"/no/disk\"".into(), "2:8 policy.disks[0].path: \"/no/disk\" is not there"),
        ("a disk without a path", "[[policy.disks]]\nhigh = \"80%\"".into(), "1:1 policy.disks[0].path: is missing"),
        (
            "a disk twice",
            "[[policy.disks]]\npath = \"/\"\n[[policy.disks]]\npath = \"/.\"".into(),
            "4:8 policy.disks[1].path: \"/.\" is there twice",
        ),
        ("no command", "[workers.web]\npriority = 1".into(), "1:10 workers.web.command: is missing"),
        ("no command beside what asks for nothing", "[workers.web]\nmembers = \"tree\"".into(), "1:10 workers.web.command: is missing"),
        ("empty command", "[workers.web]\ncommand = []".into(), "2:11 workers.web.command: is empty"),
        ("a command line", "[workers.web]\ncommand = \"sh -c x\"".into(), "2:11 workers.web.command: \"sh -c x\" is text"),
        (
            "no such program",
            "[workers.web]\ncommand = [\"no-such-program\"]".into(),
            "2:12 workers.web.command[0]: \"no-such-program\" is in no folder of PATH",
        ),
        ("no such path", "[workers.web]\ncommand = [\"./no-such\"]".into(), "2:12 workers.web.command[0]: \"./no-such\" is not there"),
        (
            "not executable",
            "[workers.web]\ncommand = [\"/etc/passwd\"]".into(),
            "2:12 workers.web.command[0]: \"/etc/passwd\" is not executable",
        ),
        ("a folder as a program", "[workers.web]\ncommand = [\"/etc\"]".into(), "2:12 workers.web.command[0]: \"/etc\" is a folder"),
        (
            "not on its own PATH",
            "[workers.web]\ncommand = [\"sh\"]\nenv.PATH = \"/no/such\"".into(),
            "2:12 workers.web.command[0]: \"sh\" is in no folder of PATH",
        ),
        ("no such folder", worker("directory = \"/nope\""), "3:13 workers.web.directory: \"/nope\" is not there"),
        ("a file as a folder", worker("directory = \"/etc/passwd\""), "3:13 workers.web.directory: \"/etc/passwd\" is not a folder"),
        ("no such user", worker("user = \"rooot\""), "3:8 workers.web.user: there is no user \"rooot\" in /etc/passwd"),
        (
            "no such group",
            worker("group = \"nogroupx\"\nuser = \"root\""),
            "3:9 workers.web.group: there is no group \"nogroupx\" in /etc/group",
        ),
        ("a group for nobody", worker("group = \"root\""), "3:9 workers.web.group: has no user beside it"),
        ("the number that means leave it", worker("user = \"4294967295\""), "3:8 workers.web.user: there is no user \"4294967295\""),
        ("unknown signal", worker("shed_signal = \"SIGUSR3\""), "3:15 workers.web.shed_signal: \"SIGUSR3\" is no signal"),
        (
            "a signal nobody catches",
            worker("shed_signal = 9"),
            "3:15 workers.web.shed_signal: SIGKILL cannot be caught, or means something else",
        ),
        ("a signal that ends nothing", worker("stop.signal = \"STOP\""), "3:15 workers.web.stop.signal: SIGSTOP ends nothing"),
        ("too many", worker("replicas = 4097"), "3:12 workers.web.replicas: 4097 is over 4096"),
        ("no weight", worker("weight = 0"), "3:10 workers.web.weight: 0 is out of range"),
        ("a long stop", worker("longest_stop = \"11s\""), "3:16 workers.web.longest_stop: \"11s\" is out of range"),
        (
            "backoff backwards",
            worker("backoff = { first = \"1m\", longest = \"1s\" }"),
            "3:37 workers.web.backoff.longest: is shorter than first",
        ),
        (
            "recycled after the limit",
            worker("limits.memory = \"1GB\"\nrecycle.memory = \"1GB\""),
            "4:18 workers.web.recycle.memory: \"1GB\" is not below limits.memory, \"1GB\": the limit would strike first",
        ),
        ("a word that is no place for output", worker("output = \"journal\""), "3:10 workers.web.output: \"journal\" is not one of them"),
        ("output that is a number", worker("output = 3"), "3:10 workers.web.output: 3 is a whole number"),
        ("an unknown key of output", worker("output = { file = \"/tmp/x\", size = \"1MB\" }"), "3:29 workers.web.output.size: unknown key"),
        ("output without a file", worker("output = { keep = 1 }"), "3:1 workers.web.output.file: is missing"),
        ("output to a relative path", worker("output.file = \"x.log\""), "3:15 workers.web.output.file: \"x.log\" is a relative path"),
        ("output to a folder", worker("output.file = \"/tmp\""), "3:15 workers.web.output.file: \"/tmp\" is a folder"),
        (
            "output to what is only a folder's name",
            worker("output.file = \"/tmp/x/\""),
            "3:15 workers.web.output.file: \"/tmp/x/\" is a folder",
        ),
        (
            "output to a folder that is not there",
            worker("output.file = \"/no/such/log\""),
            "3:15 workers.web.output.file: \"/no/such/log\" is in a folder that is not there",
        ),
        ("output to a device", worker("output.file = \"/dev/null\""), "3:15 workers.web.output.file: \"/dev/null\" is no regular file"),
        (
            "output through a link",
            worker("output.file = \"/proc/self/exe\""),
            "3:15 workers.web.output.file: \"/proc/self/exe\" is a symbolic link, which is not followed",
        ),
        (
            "files that are too small",
            worker("output = { file = \"/tmp/x\", max_size = \"63kB\" }"),
            "3:40 workers.web.output.max_size: \"63kB\" is out of range",
        ),
        ("too many files", worker("output = { file = \"/tmp/x\", keep = 1001 }"), "3:36 workers.web.output.keep: 1001 is out of range"),
        (
            "the file of another worker",
            worker("output.file = \"/tmp/x\"\n[workers.zoo]\ncommand = [\"sh\"]\noutput.file = \"/tmp/x\""),
            "6:15 workers.zoo.output.file: \"/tmp/x\" is a file of worker \"web\"",
        ),
        (
            "an older file of another worker",
            worker("output.file = \"/tmp/x.5\"\n[workers.zoo]\ncommand = [\"sh\"]\noutput.file = \"/tmp/x\""),
            "3:15 workers.web.output.file: \"/tmp/x.5\" is a file of worker \"zoo\"",
        ),
        ("after nobody", worker("after = [\"wbe\"]"), "3:10 workers.web.after[0]: there is no worker \"wbe\""),
        ("after itself", worker("after = [\"web\"]"), "3:10 workers.web.after[0]: a worker cannot start after itself"),
        ("a bad name", "[workers.\"a.b\"]\ncommand = [\"sh\"]".into(), "1:10 workers.a.b: \"a.b\" cannot be a name here"),
        ("a section that comes later", "[gateway.web]\nlisten = \"0.0.0.0:1\"".into(), "1:2 gateway: not available in this version yet"),
        ("a socket without a port", worker("listen = [\"0.0.0.0:0\"]"), "3:11 workers.web.listen[0]: \"0.0.0.0:0\" has no port"),
        (
            "one address for two",
            format!("{}\n[workers.other]\ncommand = [\"sh\"]\nlisten = [\"0.0.0.0:81\"]", worker("listen = [\"0.0.0.0:81\"]")),
            "3:11 workers.web.listen[0]: \"0.0.0.0:81\" is listened on by worker \"other\" already",
        ),
        ("two ways to be ready", worker("ready = { notify = true, delay = \"1s\" }"), "3:34 workers.web.ready.delay: stands beside notify"),
        ("nothing to ask", worker("health.every = \"1s\""), "3:16 workers.web.health.every: has nothing to ask"),
        ("never done", worker("ready = { done = true }"), "3:18 workers.web.ready.done: is never reached"),
        ("https", worker("ready = { http = \"https://127.0.0.1/\" }"), "3:18 workers.web.ready.http: \"https://127.0.0.1/\" is encrypted"),
        ("a decimal mask", worker("umask = 27"), "3:9 workers.web.umask: "),
        ("processors backwards", worker("affinity = \"3-1\""), "3:12 workers.web.affinity: \"3-1\" counts backwards"),
        ("no such file of variables", worker("env_files = [\"/none/.env\"]"), "3:14 workers.web.env_files[0]: \"/none/.env\" is not there"),
        ("a lock for many", worker("lock = \"/run/x.lock\""), "3:8 workers.web.lock: is for a singleton alone"),
        ("many of one", worker("singleton = true\nreplicas = 2"), "4:12 workers.web.replicas: is more than a singleton can be"),
        ("a word for a limit", worker("rlimits.nofile = \"many\""), "3:18 workers.web.rlimits.nofile: "),
        ("no such limit", worker("rlimits.nofiles = 5"), "3:9 workers.web.rlimits.nofiles: "),
        (
            "requests of children",
            worker("members = \"children\"\nrecycle.requests = 5"),
            "4:20 workers.web.recycle.requests: cannot be told",
        ),
        (
            "two ways to adopt",
            legacy("adopt = { pidfile = \"/run/a.pid\", unit = \"a.service\" }"),
            "2:42 workers.legacy.adopt.unit: stands beside pidfile",
        ),
        ("no way to adopt", legacy("adopt = { may_end = true }"), "2:1 workers.legacy.adopt: says no way to find it"),
        ("started and adopted", worker("adopt = { unit = \"a.service\" }"), "2:11 workers.web.command: stands beside adopt"),
        ("a variable for whom nobody starts", adopted("env = { SECRET_WORD = \"x\" }"), "3:7 workers.legacy.env: stands beside adopt"),
        ("how many is not ours to say", adopted("replicas = 3"), "3:12 workers.legacy.replicas: stands beside adopt"),
        (
            "a place to replace it without a way",
            adopted("recycle.memory = \"1GB\""),
            "3:18 workers.legacy.recycle.memory: would replace it",
        ),
        ("a quota on another's group", adopted("throttle = \"cgroup\""), "3:12 workers.legacy.throttle: \"cgroup\" cannot hold it"),
        (
            "a pidfile somewhere",
            legacy("adopt = { pidfile = \"a.pid\" }"),
            "2:21 workers.legacy.adopt.pidfile: \"a.pid\" is a relative path",
        ),
        ("no unit", legacy("adopt = { unit = \"app\" }"), "2:18 workers.legacy.adopt.unit: \"app\" is no unit with processes"),
        ("all groups", legacy("adopt = { cgroup = \"/\" }"), "2:20 workers.legacy.adopt.cgroup: \"/\" is no group of its own"),
        ("out of the tree", legacy("adopt = { cgroup = \"/a/../..\" }"), "2:20 workers.legacy.adopt.cgroup: "),
        ("no expression", legacy("adopt = { match = \"(\" }"), "2:19 workers.legacy.adopt.match: \"(\" cannot be used"),
        ("everybody", legacy("adopt = { match = \".*\" }"), "2:19 workers.legacy.adopt.match: \".*\" matches every command line"),
        (
            "no such owner",
            legacy("adopt = { match = \"a\", owner = \"nobody-here\" }"),
            "2:32 workers.legacy.adopt.owner: there is no user",
        ),
        (
            "an owner for a file",
            legacy("adopt = { pidfile = \"/a\", owner = \"0\" }"),
            "2:35 workers.legacy.adopt.owner: is of no use for pidfile",
        ),
        (
            "no such way to restart",
            legacy("adopt = { pidfile = \"/a\", restart = [\"/none/restart\"] }"),
            "2:38 workers.legacy.adopt.restart[0]: \"/none/restart\" is not there",
        ),
        (
            "an expression for everybody",
            legacy("adopt = { match = \".+\", owner = \"0\" }"),
            "2:19 workers.legacy.adopt.match: \".+\" matches every command line",
        ),
        (
            "every address and one of them",
            worker("listen = [\"127.0.0.1:81\"]\n[workers.all]\ncommand = [\"sh\"]\nlisten = [\"0.0.0.0:81\"]"),
            "3:11 workers.web.listen[0]: \"127.0.0.1:81\" cannot be bound beside \"0.0.0.0:81\" of worker \"all\"",
        ),
        (
            "the daemon's own address",
            worker("listen = [\"127.0.0.1:81\"]\n[http]\nlisten = [\"127.0.0.1:81\"]"),
            "3:11 workers.web.listen[0]: \"127.0.0.1:81\" is listened on by http.listen already",
        ),
        ("nobody's port", worker("ready = { tcp = \"127.0.0.1:0\" }"), "3:17 workers.web.ready.tcp: has no port"),
        ("a number beyond all numbers", worker("weight = 99999999999999999999"), "3:10 workers.web.weight: "),
    ];
    for (name, file, expected) in cases {
        let problems = Case::new(&file).load().err().unwrap_or_else(|| panic!("{name}: accepted"));
        let told = told(&problems);
        assert_eq!(told.len(), 1, "{name}: {told:#?}");
        assert!(told[0].starts_with(expected), "{name}: {} instead of {expected}", told[0]);
        assert_eq!(problems.exit_code(), 78, "{name}");
    }
}

#[test]
fn all_problems_are_told_at_once_in_the_order_of_the_file() {
    let case = Case::new(
        "[log]\nlevel = \"loud\"\n[policy.cpu]\non_high = [\"throtle\", \"shed\"]\n[policy.memory]\nlow = \"85%\"\n[workers.b]\ncommand = [\"nope-b\"]\nafter = [\"a\"]\n\
         [workers.a]\ncomand = [\"sh\"]\nafter = [\"b\"]\n[jobs.x]\n",
    )
    .env("PLIMSOLL_SAMPLING__SCOPE", "pod")
    .set("policy.cpu.sustain=soon")
    .set("nonsense");
    let expected = [
        "2:9 log.level: \"loud\" is not one of them",
        "4:12 policy.cpu.on_high[0]: \"throtle\" is no rung",
        "4:23 policy.cpu.on_high[1]: \"shed\" does nothing for this resource",
        "6:7 policy.memory.low: \"85%\" is not below high, \"80%\"",
        "8:12 workers.b.command[0]: \"nope-b\" is in no folder of PATH",
        "11:1 workers.a.comand: unknown key",
        "12:9 workers.a.after: the order is a circle: a → b → a",
        "13:7 jobs.x.kind: is missing",
        "--set nonsense : is not key=value",
        "environment PLIMSOLL_SAMPLING__SCOPE sampling.scope: \"pod\" is not one of them",
        "--set policy.cpu.sustain policy.cpu.sustain: \"soon\" is not understood",
    ];
    assert_eq!(told(&case.bad()), expected);
}

#[test]
fn a_problem_is_shown_with_its_line_and_what_was_meant() {
    let problems = Case::new("# täglich\n[policy.memory]\n\thgih = \"8€%\"  # hoch\n").bad();
    let expected =
        "plimsoll.toml:3:2: error: policy.memory.hgih: unknown key\n  3 |  hgih = \"8€%\"  # hoch\n    |  ^^^^\n    = did you mean `high`?";
    assert_eq!(problems.to_string(), expected);
    assert!(problems.render(true).contains("\u{1b}["), "colour was asked for");
    assert!(!problems.render(false).contains('\u{1b}'), "colour was not asked for");
}

#[test]
fn of_a_long_line_the_part_that_matters_is_shown() {
    let file = format!("log = {{ level = \"info\", {}levle = \"x\" }}\n", " ".repeat(500));
    let problems = Case::new(&file).bad();
    let shown = problems.to_string();
    assert!(shown.starts_with("plimsoll.toml:1:525: error: log.levle: unknown key"), "{shown}");
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines[1].find("levle"), lines[2].find('^'), "{shown}");
    assert!(lines[1].len() < 200 && lines[2].ends_with("^^^^^"), "{shown}");
}

#[test]
fn nesting_without_end_is_a_problem_and_no_crash() {
    let deep = "a.".repeat(5_000);
    for case in [
        Case::new(&format!("{deep}a = 1")),
        Case::new(&format!("[{deep}a]")),
        Case::new(&format!("a = {}{}", "[".repeat(5_000), "]".repeat(5_000))),
        Case::new("").set(&format!("{deep}a=1")),
        Case::new("").set(&format!("a={}", "[".repeat(5_000))),
        Case::new("").env(&format!("PLIMSOLL_{}A", "A__".repeat(5_000)), "1"),
    ] {
        assert_eq!(case.bad().exit_code(), 78);
    }
}

#[test]
fn mistakes_of_syntax_have_a_place_too() {
    for (name, file, place) in [
        ("no value", "[log]\nlevel =\n", 2),
        ("open text", "[log]\nlevel = \"info\nformat = \"json\"\n", 2),
        ("key twice", "[log]\nlevel = \"info\"\nlevel = \"warn\"\n", 3),
        ("table twice", "[workers.web]\ncommand = [\"sh\"]\n[workers.web]\n", 3),
    ] {
        let problems = Case::new(file).bad();
        let Some(Place::Text { line, .. }) = problems.list.first().map(|problem| &problem.place) else {
            panic!("{name}: no place in {problems}");
        };
        assert_eq!(*line, place, "{name}: {problems}");
        assert!(!problems.list[0].message.is_empty(), "{name}");
    }
}

#[test]
fn files_that_are_not_there_or_not_text_get_one_line() {
    let mut case = Case::new("");
    case.sources.file = Some(PathBuf::from("other.toml"));
    assert_eq!(case.bad().to_string(), "other.toml: error: there is no such file");
    case.sources.file = None;
    let case = case.env("PLIMSOLL_CONFIG", "/no/such.toml");
    assert_eq!(case.bad().to_string(), "/no/such.toml: error: there is no such file (named by PLIMSOLL_CONFIG)");
    let case = Case::new("");
    std::fs::write(case.folder.path().join("plimsoll.toml"), b"[log]\nlevel = \"\xff\"\n").expect("a writable folder");
    assert_eq!(case.bad().to_string(), "plimsoll.toml: error: line 2 is not UTF-8 text");
    let mut case = Case::new("");
    case.sources.file = Some(PathBuf::from("/dev/zero"));
    assert_eq!(case.bad().to_string(), "/dev/zero: error: is larger than 1 MiB");
    case.sources.file = Some(PathBuf::from("/"));
    assert_eq!(
        case.bad().to_string(),
        "/: error: could not be read: Is a directory (os error 21)\n   = allowed: a file; container engines make a folder in its place when \
         what is to be mounted there is not on the machine"
    );
}

#[test]
fn values_that_ask_for_nothing_are_taken() {
    let file = format!("{WORKER}listen = []\nmembers = \"tree\"\nrecycle.leak = false\n[jobs]\n[gateway]\n");
    assert_eq!(Case::new(&file).good().settings.workers.len(), 1);
}

#[test]
fn addresses_of_the_two_families_stand_side_by_side() {
    let case = Case::new(&format!("{WORKER}listen = [\"0.0.0.0:81\", \"[::]:81\"]"));
    assert_eq!(case.good().settings.workers[0].listen.len(), 2);
}

#[test]
fn two_ways_to_one_file_of_output_are_one() {
    let case = Case::new("");
    let here = case.folder.path();
    std::fs::create_dir(here.join("log")).expect("a folder");
    std::os::unix::fs::symlink("log", here.join("again")).expect("a link");
    let output = |folder: &str| format!("output = {{ file = \"{}/{folder}/web.log\" }}", here.display());
    let text = format!("{WORKER}{}\n[workers.other]\ncommand = [\"sh\"]\n{}\n", output("log"), output("again"));
    std::fs::write(here.join("plimsoll.toml"), text).expect("a writable folder");
    let problems = case.bad();
    assert!(told(&problems).iter().any(|line| line.contains("web.log")), "{problems}");
}

#[test]
fn later_layers_win_key_by_key() {
    let file = "[policy.cpu]\nhigh = \"81%\"\nlow = \"11%\"\nsustain = \"1s\"\n[policy.memory]\nhigh = \"82%\"\n";
    let case = Case::new(file)
        .env("RESOURCE_CPU_THRESHOLD", "83.5")
        .env("RESOURCE_MEMORY_THRESHOLD", "83")
        .env("PLIMSOLL_POLICY__MEMORY__HIGH", "84%")
        .env("PLIMSOLL_POLICY__CPU__SUSTAIN", "2s")
        .set("policy.cpu.sustain=3s");
    let loaded = case.good();
    let policy = &loaded.settings.policy;
    assert_eq!(policy.cpu.rule.high, Line::Share(0.835));
    assert_eq!(policy.cpu.rule.low, Line::Share(0.11));
    assert_eq!(policy.cpu.rule.sustain, Duration::from_secs(3));
    assert_eq!(policy.memory.rule.high, Line::Share(0.84));
    for (key, origin) in [
        ("policy.cpu.high", "environment RESOURCE_CPU_THRESHOLD"),
        ("policy.cpu.low", "plimsoll.toml:3:1"),
        ("policy.cpu.sustain", "--set policy.cpu.sustain"),
        ("policy.memory.high", "environment PLIMSOLL_POLICY__MEMORY__HIGH"),
        ("policy.memory.critical", "built-in"),
    ] {
        assert_eq!(loaded.origin(key), origin, "{key}");
        assert!(loaded.effective().iter().any(|setting| setting.key == key && setting.origin == origin), "{key}");
    }
}

#[test]
fn low_and_critical_follow_a_high_that_leaves_them_no_room() {
    let share = |percent: f64| Line::Share(percent / 100.0);
    for (high, low, critical) in [
        ("80%", share(70.0), Some(share(92.0))),
        ("71%", share(70.0), Some(share(92.0))),
        ("70%", share(60.0), Some(share(92.0))),
        ("15%", share(7.5), Some(share(92.0))),
        ("95%", share(70.0), Some(share(97.5))),
        ("100%", share(70.0), None),
        ("400MB", Line::Amount(350e6), Some(share(92.0))),
    ] {
        let loaded = Case::new("").set(&format!("policy.memory.high={high}")).good();
        let rule = &loaded.settings.policy.memory.rule;
        assert_eq!((rule.low, rule.critical), (low, critical), "{high}");
    }
    let loaded = Case::new("").env("RESOURCE_CPU_THRESHOLD", "50").good();
    assert_eq!(loaded.settings.policy.cpu.rule.low, share(40.0));
    assert_eq!(loaded.origin("policy.cpu.low"), "follows policy.cpu.high");
}

#[test]
fn plain_names_are_honoured_below_our_own() {
    let loaded = Case::new("").env("RESOURCE_MONITORING_INTERVAL", "90").good();
    assert_eq!(loaded.settings.sampling.report_every, Some(Duration::from_secs(90)));
    let loaded = Case::new("").env("RESOURCE_MONITORING_INTERVAL", "90").env("RESOURCE_MONITORING_ENABLED", "False").good();
    assert!(loaded.settings.policy.dry_run && loaded.settings.sampling.report_every.is_none());
    let loaded = Case::new("").env("RESOURCE_MONITORING_ENABLED", "false").env("PLIMSOLL_POLICY__DRY_RUN", "false").good();
    assert!(!loaded.settings.policy.dry_run);
    let cases = [
        ("RESOURCE_CPU_THRESHOLD", "hot"),
        ("RESOURCE_MEMORY_THRESHOLD", "101"),
        ("RESOURCE_MONITORING_INTERVAL", "0"),
        ("RESOURCE_MONITORING_ENABLED", "maybe"),
    ];
    for (name, value) in cases {
        let problems = Case::new("").env(name, value).bad();
        assert_eq!(told(&problems), [format!("environment {name} : {value:?} is not understood")]);
    }
}

#[test]
fn gunicorn_workers_counts_where_nothing_else_does() {
    let replicas =
        |loaded: &Loaded, name: &str| loaded.settings.workers.iter().find(|worker| &*worker.name == name).map(|worker| worker.replicas);
    let two = "[workers.web]\ncommand = [\"sh\"]\n[workers.queue]\ncommand = [\"sh\"]\n";
    for (name, file, worker, expected) in [
        ("the only one", "[workers.api]\ncommand = [\"sh\"]\n", "api", Replicas::Count(3)),
        ("called web", two, "web", Replicas::Count(3)),
        ("not the other", two, "queue", Replicas::Count(1)),
        ("set in the file", "[workers.api]\ncommand = [\"sh\"]\nreplicas = \"cpus+1\"\n", "api", Replicas::Cpus { plus: 1 }),
    ] {
        let loaded = Case::new(file).env("GUNICORN_WORKERS", "3").good();
        assert_eq!(replicas(&loaded, worker), Some(expected), "{name}");
    }
    let loaded = Case::new("").env("GUNICORN_WORKERS", "3").command(&["sh"]).good();
    assert_eq!(replicas(&loaded, "main"), Some(Replicas::Count(3)));
    let loaded = Case::new("").env("GUNICORN_WORKERS", "3").env("PLIMSOLL_WORKERS__MAIN__REPLICAS", "2").command(&["sh"]).good();
    assert_eq!(replicas(&loaded, "main"), Some(Replicas::Count(2)));
    // No worker, no meaning: an application beside us may have it in its environment.
    assert!(Case::new("").env("GUNICORN_WORKERS", "many").load().is_ok());
}

#[test]
fn the_retention_of_sessions_is_that_of_the_application_where_nothing_else_is_said() {
    use plimsoll::config::jobs::Kind;
    let keeps = |loaded: &Loaded| -> Vec<(String, u64)> {
        let days = |job: &plimsoll::config::jobs::Job| match &job.kind {
            Kind::Sessions(sessions) => Some((job.name.to_string(), sessions.keep.as_secs() / 86_400)),
            _ => None,
        };
        loaded.settings.jobs.iter().filter_map(|job| days(job)).collect()
    };
    let job = |name: &str, more: &str| format!("[jobs.{name}]\nkind = \"sessions\"\ndatabase = \"/app/{name}.db\"\n{more}\n");
    let file =
        [job("one", ""), job("other", "keep = \"3d\""), "[jobs.audio]\nkind = \"files\"\npaths = [\"/app/audio\"]\nkeep = \"1d\"\n".into()]
            .concat();
    let loaded = Case::new(&file).env("SESSION_RETENTION_DAYS", "30").good();
    assert_eq!(keeps(&loaded), [("one".to_owned(), 30), ("other".to_owned(), 3)]);
    let loaded = Case::new(&file).env("SESSION_RETENTION_DAYS", "30").env("PLIMSOLL_JOBS__ONE__KEEP", "5d").good();
    assert_eq!(keeps(&loaded), [("one".to_owned(), 5), ("other".to_owned(), 3)]);
    for wrong in ["0", "-1", "7d", "soon", "99999999999"] {
        let problems = Case::new(&file).env("SESSION_RETENTION_DAYS", wrong).bad();
        assert_eq!(told(&problems), [format!("environment SESSION_RETENTION_DAYS : {wrong:?} is not understood")]);
    }
    assert!(Case::new("").env("SESSION_RETENTION_DAYS", "soon").load().is_ok());
}

#[test]
fn a_command_becomes_worker_main_and_the_file_speaks_about_it() {
    let file = "[workers.main]\ncommand = [\"replaced\"]\npriority = 5\n[workers.other]\ncommand = [\"sh\"]\n";
    let loaded = Case::new(file).set("workers.main.weight=7").command(&["sh", "-c", "a,b"]).good();
    let main = loaded.settings.workers.iter().find(|worker| &*worker.name == "main").expect("worker main");
    assert_eq!(main.command, ["sh", "-c", "a,b"]);
    assert_eq!((main.priority, main.weight), (5, 7));
    assert_eq!(loaded.settings.workers.len(), 2);
    // What is not there is found out by starting it, with a shell's codes: it is not the file that is wrong.
    assert_eq!(Case::new("").command(&["no-such-program"]).good().settings.workers.len(), 1);
}

#[test]
fn whoever_only_looks_at_the_file_need_not_know_the_command() {
    let file = "[workers.main]\nstop = { within = \"2s\" }\n";
    assert_eq!(told(&Case::new(file).bad()), ["1:10 workers.main.command: is missing"]);
    let mut case = Case::new(file);
    case.sources.beside = true;
    assert_eq!(case.good().unseen, ["workers.main.command: is not set; it is to stand after `plimsoll run --`"]);
    // It is for `main` alone, and no excuse for an empty one.
    for file in ["[workers.web]\n", "[workers.main]\ncommand = []\n"] {
        let mut case = Case::new(file);
        case.sources.beside = true;
        assert_eq!(case.bad().list.len(), 1, "{file}");
    }
}

#[test]
fn the_environment_reaches_every_kind_of_key() {
    let case = Case::new("[workers.vector-db]\ncommand = [\"sh\"]\nenv = { KEEP = \"1\" }\n")
        .env("PLIMSOLL_WORKERS__VECTOR_DB__REPLICAS", "cpus+2")
        .env("PLIMSOLL_WORKERS__VECTOR_DB__ENV__Mixed", "1_0")
        .env("PLIMSOLL_WORKERS__VECTOR_DB__DIRECTORY", "/")
        .env("PLIMSOLL_WORKERS__VECTOR_DB__USER", "0")
        .env("PLIMSOLL_WORKERS__VECTOR_DB__OUTPUT__FILE", "/tmp/vector-db.log")
        .env("PLIMSOLL_WORKERS__VECTOR_DB__OUTPUT__KEEP", "7")
        .env("PLIMSOLL_HTTP__LISTEN", "127.0.0.1:1, [::1]:2")
        .env("PLIMSOLL_POLICY__DISKS", "[{ path = \"/\", high = \"60%\" }]")
        .env("PLIMSOLL_POLICY__MEMORY__ON_HIGH", "[\"notify\"]")
        .env("PLIMSOLL_CONFIG", "")
        .env("PLIMSOLL_SERVICE_HOST", "10.0.0.1");
    let settings = case.good().settings;
    let worker = &settings.workers[0];
    assert_eq!(worker.replicas, Replicas::Cpus { plus: 2 });
    assert_eq!(worker.env.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>(), ["KEEP=1", "Mixed=1_0"]);
    assert_eq!(worker.user.as_deref(), Some("0"));
    let file = worker.output.file().expect("a file");
    assert_eq!((file.path.as_path(), file.max_size, file.keep), (std::path::Path::new("/tmp/vector-db.log"), 10_000_000, 7));
    assert_eq!(settings.http.listen.len(), 2);
    assert_eq!(settings.policy.memory.rule.on_high, [Rung::Notify]);
    assert_eq!(settings.policy.disks[0].rule.low, Line::Share(0.55));
    let problems = Case::new("").env("PLIMSOLL_POLICY_CPU_HIGH", "70%").env("PLIMSOLL_POLICY__CPU__HIHG", "70%").bad();
    let meant: Vec<_> = problems.list.iter().map(|problem| problem.suggestion.as_deref().unwrap_or("")).collect();
    assert_eq!(meant, ["PLIMSOLL_POLICY__CPU__HIGH", "high"]);
}

#[test]
fn relative_paths_start_in_the_working_folder() {
    let case = Case::new("[http]\napi_key_file = \"key\"\n[workers.web]\ncommand = [\"./run\"]\ndirectory = \"app\"\n");
    let app = case.folder.path().join("app");
    std::fs::create_dir(&app).expect("a writable folder");
    std::fs::write(case.folder.path().join("key"), "k3y-of-file\nsecond line\n").expect("a writable folder");
    std::os::unix::fs::symlink("/bin/sh", app.join("run")).expect("a writable folder");
    let settings = case.good().settings;
    assert_eq!(settings.workers[0].directory.as_deref(), Some(app.as_path()));
    assert_eq!(settings.http.api_key.as_ref().map(|key| key.reveal()), Some("k3y-of-file"));
    assert_eq!(settings.file, Some(case.folder.path().join("plimsoll.toml")));
}

#[test]
fn secrets_are_never_shown() {
    const SECRET: &str = "s3cr3t-value";
    let file = format!("[workers.web]\ncommand = [\"sh\"]\nenv = {{ TOKEN = \"{SECRET}\", \"a.b\" = \"{SECRET}\" }}\n");
    let loaded = Case::new(&file).env("PLIMSOLL_HTTP__API_KEY", SECRET).good();
    assert_eq!(loaded.settings.http.api_key.as_ref().map(|key| key.reveal()), Some(SECRET));
    assert_eq!(loaded.settings.workers[0].env.get("a.b").map(String::as_str), Some(SECRET));
    for shown in [loaded.to_toml(true), loaded.to_json().to_string(), format!("{:?}", loaded.settings), format!("{:?}", loaded.effective())]
    {
        assert!(!shown.contains(SECRET), "{shown}");
    }
    assert_eq!(loaded.origin("workers.web.env.a.b"), "plimsoll.toml:3:33");
    let bad = [
        Case::new(&format!("[http]\napi_key = \"{SECRET}\"")),
        Case::new(&format!("[workers.web]\ncommnd = [\"sh\"]\nenv = {{ TOKEN = [\"{SECRET}\"] }}\n")),
        Case::new(&format!("[workers.web]\ncommand = [\"sh\"]\nenv = {{ TOKEN = \"{SECRET}\" }} trailing\n")),
        Case::new(&format!("[workers.web]\ncommand = [\"sh\"]\nenv = [\"TOKEN={SECRET}\"]\n")),
        Case::new(WORKER).set(&format!("workers.web.env=TOKEN={SECRET}")),
        Case::new(WORKER).set(&format!("workers.web.env.TOKEN=[\"{SECRET}\"]")),
        Case::new("").set(&format!("http.api_key={SECRET}")),
        Case::new("").env("PLIMSOLL_HTTP__API_KEY", &format!("{SECRET} with blanks")),
    ];
    for case in bad {
        let problems = case.bad();
        let json = serde_json::to_string(&problems.list).expect("plain data");
        assert!(!problems.to_string().contains(SECRET) && !json.contains(SECRET), "{problems}");
    }
}

#[test]
fn a_reload_names_what_changed() {
    let before = Case::new(WORKER).good().settings;
    let file = "[log]\nlevel = \"debug\"\n[policy.cpu]\nhigh = \"81%\"\n[[policy.disks]]\npath = \"/\"\n[workers.web]\ncommand = [\"sh\"]\nstop.within = \"5s\"\n[workers.new]\ncommand = [\"sh\"]\n";
    let after = Case::new(file).good().settings;
    assert_eq!(before.diff(&after), ["log.level", "policy.cpu.high", "policy.disks[0]", "workers.new", "workers.web.stop.within"]);
    assert!(after.diff(&after).is_empty());
}

#[test]
fn a_reload_does_not_take_a_lost_file_for_an_empty_one() {
    let case = Case::new(WORKER);
    let running = case.good().settings;
    let file = case.folder.path().join("plimsoll.toml");
    std::fs::write(&file, "[workers.web]\ncommand = [\"sh\"]\nweight = 5\n").expect("a writable folder");
    let loaded = config::reload(&case.sources, &running).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(running.diff(&loaded.settings), ["workers.web.weight"]);
    std::fs::remove_file(&file).expect("a writable folder");
    let problems = config::reload(&case.sources, &running).expect_err("the file is gone");
    assert_eq!(problems.to_string(), format!("{}: error: there is no such file", file.display()));
    // A first start without a file is fine, and so is a reload once there is one.
    let running = case.good().settings;
    std::fs::write(&file, WORKER).expect("a writable folder");
    assert_eq!(config::reload(&case.sources, &running).map(|loaded| loaded.settings.workers.len()).ok(), Some(1));
}

#[test]
fn files_of_other_systems_are_read() {
    let settings = Case::new("\u{feff}[log]\r\nlevel = \"debug\"\r\n").good().settings;
    assert_eq!(settings.log.level, config::settings::LogLevel::Debug);
    assert_eq!(told(&Case::new("[log]\r\nlevle = \"debug\"\r\n").bad()), ["2:1 log.levle: unknown key"]);
}

#[test]
fn what_is_shown_loads_to_the_same_settings() {
    let file = "[policy.memory]\nhigh = \"350MB\"\n[[policy.disks]]\npath = \"/\"\n[[policy.disks]]\npath = \"/proc\"\nhigh = \"1TB\"\n[workers.web]\ncommand = [\"sh\", \"-c\", \"a \\\"b\\\" \\\\ \\u007f\"]\nreplicas = \"cpus+1\"\nuser = 0\n\
                output = { file = \"/tmp/web.log\", max_size = \"1MiB\" }\n\
                [workers.web.limits]\nmemory = \"1.5GiB\"\ncpu = \"150%\"\n";
    let first = Case::new(file).good();
    let second = Case::new(&first.to_toml(true)).good();
    assert_eq!(first.settings.diff(&second.settings), Vec::<String>::new());
}

/// Pieces of settings files, good and bad.
fn fragment() -> impl Strategy<Value = String> {
    let key = prop::sample::select(vec![
        "policy", "cpu", "high", "low", "workers", "web", "env", "command", "disks", "http", "listen", "jobs", "log", "x",
    ]);
    let value = prop_oneof![
        Just("\"80%\"".to_owned()),
        Just("[]".to_owned()),
        Just("[{ path = \"/\" }, 1]".to_owned()),
        Just("{ web = { command = [\"sh\"] } }".to_owned()),
        any::<i64>().prop_map(|number| number.to_string()),
        any::<String>().prop_map(|text| format!("{text:?}")),
        any::<String>(),
    ];
    let keys = prop::collection::vec(key, 1..4).prop_map(|keys| keys.join("."));
    prop_oneof![
        (keys.clone(), value).prop_map(|(keys, value)| format!("{keys} = {value}\n")),
        keys.clone().prop_map(|keys| format!("[{keys}]\n")),
        keys.prop_map(|keys| format!("[[{keys}]]\n")),
        any::<String>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_input_panics_and_every_refusal_says_something(
        parts in prop::collection::vec(fragment(), 0..6),
        variable in "PLIMSOLL_[A-Z_]{0,12}__[A-Z_]{0,12}",
        value in any::<String>(),
        argument in any::<String>(),
    ) {
        let case = Case::new(&parts.concat()).env(&variable, &value).set(&argument);
        if let Err(problems) = case.load() {
            prop_assert!(!problems.list.is_empty());
            prop_assert!(problems.list.iter().all(|problem| !problem.message.is_empty()));
            prop_assert!(!problems.render(true).is_empty());
        }
    }
}

#[test]
fn limits_from_files_and_the_scope_of_a_worker_are_taken_in_every_form() {
    let loaded = Case::new(&format!(
        "{WORKER}[sampling]\nscope = {{ worker = \"web\" }}\n[policy.memory]\nlimit = {{ file = \"limits/memory\", divisor = \"1Mi\" }}\n"
    ))
    .env("PLIMSOLL_POLICY__CPU__LIMIT__FILE", "/etc/podlimits/cpu")
    .set("policy.cpu.limit.divisor=1m")
    .good();
    let settings = &loaded.settings;
    assert_eq!(settings.sampling.scope, Scope::Worker("web".into()));
    let memory = settings.policy.memory.limit.file().expect("a file");
    assert!(memory.path.is_absolute() && memory.path.ends_with("limits/memory"), "{memory:?}");
    assert_eq!((memory.unit, settings.policy.memory.limit.set()), (1 << 20, None));
    assert_eq!(settings.policy.cpu.limit.file().map(|file| (file.path.as_path(), file.unit)), Some((Path::new("/etc/podlimits/cpu"), 1)));
    let shown = loaded.to_toml(true);
    assert!(shown.contains("[policy.memory.limit]\n") && shown.contains("divisor = \"1Mi\"  # plimsoll.toml:"), "{shown}");
    assert!(shown.contains("divisor = \"1m\"  # --set policy.cpu.limit.divisor"), "{shown}");
    assert!(shown.contains("[sampling.scope]\nworker = \"web\""), "{shown}");
    // One is one where nothing else is said, as in Kubernetes.
    let usual = Case::new("[policy]\ncpu.limit = { file = \"/c\" }\nmemory.limit = { file = \"/m\", divisor = 1 }").good();
    let (cpu, memory) = (usual.settings.policy.cpu.limit, usual.settings.policy.memory.limit);
    assert_eq!((cpu.file().map(|file| file.unit), memory.file().map(|file| file.unit)), (Some(1000), Some(1)));
}

#[test]
fn what_else_a_limit_may_be_is_said() {
    let problems = Case::new("[policy.cpu]\nlimit = \"lots\"").bad();
    let allowed = problems.list[0].allowed.clone().unwrap_or_default();
    assert_eq!(
        allowed,
        "\"auto\", or a number of processors such as 1.5 or \"150%\", more than 0 and at most 4096, or a table with divisor, file"
    );
    let problems = Case::new("[sampling]\nscope = \"containr\"").bad();
    assert_eq!(problems.list[0].suggestion.as_deref(), Some("container"));
    assert_eq!(problems.list[0].allowed.as_deref(), Some("\"auto\", \"container\", \"host\", or a table with worker"));
}
