//! What is wrong is refused with its place and the right code; nothing is half started and nothing is left behind.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Output;

use crate::stage::{Stage, skip};

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// One line on standard error that begins with the program's name.
#[track_caller]
fn assert_one_line(output: &Output, code: i32, says: &str) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    let own: Vec<&str> = text.lines().filter(|line| line.starts_with("plimsoll: ")).collect();
    assert_eq!((own.len(), text.lines().count()), (1, 1), "one line: {text}");
    assert!(text.contains(says), "{says}: {text}");
}

#[track_caller]
fn assert_nothing_started(stage: &Stage) {
    for left in ["state", "run", "started"] {
        assert!(!stage.path(left).exists(), "{left} was made");
    }
}

#[test]
fn a_bad_file_is_refused_with_its_place_and_nothing_is_started() {
    let touch = "[workers.first]\ncommand = [\"sh\", \"-c\", \"touch {here}/started\"]\n";
    let cases: [(&str, &str, &[&str]); 12] = [
        ("not TOML", "[policy", &["1:8"]),
        ("an unknown key", "[policy.cpu]\nhihg = \"80%\"", &["2:1: ", "high"]),
        ("low not below high", "[policy.cpu]\nhigh = \"60%\"\nlow = \"65%\"", &["3:7"]),
        ("an unknown signal", "[workers.web]\ncommand = [\"sh\"]\nstop = { signal = \"SIGFOO\" }", &["3:19", "SIGFOO"]),
        ("a disk that is not there", "[[policy.disks]]\npath = \"/nonexistent/folder\"", &["2:8", "/nonexistent/folder"]),
        ("a worker twice", "[workers.web]\ncommand = [\"sh\"]\n[workers.web]\ncommand = [\"sh\"]", &["3:10"]),
        ("a command that is not there", "[workers.web]\ncommand = [\"/nonexistent/web\"]", &["2:12", "/nonexistent/web"]),
        ("an unknown user", "[workers.web]\ncommand = [\"sh\"]\nuser = \"no-such-user\"", &["3:8", "no-such-user"]),
        ("a cycle", "[workers.a]\ncommand = [\"sh\"]\nafter = [\"b\"]\n[workers.b]\ncommand = [\"sh\"]\nafter = [\"a\"]", &["after"]),
        ("a duration without a unit", "[sampling]\ninterval = \"5 parsecs\"", &["2:12", "parsecs"]),
        ("an address that is none", "[http]\nlisten = [\"localhost\"]", &["2:11"]),
        ("several at once", "[policy.cpu]\nhigh = \"180%\"\n[sampling]\nscope = \"galaxy\"", &["2:8", "4:9", "galaxy"]),
    ];
    for (name, settings, says) in cases {
        // What is good in the file is not started either.
        let stage = Stage::new(&format!("{settings}\n{touch}"));
        for command in ["check", "run"] {
            let output = stage.ask(&[command]);
            let text = stderr(&output);
            assert_eq!(output.status.code(), Some(78), "{name}, {command}: {text}");
            let file = stage.path("plimsoll.toml").display().to_string();
            for part in says {
                assert!(text.contains(part) && text.contains(&format!("{file}:")), "{name}, {command}: no {part:?} in\n{text}");
            }
        }
        assert_nothing_started(&stage);
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let stage = Stage::new("");
    fs::remove_file(stage.path("plimsoll.toml")).expect("it is ours");
    for command in ["check", "run"] {
        let output = stage.ask(&[command]);
        assert_eq!(output.status.code(), Some(78), "{command}: {}", stderr(&output));
        assert!(stderr(&output).contains("plimsoll.toml"), "{}", stderr(&output));
    }
    assert_nothing_started(&stage);
}

#[test]
fn a_file_that_may_not_be_read_is_a_matter_of_permission() {
    if !rustix::process::geteuid().is_root() {
        return skip("not root, so nobody else can be played");
    }
    let stage = Stage::new("");
    fs::set_permissions(stage.path("plimsoll.toml"), fs::Permissions::from_mode(0o600)).expect("it is ours");
    for name in ["check", "run"] {
        let mut command = stage.plimsoll(&[name]);
        // nobody
        command.uid(65534).gid(65534);
        match command.output() {
            Ok(output) => {
                assert_eq!(output.status.code(), Some(77), "{name}: {}", stderr(&output));
                assert!(stderr(&output).contains("plimsoll.toml"), "{}", stderr(&output));
            }
            // The build folder may be closed to others.
            Err(error) => return skip(&format!("the binary cannot be run as somebody else: {error}")),
        }
    }
    assert_nothing_started(&stage);
}

#[test]
fn a_port_in_use_is_one_line() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("it is bound").to_string();
    let mut stage = Stage::new("[workers.first]\ncommand = [\"sh\", \"-c\", \"touch {here}/started\"]");
    stage.set = vec![format!("http.listen=[\"{address}\"]")];
    assert_one_line(&stage.ask(&["run"]), 1, &address);
    assert!(!stage.path("started").exists() && !stage.socket().exists());
}

#[test]
fn a_second_daemon_on_the_same_folders_is_refused_and_the_first_goes_on() {
    for shared in ["daemon.state_dir", "daemon.runtime_dir"] {
        let stage = Stage::running("[workers.web]\ncommand = {hungry}");
        let pid = stage.pid().to_string();
        let mut second = Stage::new("[workers.first]\ncommand = [\"sh\", \"-c\", \"touch {here}/started\"]");
        let folder = stage.path(if shared == "daemon.state_dir" { "state" } else { "run" });
        second.set.push(format!("{shared}={}", folder.display()));
        let output = second.ask(&["run"]);
        assert_one_line(&output, 1, &format!("pid {pid}"));
        assert!(!second.path("started").exists(), "{shared}");
        assert!(!second.socket().exists(), "{shared}: a socket of a daemon that did not start");
        assert!(stage.ask(&["health"]).status.success(), "{shared}: the first goes on");
        assert_eq!(stage.status()["daemon"]["pid"].as_u64().map(|pid| pid.to_string()), Some(pid), "{shared}");
    }
}

#[test]
fn a_question_without_a_daemon_is_one_line() {
    let stage = Stage::new("");
    for command in ["status", "reload", "health"] {
        assert_one_line(&stage.ask(&[command]), 69, "no daemon is running");
    }
    assert_nothing_started(&stage);
}

#[test]
fn a_command_line_that_makes_no_sense_is_a_matter_of_usage() {
    let stage = Stage::new("");
    for args in [&["frobnicate"][..], &["status", "--no-such-flag"], &["status", "--output", "morse"]] {
        let output = stage.ask(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
    }
    let output = stage.ask(&["check", "--set", "policy.cpu.hihg=80%"]);
    assert_eq!(output.status.code(), Some(78), "{}", stderr(&output));
    assert_nothing_started(&stage);
}
