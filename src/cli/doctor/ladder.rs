//! Each rung of each ladder in the settings: works here, or is passed over because of what.

use super::groups::by_words;
use super::report::{Level, Report};
use super::{Means, Patient};
use crate::actuators::throttle;
use crate::config::settings::{Rung, ThrottleMethod, Worker};
use crate::policy::Resource;
use crate::response::ladder::{Tier, rungs};
use crate::response::victim;

const AREA: &str = "ladders";

pub fn examine(patient: &Patient, report: &mut Report, means: &mut Means) {
    let policy = &patient.settings.policy;
    if policy.dry_run {
        report.bad(
            AREA,
            Level::Warn,
            "policy.dry_run",
            "is set: everything is judged and nothing is done",
            "take it away when you have seen enough",
        );
    }
    let mut resources = vec![("policy.cpu".to_owned(), Resource::Cpu), ("policy.memory".to_owned(), Resource::Memory)];
    let disks = policy.disks.iter().enumerate();
    resources.extend(disks.map(|(index, disk)| (format!("policy.disks[{index}]"), Resource::Disk(disk.path.as_path().into()))));
    for (key, resource) in &resources {
        for (tier, list) in [(Tier::High, "on_high"), (Tier::Critical, "on_critical")] {
            let all = rungs(policy, resource, None, tier);
            let verdicts: Vec<(String, Works)> = all.iter().map(|rung| (word(rung), works(patient, means, resource, rung))).collect();
            let acts = all.iter().zip(&verdicts).any(|(rung, (_, works))| *rung != Rung::Notify && !matches!(works, Works::Passes(_)));
            for (rung, works) in verdicts {
                let what = format!("{key}.{list} {rung}");
                match works {
                    Works::Yes(how) => report.ok(AREA, what, format!("works: {how}")),
                    Works::Unknown(why) => report.note(AREA, what, format!("not known: {why}")),
                    Works::Passes(why) => report.note(AREA, what, format!("passes: {why}")),
                }
            }
            let is_asked = all.iter().any(|rung| *rung != Rung::Notify);
            if is_asked && !acts && !patient.settings.workers.is_empty() {
                let remedy = "see the reasons above; `plimsoll config schema` lists the rungs";
                report.bad(AREA, Level::Warn, format!("{key}.{list}"), "none of its rungs can do anything here", remedy);
            }
        }
    }
}

enum Works {
    Yes(String),
    Passes(String),
    Unknown(&'static str),
}

fn word(rung: &Rung) -> String {
    match rung {
        Rung::Job(name) => format!("job:{name}"),
        rung => rung.word().to_owned(),
    }
}

fn works(patient: &Patient, means: &Means, resource: &Resource, rung: &Rung) -> Works {
    let workers: Vec<&Worker> = patient.settings.workers.iter().map(|worker| &**worker).collect();
    let nobody = || match &patient.daemon {
        Some(snapshot) if !snapshot.workers.is_empty() => Works::Unknown("for the command of run -- COMMAND `plimsoll explain` says it"),
        _ => Works::Passes("there is no worker in the settings".to_owned()),
    };
    let is_disk = matches!(resource, Resource::Disk(_));
    match rung {
        Rung::Notify => Works::Yes("an event in the log and the record".to_owned()),
        Rung::Job(name) if is_disk => Works::Yes(format!("runs {name}")),
        Rung::Job(_) => Works::Passes("it does nothing but for a disk".to_owned()),
        _ if is_disk => Works::Passes("it does nothing for a disk".to_owned()),
        Rung::Shed if *resource == Resource::Cpu => Works::Passes("it does nothing for the cpu".to_owned()),
        _ if workers.is_empty() => nobody(),
        Rung::Shed => {
            let asked = names(workers.iter().filter(|worker| worker.shed_signal.is_some()));
            match asked.is_empty() {
                true => Works::Passes("no worker has a shed_signal".to_owned()),
                false => Works::Yes(format!("asks {}", asked.join(", "))),
            }
        }
        Rung::Reclaim => match means.reclaim {
            _ if *resource == Resource::Cpu => Works::Passes("it does nothing for the cpu".to_owned()),
            Some(Ok(by)) => Works::Yes(by_words(by).to_owned()),
            Some(Err(())) => Works::Passes("memory cannot be asked back here".to_owned()),
            None => Works::Unknown("it was not tried"),
        },
        Rung::Throttle => throttle(&workers, means),
        Rung::Recycle | Rung::Kill => {
            let (kept, free): (Vec<&Worker>, Vec<&Worker>) = workers.iter().partition(|worker| victim::spared(worker, rung).is_some());
            match free.is_empty() {
                true => {
                    let why = |worker: &&Worker| Some(format!("{} {}", worker.name, victim::spared(worker, rung)?));
                    Works::Passes(kept.iter().filter_map(why).collect::<Vec<_>>().join("; "))
                }
                false => Works::Yes(format!("may take {}", names(free.iter()).join(", "))),
            }
        }
    }
}

fn throttle(workers: &[&Worker], means: &Means) -> Works {
    let (Some(duty), Some(nice)) = (means.duty, means.nice) else { return Works::Unknown("it was not tried") };
    let Some(quota) = means.quota else { return Works::Unknown("quotas were not tried") };
    let out_of_reach = &means.out_of_reach;
    let means = throttle::Means { quota, duty, nice };
    let told: Vec<(bool, String)> = workers
        .iter()
        .map(|worker| match means.method(worker) {
            Ok(_) if out_of_reach.contains(&worker.name) => (false, format!("{} not: it cannot be stopped by us", worker.name)),
            Ok(method) => (true, format!("{} by {}", worker.name, method.word())),
            Err(_) if worker.throttle == ThrottleMethod::Never => (false, format!("{} never, as it says", worker.name)),
            Err(why) => (false, format!("{} not: {why}", worker.name)),
        })
        .collect();
    let works = told.iter().any(|(works, _)| *works);
    let all = told.into_iter().map(|(_, told)| told).collect::<Vec<_>>().join(", ");
    if works { Works::Yes(all) } else { Works::Passes(all) }
}

fn names<'a>(workers: impl Iterator<Item = &'a &'a Worker>) -> Vec<String> {
    workers.map(|worker| worker.name.to_string()).collect()
}
