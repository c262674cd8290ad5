//! The daemon is killed at random instants, from its first moment to its last: whatever it was doing, nobody stays
//! stopped, slowed or limited, and nothing is left lying about.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::outside::{self, Process};
use crate::stage::{Stage, hungry, wait_for, wait_within};

/// One worker for each way of being held, all of them far over the budget.
const SETTINGS: &str = "
[daemon]
shutdown_timeout = \"1s\"
[policy.cpu]
limit = 0.3
sustain = \"0s\"
[policy.memory]
limit = \"60MB\"
high = \"30%\"
low = \"20%\"
critical = \"95%\"
sustain = \"0s\"
on_high = [\"throttle\"]
on_critical = [\"notify\"]
[sampling]
interval = \"100ms\"
[workers.by-quota]
command = {hungry burn=1}
[workers.by-duty]
command = {hungry burn=1 child=burn=1}
throttle = \"duty\"
longest_stop = \"10s\"
[workers.by-nice]
command = {hungry burn=1}
throttle = \"nice\"
# File cache to give back, and more and more that cannot be.
[workers.by-line]
command = [\"sh\", \"-c\", \"dd if=/dev/zero of={here}/ballast bs=1M count=20 2>/dev/null; exec $0 leak=40 cap=40\", \"{program}\"]
";

/// After the death of the daemon everything is as it was within this.
const AFTERMATH: Duration = Duration::from_secs(1);

/// So many, or as many as `PLIMSOLL_ROUNDS` says.
const ROUNDS: u64 = 40;

/// Every so many rounds the sentinel dies with the daemon, …
const WITH_SENTINEL: u64 = 10;
/// … every so many there are no groups, so that a duty cycle works by signals, …
const WITHOUT_GROUPS: u64 = 3;
/// … and every so many the daemon is told to end first, and dies while it does.
const WHILE_ENDING: u64 = 4;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Splitmix64: the same instants for the same seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bound.mul_f64(((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64)
    }
}

/// What is still done to one of them, as anybody sees it from outside.
fn harm(process: &Process) -> Option<String> {
    let now = outside::process(process.pid).filter(|now| now.started == process.started)?;
    if outside::is_stopped(&now) {
        return Some(format!("{now:?} is stopped"));
    }
    // Workers are started with our own priority.
    let (own, its) = (outside::priority(std::process::id() as i32), outside::priority(now.pid));
    if its.is_some() && its != own {
        return Some(format!("{now:?} has the priority {its:?}"));
    }
    let groups = outside::groups(now.pid).into_iter().map(|(_, folder)| folder);
    groups.filter(|folder| folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with("w-"))).find_map(|folder| {
        let is_free = |(name, free): &(&str, fn(&str) -> bool)| {
            let text = fs::read_to_string(folder.join(name)).ok()?;
            (!free(text.trim())).then(|| format!("{now:?}: {}/{name} = {}", folder.display(), text.trim()))
        };
        LIMITS.iter().find_map(is_free)
    })
}

type IsFree = fn(&str) -> bool;
/// Every file by which a group may be held, and what it says when it is not.
const LIMITS: [(&str, IsFree); 6] = [
    ("cpu.cfs_quota_us", |text| text == "-1"),
    ("cpu.cfs_period_us", |text| text == "100000"),
    ("cpu.max", |text| text.starts_with("max")),
    ("memory.high", |text| text == "max"),
    ("memory.soft_limit_in_bytes", |text| text.parse::<u64>().is_ok_and(|bytes| bytes > 1 << 60)),
    ("cgroup.freeze", |text| text == "0"),
];

fn first_harm(processes: &[Process]) -> Option<String> {
    processes.iter().find_map(harm)
}

/// What a daemon writes to its runtime folder for the day of its death.
fn notes_left(stage: &Stage) -> Vec<PathBuf> {
    let entries = fs::read_dir(stage.path("run")).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| !["plimsoll.lock", "plimsoll.sock"].iter().any(|known| path.ends_with(known))).collect()
}

fn end_all(stage: &Stage) {
    wait_for("the orphans have ended", || {
        let left = stage.population();
        left.iter().for_each(Process::kill);
        left.is_empty().then_some(())
    });
}

#[test]
fn killed_at_any_instant_it_leaves_nobody_stopped_slowed_or_limited() {
    let seed = number("PLIMSOLL_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let rounds = number("PLIMSOLL_ROUNDS").unwrap_or(ROUNDS);
    println!("PLIMSOLL_SEED={seed} PLIMSOLL_ROUNDS={rounds}");
    let mut chance = Chance(seed);
    let mut stage = Stage::new(&SETTINGS.replace("{program}", &hungry().display().to_string()));

    // How long it takes until everybody is held: the instants are spread over that and as long again.
    let begun = Instant::now();
    stage.launch();
    wait_for("everybody is held", || {
        let engaged = |resource: &str| stage.events_named("throttle_engaged").iter().any(|event| event["resource"] == resource);
        (engaged("cpu") && engaged("memory")).then_some(())
    });
    let span = begun.elapsed() * 2;
    assert_eq!(stage.stop(), 0);

    let (mut engaged, mut slowest) = ([0_u32; 2], Duration::ZERO);
    let ordinary = stage.set.clone();
    for round in 1..=rounds {
        stage.set.clone_from(&ordinary);
        if round.is_multiple_of(WITHOUT_GROUPS) {
            stage.set.push(format!("host.cgroup={}", stage.path("none").display()));
        }
        stage.launch();
        std::thread::sleep(chance.below(span));
        if round.is_multiple_of(WHILE_ENDING) {
            stage.signal(Signal::TERM);
            std::thread::sleep(chance.below(Duration::from_millis(40)));
        }
        let alone = round.is_multiple_of(WITH_SENTINEL);
        if alone && let Some(sentinel) = outside::sentinel_of(stage.pid()) {
            sentinel.kill();
        }
        stage.kill_or_end();
        let killed = Instant::now();
        for (count, resource) in engaged.iter_mut().zip(["cpu", "memory"]) {
            *count += u32::from(stage.events_named("throttle_engaged").iter().any(|event| event["resource"] == resource));
        }
        let orphans = stage.population();
        if alone {
            // Nobody is there to help: the next start does, or whoever asks by hand.
            if round.is_multiple_of(2 * WITH_SENTINEL) {
                assert!(stage.ask(&["release"]).status.success());
            } else {
                stage.launch();
                stage.event("daemon_started", |_| true);
                stage.kill();
            }
        }
        wait_within(AFTERMATH, &format!("round {round}: nobody is held any more"), || match first_harm(&orphans) {
            None => Some(()),
            Some(harm) if killed.elapsed() > AFTERMATH.mul_f64(0.9) && !alone => panic!("round {round}, seed {seed}: {harm}"),
            Some(_) => None,
        });
        if !alone {
            slowest = slowest.max(killed.elapsed());
        }
        end_all(&stage);
    }
    stage.set = ordinary;
    let [cpu, memory] = engaged;
    println!("{rounds} rounds, CPU held in {cpu} of them and memory in {memory}; the slowest undoing took {slowest:?}");
    assert!(u64::from(cpu) >= rounds / 10, "only {cpu} of {rounds} rounds came as far as holding anybody");

    // Which the rarest of instants leaves: in the middle of writing down who is alive.
    fs::write(stage.path("run/workers-1.new"), "{").unwrap();
    // An ordered run takes the last traces away.
    stage.start();
    assert_eq!(stage.stop(), 0);
    end_all(&stage);
    wait_within(AFTERMATH, &format!("no group is left, seed {seed}"), || stage.groups_left().is_empty().then_some(()));
    let ended = Instant::now();
    wait_for("no note is left", || match notes_left(&stage) {
        left if left.is_empty() => Some(()),
        left if ended.elapsed() > AFTERMATH => panic!("seed {seed}: {left:?}"),
        _ => None,
    });
}
