//! What changed between two settings, for `config_reloaded`.

use super::jobs::Kind;
use super::settings::{DiskPolicy, Job, Rule, Settings, Worker};
use super::tree::join;

/// Names the fields that differ, each under its key.
macro_rules! compare {
    ($list:ident, $path:expr, $old:expr, $new:expr, $($field:ident),+ $(,)?) => {
        $(if $old.$field != $new.$field {
            $list.push(join($path, stringify!($field)));
        })+
    };
}

impl Settings {
    /// The dotted keys whose values differ, as they are called in the file; a worker or disk that came or went is named as a whole.
    pub fn diff(&self, other: &Settings) -> Vec<String> {
        let mut list = Vec::new();
        // Naming the default folder changes who answers for it, not where it is.
        if self.daemon.state_dir.path != other.daemon.state_dir.path {
            list.push("daemon.state_dir".to_owned());
        }
        if self.daemon.runtime_dir.path != other.daemon.runtime_dir.path {
            list.push("daemon.runtime_dir".to_owned());
        }
        compare!(list, "daemon", self.daemon, other.daemon, shutdown_timeout, leftovers, upgrade);
        compare!(list, "log", self.log, other.log, level, format);
        compare!(list, "http", self.http, other.http, listen, api_key, dashboard);
        compare!(list, "host", self.host, other.host, proc, sys, cgroup, journal);
        compare!(list, "sampling", self.sampling, other.sampling, interval, scope, report_every);
        let (old, new) = (&self.policy, &other.policy);
        compare!(list, "policy", old, new, dry_run);
        compare!(list, "policy.cpu", old.cpu, new.cpu, limit);
        rule(&mut list, "policy.cpu", &old.cpu.rule, &new.cpu.rule);
        compare!(list, "policy.memory", old.memory, new.memory, limit);
        rule(&mut list, "policy.memory", &old.memory.rule, &new.memory.rule);
        disks(&mut list, &old.disks, &new.disks);
        self.workers_diff(other, &mut list);
        self.jobs_diff(other, &mut list);
        list
    }

    fn jobs_diff(&self, other: &Settings, list: &mut Vec<String>) {
        let mut names: Vec<&str> = self.jobs.iter().chain(&other.jobs).map(|job| &*job.name).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            let key = join("jobs", name);
            let of = |settings: &Settings| settings.jobs.iter().find(|job| &*job.name == name).cloned();
            match (of(self), of(other)) {
                (Some(old), Some(new)) => job(list, &key, &old, &new),
                _ => list.push(key),
            }
        }
    }

    fn workers_diff(&self, other: &Settings, list: &mut Vec<String>) {
        let mut names: Vec<&str> = self.workers.iter().chain(&other.workers).map(|worker| &*worker.name).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            let key = join("workers", name);
            let of = |settings: &Settings| settings.workers.iter().find(|worker| &*worker.name == name).cloned();
            match (of(self), of(other)) {
                (Some(old), Some(new)) => worker(list, &key, &old, &new),
                _ => list.push(key),
            }
        }
    }
}

fn rule(list: &mut Vec<String>, path: &str, old: &Rule, new: &Rule) {
    compare!(list, path, old, new, high, low, critical, sustain, on_high, on_critical);
}

fn disks(list: &mut Vec<String>, old: &[DiskPolicy], new: &[DiskPolicy]) {
    for index in 0..old.len().max(new.len()) {
        let key = format!("policy.disks[{index}]");
        match (old.get(index), new.get(index)) {
            (Some(old), Some(new)) => {
                compare!(list, &key, old, new, path);
                rule(list, &key, &old.rule, &new.rule);
            }
            _ => list.push(key),
        }
    }
}

fn worker(list: &mut Vec<String>, key: &str, old: &Worker, new: &Worker) {
    compare!(
        list, key, old, new, command, adopt, directory, user, group, env, env_files, replicas, listen, members, after, ready, health,
        restart
    );
    compare!(list, &join(key, "backoff"), old.backoff, new.backoff, first, longest, give_up, within, healthy_after);
    compare!(list, &join(key, "stop"), old.stop, new.stop, signal, within);
    compare!(list, key, old, new, priority, weight, protected, throttle, longest_stop, shed_signal, output, on_daemon_death);
    compare!(list, key, old, new, lock);
    compare!(list, key, old.process, new.process, umask, nice, ionice, affinity, oom_score_adj, merge_pages, rlimits);
    compare!(list, &join(key, "limits"), old.limits, new.limits, memory, cpu);
    compare!(list, &join(key, "recycle"), old.recycle, new.recycle, lifetime, requests, memory, sustain, leak, jitter, gap, overlap);
}

fn job(list: &mut Vec<String>, key: &str, old: &Job, new: &Job) {
    compare!(list, key, old, new, schedule, timezone, jitter, timeout, catch_up, dry_run, after, lock);
    compare!(list, &join(key, "when_high"), old.when_high, new.when_high, wait, then);
    match (&old.kind, &new.kind) {
        (Kind::Files(old), Kind::Files(new)) => {
            compare!(
                list,
                key,
                old,
                new,
                paths,
                include,
                exclude,
                keep,
                min_age,
                max_total,
                max_files,
                prune_empty,
                groups,
                rate,
                mounted,
                owner
            );
        }
        (Kind::Sessions(old), Kind::Sessions(new)) => {
            compare!(list, key, old, new, database, format, keep, second_look, longest_lock, archive, archive_keep, backed_up_in);
        }
        (Kind::Backup(old), Kind::Backup(new)) => {
            compare!(list, key, old, new, databases, to, keep, keep_last, keep_daily, keep_weekly, keep_monthly, compress, verify);
            compare!(list, key, old, new, key_file, longest_wal, longest_lock);
        }
        _ => list.push(join(key, "kind")),
    }
}
