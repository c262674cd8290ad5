//! `plimsoll status` as it looks.

use std::time::Duration;

use plimsoll::cli::render::Style;
use plimsoll::cli::status::render_status;
use plimsoll::snapshot::Snapshot;
use proptest::prelude::*;

mod sample;

#[test]
fn the_screen_of_the_sample() {
    let screen = render_status(&sample::snapshot(), sample::taken(), Style::PLAIN);
    // Shown when the test fails, to be compared by eye.
    println!("{screen}");
    assert_eq!(screen, include_str!("sample/status.txt"));
}

#[test]
fn colour_changes_nothing_but_colour() {
    let colored = render_status(&sample::snapshot(), sample::taken(), Style { color: true, width: 80 });
    let mut plain = String::new();
    let mut parts = colored.split('\x1b');
    plain.push_str(parts.next().unwrap());
    for part in parts {
        plain.push_str(part.split_once('m').unwrap().1);
    }
    assert!(colored.contains("\x1b[31m") && colored.contains("\x1b[33m"));
    assert_eq!(plain, render_status(&sample::snapshot(), sample::taken(), Style::PLAIN));
}

#[test]
fn what_is_wrong_with_the_daemon_is_said() {
    let late = render_status(&sample::snapshot(), sample::taken().after(Duration::from_secs(90)), Style::PLAIN);
    assert!(late.contains("stalled: what follows is 1m 30s old"), "{late}");
    let starting = render_status(&Snapshot::default(), sample::taken(), Style::PLAIN);
    assert!(starting.contains("starting: nothing has been read yet") && starting.contains("no workers"), "{starting}");
    let mut snapshot = sample::snapshot();
    snapshot.daemon.dry_run = true;
    snapshot.daemon.config_reload_successful = false;
    snapshot.daemon.history_problem = Some("disk is full".into());
    let screen = render_status(&snapshot, sample::taken(), Style::PLAIN);
    for part in ["dry run", "the configuration was rejected", "history is not being kept: disk is full"] {
        assert!(screen.contains(part), "{part:?} is missing in {screen}");
    }
}

proptest! {
    #[test]
    fn no_line_is_wider_than_the_screen(text in any::<String>(), number in any::<f64>(), width in 0usize..200) {
        let mut snapshot = sample::snapshot();
        snapshot.environment.platform = text.clone();
        snapshot.environment.limitations = vec![text.clone()];
        for resource in &mut snapshot.policy.resources {
            resource.resource = text.clone();
            resource.state = text.clone();
            resource.last_action = Some(text.clone());
            resource.utilization = Some(number);
            resource.used = Some(number);
            resource.high = number;
        }
        for worker in &mut snapshot.workers {
            worker.name = text.clone().into();
            for replica in &mut worker.replicas {
                replica.state = text.clone();
                replica.used_cores = Some(number);
                replica.cores_allowed = Some(number);
            }
        }
        let screen = render_status(&snapshot, sample::taken(), Style { color: false, width });
        let widest = screen.split('\n').map(|line| line.chars().count()).max().unwrap_or(0);
        prop_assert!(widest <= width.clamp(64, 100), "{} in {}:\n{}", widest, width, screen);
        prop_assert!(!screen.contains('\x1b'));
    }
}
