//! Disks of real file systems: when they will be full.

use crate::faults::SmallDisk;
use crate::stage::{Stage, skip, wait_for};

/// About 1 MB a second until there is a file `enough`.
const FILLS: &str = "[sampling]
interval = \"500ms\"
[[policy.disks]]
path = \"{here}/data\"
high = \"98%\"
low = \"97%\"
critical = \"99%\"
on_critical = [\"notify\"]
[workers.writer]
command = [\"sh\", \"-c\", \"while [ ! -e {here}/enough ]; do head -c 100000 /dev/zero >> {here}/data/log; sleep 0.1; done; exec sleep 1000\"]
";

#[test]
fn a_disk_that_fills_is_foretold_and_one_that_does_not_any_more_is_not() {
    let mut stage = Stage::new(FILLS);
    let Some(_disk) = SmallDisk::of(stage.path("data"), 128) else { return skip("no file system can be mounted here") };
    stage.start();
    let told = stage.event("exhaustion_foretold", |event| event["resource"].as_str().is_some_and(|resource| resource.ends_with("/data")));
    let (used, limit) = (told["used"].as_f64().expect("a number"), told["limit"].as_f64().expect("a number"));
    assert!(told["exhaustion_seconds"].as_f64().is_some_and(|left| left < 300.0), "{told}");

    // What it says comes true: halfway there, half of the time has gone by.
    let resource = told["resource"].as_str().expect("text").to_owned();
    let series = format!("plimsoll_policy_exhaustion_seconds{{resource=\"{resource}\"}}");
    let size = || std::fs::metadata(stage.path("data/log")).map_or(0.0, |file| file.len() as f64);
    let (left, begun, before) = wait_for("a forecast", || Some((stage.metric(&series)?, std::time::Instant::now(), size())));
    wait_for("it has written 10 MB more", || (size() > before + 10e6).then_some(()));
    let rate = (size() - before) / begun.elapsed().as_secs_f64();
    let really = (limit - before) / rate;
    assert!((0.6..1.6).contains(&(left / really)), "{left} s were foretold, at {rate} bytes a second it takes {really}; {used} of {limit}");

    std::fs::write(stage.path("enough"), "").expect("it is ours");
    wait_for("it is not said to fill any more", || stage.metric(&series).is_none().then_some(()));
    assert_eq!(stage.events_named("exhaustion_foretold").len(), 1, "said once");
    assert_eq!(stage.stop(), 0);
}
