//! A daemon beside an application that is not its own: its limits from files that somebody else changes, its container seen through
//! its process.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use crate::adopt::Stranger;
use crate::stage::{Stage, wait_for};

const LIMITS: &str = r#"
[sampling]
interval = "200ms"
[policy.memory]
limit = { file = "{here}/volume/memory", divisor = "1" }
[policy.cpu]
limit = { file = "{here}/volume/cpu", divisor = "1m" }
"#;

/// Replaces a whole volume as the kubelet does: a folder beside, and one link that is moved over.
fn swap(volume: &Path, memory: &str, cpu: &str) {
    static SWAPS: AtomicUsize = AtomicUsize::new(0);
    let fresh = format!("..{}", SWAPS.fetch_add(1, Ordering::Relaxed));
    let old = fs::read_link(volume.join("..data")).ok();
    fs::create_dir_all(volume.join(&fresh)).expect("a folder of ours");
    fs::write(volume.join(&fresh).join("memory"), memory).expect("a folder of ours");
    fs::write(volume.join(&fresh).join("cpu"), cpu).expect("a folder of ours");
    symlink(&fresh, volume.join("..data_tmp")).expect("a folder of ours");
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).expect("a folder of ours");
    for name in ["memory", "cpu"] {
        let _ = symlink(format!("..data/{name}"), volume.join(name));
    }
    if let Some(old) = old {
        fs::remove_dir_all(volume.join(old)).expect("a folder of ours");
    }
}

fn changed(stage: &Stage, resource: &str, now: f64) -> Value {
    stage.event("limit_changed", |event| event["resource"] == resource && event["now"] == now && event["source"] == "file")
}

fn degraded(stage: &Stage, part: &str) -> Vec<Value> {
    stage.events_named("degraded").into_iter().filter(|event| event["part"] == part).collect()
}

fn notes(stage: &Stage) -> String {
    stage.status()["environment"]["limitations"].to_string()
}

#[test]
fn sidecar_follows_a_limit_in_a_volume_that_is_swapped() {
    const MB: u64 = 1 << 20;
    let mut stage = Stage::new(LIMITS);
    let volume = stage.path("volume");
    fs::create_dir(&volume).expect("a folder of ours");
    let check = stage.ask(&["check"]);
    let noted = String::from_utf8_lossy(&check.stderr).into_owned();
    assert!(check.status.success() && noted.contains("note: policy.memory.limit: ") && noted.contains("it is not there"), "{noted}");

    // Nothing is there yet: as without, and it is said once for each.
    stage.start();
    wait_for("both are told", || (degraded(&stage, "limit from a file").len() == 2).then_some(()));
    assert!(notes(&stage).contains("policy.cpu.limit: "), "{}", notes(&stage));
    assert_ne!(stage.status()["memory"]["limit_source"], "file");

    swap(&volume, &(128 * MB).to_string(), "250");
    changed(&stage, "memory", (128 * MB) as f64);
    changed(&stage, "cpu", 0.25);
    let status = wait_for("nothing is wrong any more", || Some(stage.status()).filter(|_| !notes(&stage).contains("limit from a file")));
    assert_eq!((&status["cpu"]["limit_source"], &status["memory"]["limit_source"]), (&Value::from("file"), &Value::from("file")));
    assert_eq!(status["environment"]["limit_source"], "file");
    assert_eq!(stage.metric("plimsoll_memory_limit_bytes"), Some((128 * MB) as f64));

    // An in-place resize.
    swap(&volume, &format!("{}\n", 192 * MB), "500\n");
    let told = changed(&stage, "memory", (192 * MB) as f64);
    assert_eq!(told["was"], (128 * MB) as f64);
    changed(&stage, "cpu", 0.5);

    // What is no limit changes nothing but what is said, once.
    for nonsense in ["", "0", "192Mi"] {
        let errors = stage.metric("plimsoll_source_errors_total{source=\"file\"}").unwrap_or(0.0);
        swap(&volume, nonsense, "500");
        wait_for("it has been read more than once", || {
            stage.metric("plimsoll_source_errors_total{source=\"file\"}").filter(|count| *count >= errors + 3.0)
        });
        assert_eq!(stage.metric("plimsoll_memory_limit_bytes"), Some((192 * MB) as f64), "{nonsense:?}");
    }
    let told = degraded(&stage, "limit from a file");
    assert_eq!(told.len(), 3, "{told:?}");
    let detail = told[2]["detail"].as_str().unwrap_or_default().to_owned();
    let path = volume.join("memory").display().to_string();
    assert!(
        detail.contains(&path) && detail.contains("expected is one decimal number in bytes") && detail.contains("it gave last holds"),
        "{detail}"
    );
    assert!(notes(&stage).contains("does not hold a decimal number"), "{}", notes(&stage));

    swap(&volume, &(256 * MB).to_string(), "500");
    changed(&stage, "memory", (256 * MB) as f64);
    assert_eq!(degraded(&stage, "limit from a file").len(), 3);

    // Another form is taken by a reload.
    stage.write("[policy.memory]\nlimit = \"64MiB\"\n[sampling]\ninterval = \"200ms\"");
    assert!(stage.ask(&["reload"]).status.success(), "{}", stage.log());
    wait_for("the file counts no more", || (stage.status()["memory"]["limit_source"] != "file").then_some(()));
    assert_eq!(stage.stop(), 0);
}

#[test]
fn sidecar_sees_the_group_of_the_worker_it_follows() {
    let mut stage = Stage::new(
        "[sampling]\ninterval = \"200ms\"\nscope = { worker = \"app\" }\n[workers.app]\nadopt = { pidfile = \"{here}/app.pid\" }\n",
    );
    let scope = |stage: &Stage| stage.status()["environment"]["scope"].clone();
    stage.start();
    // Nobody is there: the workers alone count, and after a while that is said.
    wait_for("the first look", || (scope(&stage) == "workers").then_some(()));
    wait_for("that is said", || notes(&stage).contains("no process of worker app is seen").then_some(()));
    assert_eq!(degraded(&stage, "scope").len(), 1);

    let write_pid = |pid: i32| fs::write(stage.path("app.pid"), format!("{pid}\n")).expect("a folder of ours");
    let app = Stranger::start(&stage, "light=1");
    write_pid(app.pid());
    wait_for("it is seen", || (scope(&stage) == "worker").then_some(()));
    assert!(!notes(&stage).contains("sampling.scope"), "{}", notes(&stage));
    // The test's own group is the program's: that is what is measured.
    assert!(stage.status()["memory"]["current_bytes"].as_u64() > Some(1 << 20), "{}", stage.status()["memory"]);
    let doctor = stage.ask(&["doctor"]);
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(said.contains("worker (sampling.scope is worker app)"), "{said}");

    // It is started anew, with another pid.
    drop(app);
    wait_for("it is gone", || (scope(&stage) == "workers").then_some(()));
    let again = Stranger::start(&stage, "light=1");
    write_pid(again.pid());
    wait_for("the next is seen", || (scope(&stage) == "worker").then_some(()));
    assert_eq!(degraded(&stage, "scope").len(), 1, "a restart is no news");
    assert_eq!(stage.stop(), 0);
}
