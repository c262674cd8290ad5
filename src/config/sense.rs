//! What the merged file means: defaults that follow other keys, checks of one key against another and against the machine.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::credentials::{self, Fault};
use super::env_file;
use super::file::{self, File};
use super::layers::Sources;
use super::problems::{Place, Problem};
use super::settings::{
    Backoff, Ceiling, CpuPolicy, Daemon, DiskPolicy, EnvFile, Folder, Health, HostPaths, Http, Job, LimitFile, Limits, Line, Lock, Log,
    MemberRules, Members, MemoryPolicy, Output, OutputFile, Policy, ProcessSettings, Ready, ReadyBy, Recycle, Replicas, Restart, Rlimit,
    Rule, Rung, Sampling, Scope, ScopeWord, Secret, Settings, Signal, Stop, Worker,
};
use super::tree::{Layer, Origin, Tree, locate};
use super::units::{
    Address, BytesLine, Cores, CoresLine, Count, CpuLimit, Every, ListenAddress, MemoryLimit, Percent, RUNGS, ResourceAmount, RungName,
    Size, nearest,
};

mod adopt;
mod jobs;

/// Works on the merged file; remembers what it finds.
pub struct Sense<'a> {
    pub sources: &'a Sources,
    pub layers: &'a [Layer],
    /// Keys whose values were refused already: nothing more is said about them.
    pub spoiled: &'a BTreeSet<String>,
    pub problems: &'a mut Vec<Problem>,
    /// Keys nobody set whose default depends on another key, and that key.
    pub follows: BTreeMap<String, String>,
    /// What only the daemon is given, and was not looked at: key and why.
    pub unseen: Vec<String>,
}

/// A key is one short line; more is never read.
const LONGEST_KEY_FILE: u64 = 16 << 10;

/// Where programs are looked for when nothing says so.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Sense<'_> {
    /// The settings, as far as they make sense; they count only when no problem was found.
    pub fn settings(&mut self, file: &mut File, path: Option<PathBuf>) -> Settings {
        let daemon = self.daemon(&file.daemon);
        let http = self.http(&file.http);
        let host = self.host(&file.host);
        let jobs = self.jobs(file);
        let policy = self.policy(&mut file.policy, &jobs);
        let workers = self.workers(file);
        Settings {
            daemon,
            log: Log { level: file.log.level, format: file.log.format },
            http,
            host,
            sampling: Sampling {
                interval: file.sampling.interval.duration(),
                scope: self.scope(&file.sampling.scope, &workers),
                report_every: match file.sampling.report_every {
                    Every::Never => None,
                    Every::Span(span) => Some(span.duration()),
                },
            },
            policy,
            workers,
            jobs,
            file: path.map(|path| self.sources.working_dir.join(path)),
        }
    }

    /// True when somebody set the key, rather than the built-in file.
    fn is_set(&self, key: &str) -> bool {
        locate(self.layers, key).is_some_and(|(layer, _)| !matches!(layer.origin, Origin::BuiltIn))
    }

    fn place(&self, key: &str) -> Place {
        locate(self.layers, key).map_or(Place::Nowhere, |(layer, node)| layer.origin.place(&node.at))
    }

    /// The place of the key itself, for what is missing below it.
    fn place_of_key(&self, key: &str) -> Place {
        locate(self.layers, key).map_or(Place::Nowhere, |(layer, node)| layer.origin.place(&node.key_at))
    }

    /// True when the key, or anything in it, was refused before.
    fn is_spoiled(&self, key: &str) -> bool {
        self.spoiled.iter().any(|spoiled| spoiled == key || spoiled.strip_prefix(key).is_some_and(|rest| rest.starts_with(['.', '['])))
    }

    /// The key of an item as it is numbered in the file; `place` is its place in what is left of the list.
    fn item(&self, list: &str, place: usize) -> String {
        let index = match locate(self.layers, list).map(|(_, node)| &node.value) {
            Some(Tree::Array(items)) => items.get(place).map_or(place, |item| item.index),
            _ => place,
        };
        format!("{list}[{index}]")
    }

    fn refuse(&mut self, key: &str, message: String, allowed: &str) {
        let place = self.place(key);
        self.push(key, place, message, allowed, None);
    }

    /// For what depends on the machine: settings for another one are not held against this.
    fn refuse_here(&mut self, key: &str, message: String, allowed: &str) {
        if !self.sources.elsewhere {
            self.refuse(key, message, allowed);
        }
    }

    fn push(&mut self, key: &str, place: Place, message: String, allowed: &str, suggestion: Option<String>) {
        let allowed = (!allowed.is_empty()).then(|| allowed.to_owned());
        self.problems.push(Problem { key: key.to_owned(), place, message, allowed, suggestion });
    }

    fn daemon(&mut self, daemon: &file::Daemon) -> Daemon {
        let state_dir = self.folder("daemon.state_dir", &daemon.state_dir);
        let runtime_dir = self.folder("daemon.runtime_dir", &daemon.runtime_dir);
        Daemon {
            state_dir,
            runtime_dir,
            shutdown_timeout: daemon.shutdown_timeout.duration(),
            leftovers: daemon.leftovers,
            upgrade: daemon.upgrade,
        }
    }

    fn folder(&mut self, key: &str, path: &str) -> Folder {
        Folder { path: self.absolute(key, path), explicit: self.is_set(key) }
    }

    fn absolute(&mut self, key: &str, path: &str) -> PathBuf {
        if !path.starts_with('/') {
            self.refuse(key, format!("{path:?} is a relative path"), "an absolute path");
        }
        PathBuf::from(path)
    }

    fn http(&mut self, http: &file::Http) -> Http {
        let mut listen: Vec<SocketAddr> = Vec::new();
        for (index, address) in http.listen.iter().enumerate() {
            if address.0.port() != 0 && listen.contains(&address.0) {
                self.refuse(&self.item("http.listen", index), format!("\"{}\" is there twice", address.0), "");
            }
            listen.push(address.0);
        }
        Http { listen, api_key: self.api_key(http), dashboard: http.dashboard }
    }

    fn api_key(&mut self, http: &file::Http) -> Option<Secret> {
        if let Some(key) = &http.api_key {
            return Some(Secret::new(key.trim().to_owned())).filter(|key| self.is_key("http.api_key", key));
        }
        let path = http.api_key_file.as_ref()?;
        let mut text = String::new();
        let full = self.secret("http.api_key_file", path)?;
        match std::fs::File::open(full).and_then(|file| file.take(LONGEST_KEY_FILE).read_to_string(&mut text)) {
            Ok(_) => {
                let key = Secret::new(text.lines().next().unwrap_or("").trim().to_owned());
                Some(key).filter(|key| self.is_key("http.api_key_file", key))
            }
            Err(error) => {
                self.refuse_here(
                    "http.api_key_file",
                    format!("{path:?} could not be read: {error}"),
                    "a file with the key in its first line",
                );
                None
            }
        }
    }

    /// The file that is meant: a path, or `credential:NAME`. `None` where no credentials are given; that is a problem for the daemon,
    /// and said to be one.
    fn secret(&mut self, key: &str, given: &str) -> Option<PathBuf> {
        let folder = self.sources.variable("CREDENTIALS_DIRECTORY").filter(|folder| !folder.is_empty());
        match credentials::resolve(given, folder) {
            Ok(file) => Some(self.sources.working_dir.join(file)),
            Err(Fault::NoFolder) if self.sources.beside || self.sources.elsewhere => {
                self.unseen.push(format!("{key}: the credential was not looked at; it is given to the service alone"));
                None
            }
            Err(fault) => {
                self.refuse(key, fault.to_string(), credentials::ALLOWED);
                None
            }
        }
    }

    /// A key goes into an HTTP header, so it must be what a header can carry.
    fn is_key(&mut self, key: &str, secret: &Secret) -> bool {
        let good = !secret.reveal().is_empty() && secret.reveal().bytes().all(|byte| byte.is_ascii_graphic());
        if !good {
            self.refuse(key, "does not give a usable key".to_owned(), "at least one visible ASCII character and nothing else");
        }
        good
    }

    fn host(&mut self, host: &file::Host) -> HostPaths {
        HostPaths {
            proc: self.absolute("host.proc", &host.proc),
            sys: self.absolute("host.sys", &host.sys),
            cgroup: self.absolute("host.cgroup", &host.cgroup),
            journal: self.absolute("host.journal", &host.journal),
        }
    }

    fn policy(&mut self, policy: &mut file::Policy, jobs: &[Arc<Job>]) -> Policy {
        let cpu = self.cpu(&mut policy.cpu);
        let memory = self.memory(&mut policy.memory);
        let mut disks: Vec<DiskPolicy> = Vec::new();
        // Paths are compared as the kernel sees them: "/data" and "/data/" are one.
        let mut seen: Vec<PathBuf> = Vec::new();
        for (index, disk) in policy.disks.iter_mut().enumerate() {
            let judged = self.disk(index, disk, jobs);
            let real = canonical(&judged.path).and_then(Result::ok).unwrap_or_else(|| judged.path.clone());
            if !disk.path.is_empty() && seen.contains(&real) {
                let key = format!("{}.path", self.item("policy.disks", index));
                self.refuse(&key, format!("{:?} is there twice", disk.path), "one rule for each folder");
            }
            seen.push(real);
            disks.push(judged);
        }
        Policy { dry_run: policy.dry_run, cpu, memory, disks }
    }

    fn cpu(&mut self, cpu: &mut file::Cpu) -> CpuPolicy {
        let ceiling = match &cpu.limit {
            file::LimitOfCpu::Given(CpuLimit::Auto) => Ceiling::Auto,
            file::LimitOfCpu::Given(CpuLimit::Cores(Cores(cores))) => Ceiling::Set(*cores),
            file::LimitOfCpu::File(limit) => Ceiling::File(self.limit_file("policy.cpu.limit", &limit.file, limit.divisor.0)),
        };
        let limit = ceiling.set();
        if !self.is_set("policy.cpu.low") && below(cpu.low, cpu.high, limit) != Some(true) {
            cpu.low = match cpu.high {
                CoresLine::Percent(high) => CoresLine::Percent(under(high, 10.0)),
                CoresLine::Cores(Cores(high)) => CoresLine::Cores(Cores(high * 7.0 / 8.0)),
            };
            self.follows.insert("policy.cpu.low".to_owned(), "policy.cpu.high".to_owned());
        }
        self.ascending("policy.cpu", cpu.low, cpu.high, cpu.critical, limit);
        let rule = Rule {
            high: cpu.high.line(),
            low: cpu.low.line(),
            critical: cpu.critical.map(CoresLine::line),
            sustain: cpu.sustain.duration(),
            on_high: self.ladder("policy.cpu.on_high", &cpu.on_high, &CPU_RUNGS, None),
            on_critical: self.ladder("policy.cpu.on_critical", &cpu.on_critical, &CPU_RUNGS, None),
        };
        CpuPolicy { limit: ceiling, rule }
    }

    fn memory(&mut self, memory: &mut file::Memory) -> MemoryPolicy {
        let ceiling = match &memory.limit {
            file::LimitOfMemory::Given(MemoryLimit::Auto) => Ceiling::Auto,
            file::LimitOfMemory::Given(MemoryLimit::Size(Size(bytes))) => Ceiling::Set(*bytes),
            file::LimitOfMemory::File(limit) => Ceiling::File(self.limit_file("policy.memory.limit", &limit.file, limit.divisor.0)),
        };
        let against = ceiling.set().map(|bytes| bytes as f64);
        if !self.is_set("policy.memory.low") && below(memory.low, memory.high, against) != Some(true) {
            memory.low = low_under(memory.high, 10.0, 7);
            self.follows.insert("policy.memory.low".to_owned(), "policy.memory.high".to_owned());
        }
        let mut critical = Some(memory.critical);
        if !self.is_set("policy.memory.critical") && below(memory.high, memory.critical, against) == Some(false) {
            critical = half_way(memory.high);
            memory.critical = critical.unwrap_or(BytesLine::Percent(Percent(100.0)));
            self.follows.insert("policy.memory.critical".to_owned(), "policy.memory.high".to_owned());
        }
        self.ascending("policy.memory", memory.low, memory.high, critical, against);
        let rule = Rule {
            high: memory.high.line(),
            low: memory.low.line(),
            critical: critical.map(BytesLine::line),
            sustain: memory.sustain.duration(),
            on_high: self.ladder("policy.memory.on_high", &memory.on_high, &MEMORY_RUNGS, None),
            on_critical: self.ladder("policy.memory.on_critical", &memory.on_critical, &MEMORY_RUNGS, None),
        };
        MemoryPolicy { limit: ceiling, rule }
    }

    /// The file need not be there yet: until it is, the limit is found out.
    fn limit_file(&mut self, key: &str, file: &str, unit: u64) -> LimitFile {
        let file_key = format!("{key}.file");
        let allowed = "the path of a file of one decimal number, such as \"/etc/podlimits/memory\"";
        if file.is_empty() && !self.is_spoiled(key) {
            let place = self.place_of_key(key);
            self.push(&file_key, place, "is missing".to_owned(), allowed, None);
        } else if file.ends_with('/') {
            self.refuse(&file_key, format!("{file:?} is a folder"), allowed);
        }
        LimitFile { path: self.sources.working_dir.join(file), unit }
    }

    fn scope(&mut self, scope: &file::Scope, workers: &[Arc<Worker>]) -> Scope {
        let name = match scope {
            file::Scope::Word(ScopeWord::Auto) => return Scope::Auto,
            file::Scope::Word(ScopeWord::Container) => return Scope::Container,
            file::Scope::Word(ScopeWord::Host) => return Scope::Host,
            file::Scope::Worker(of) => &of.worker,
        };
        let key = "sampling.scope.worker";
        let names: Vec<&str> = workers.iter().map(|worker| &*worker.name).collect();
        if name.is_empty() {
            if !self.is_spoiled("sampling.scope") {
                let place = self.place_of_key("sampling.scope");
                self.push(key, place, "is missing".to_owned(), "the name of a worker", None);
            }
        } else if !names.contains(&name.as_str()) && !self.is_spoiled("workers") {
            let suggestion = nearest(name, names.iter().copied()).map(str::to_owned);
            let allowed = if names.is_empty() { "the name of a worker, and there is none".to_owned() } else { names.join(", ") };
            let place = self.place(key);
            self.push(key, place, format!("no worker is called {name:?}"), &allowed, suggestion);
        }
        Scope::Worker(Arc::from(name.as_str()))
    }

    fn disk(&mut self, index: usize, disk: &mut file::Disk, jobs: &[Arc<Job>]) -> DiskPolicy {
        let key = self.item("policy.disks", index);
        let low = *disk.low.get_or_insert_with(|| {
            let usual = BytesLine::Percent(Percent(75.0));
            if below(usual, disk.high, None) == Some(true) {
                return usual;
            }
            self.follows.insert(format!("{key}.low"), format!("{key}.high"));
            low_under(disk.high, 5.0, 15)
        });
        if disk.critical.is_none() {
            let usual = BytesLine::Percent(Percent(90.0));
            disk.critical = if below(disk.high, usual, None) == Some(false) {
                self.follows.insert(format!("{key}.critical"), format!("{key}.high"));
                half_way(disk.high)
            } else {
                Some(usual)
            };
        }
        self.ascending(&key, low, disk.high, disk.critical, None);
        let path = self.disk_path(&key, &disk.path);
        let rule = Rule {
            high: disk.high.line(),
            low: low.line(),
            critical: disk.critical.map(BytesLine::line),
            sustain: disk.sustain.duration(),
            on_high: self.ladder(&format!("{key}.on_high"), &disk.on_high, &DISK_RUNGS, Some(jobs)),
            on_critical: self.ladder(&format!("{key}.on_critical"), &disk.on_critical, &DISK_RUNGS, Some(jobs)),
        };
        DiskPolicy { path, rule }
    }

    fn disk_path(&mut self, key: &str, path: &str) -> PathBuf {
        let full = self.sources.working_dir.join(path);
        let path_key = format!("{key}.path");
        if path.is_empty() {
            if !self.is_spoiled(&path_key) {
                let place = self.place_of_key(key);
                self.push(&path_key, place, "is missing".to_owned(), "a folder on the file system that is watched", None);
            }
        } else if let Some(Err(error)) = canonical(&full) {
            // One that does not answer may well be there: the daemon asks it again and again, and says so.
            self.refuse_here(&path_key, format!("{path:?} {}", not_there(&error)), "a folder on the file system that is watched");
        }
        full
    }

    /// low < high < critical, as far as that can be known before the limit is.
    fn ascending<L: LineText>(&mut self, table: &str, low: L, high: L, critical: Option<L>, limit: Option<f64>) {
        let (low_key, high_key, critical_key) = (format!("{table}.low"), format!("{table}.high"), format!("{table}.critical"));
        let lines = [(&low_key, Some(low)), (&high_key, Some(high)), (&critical_key, critical)];
        let over = |line: L| limit.is_some_and(|limit| line.line().share_of(limit) > 1.0);
        if let Some((key, Some(line))) = lines.into_iter().find(|(key, line)| line.is_some_and(over) && !self.is_spoiled(key)) {
            self.refuse(key, format!("\"{line}\" is over the limit and never reached"), &format!("a line up to {table}.limit"));
            return;
        }
        if self.is_spoiled(&high_key) {
            return;
        }
        if below(low, high, limit) == Some(false) && !self.is_spoiled(&low_key) {
            let (key, message, allowed) = if self.is_set(&low_key) || !self.is_set(&high_key) {
                (&low_key, format!("\"{low}\" is not below high, \"{high}\""), "a line under high")
            } else {
                (&high_key, format!("\"{high}\" is not above low, \"{low}\""), "a line over low")
            };
            self.refuse(key, message, allowed);
        }
        let Some(critical) = critical.filter(|_| !self.is_spoiled(&critical_key)) else { return };
        if below(high, critical, limit) == Some(false) {
            let (key, message, allowed) = if self.is_set(&critical_key) || !self.is_set(&high_key) {
                (&critical_key, format!("\"{critical}\" is not above high, \"{high}\""), "a line over high")
            } else {
                (&high_key, format!("\"{high}\" is not below critical, \"{critical}\""), "a line under critical")
            };
            self.refuse(key, message, allowed);
        }
    }

    /// `jobs` are those that can be run for this resource: only what is on a disk can be deleted.
    fn ladder(&mut self, key: &str, names: &[RungName], here: &[&str], jobs: Option<&[Arc<Job>]>) -> Vec<Rung> {
        let mut rungs: Vec<Rung> = Vec::new();
        for (index, RungName(name)) in names.iter().enumerate() {
            let item = self.item(key, index);
            let allowed = here.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
            if let Some(job) = name.strip_prefix("job:") {
                let rung = self.rung_of_job(&item, name, job, &allowed, jobs);
                if rungs.contains(&rung) {
                    self.refuse(&item, format!("\"{name}\" is there twice"), "each rung once");
                }
                rungs.push(rung);
                continue;
            }
            if RUNGS.contains(&name.as_str()) && !here.contains(&name.as_str()) {
                self.refuse(&item, format!("\"{name}\" does nothing for this resource"), &allowed);
            }
            let rung = match name.as_str() {
                "shed" => Rung::Shed,
                "reclaim" => Rung::Reclaim,
                "throttle" => Rung::Throttle,
                "recycle" => Rung::Recycle,
                "kill" => Rung::Kill,
                _ => Rung::Notify,
            };
            if rungs.contains(&rung) {
                self.refuse(&item, format!("\"{name}\" is there twice"), "each rung once");
            }
            rungs.push(rung);
        }
        rungs
    }

    fn rung_of_job(&mut self, item: &str, name: &str, job: &str, allowed: &str, jobs: Option<&[Arc<Job>]>) -> Rung {
        let Some(jobs) = jobs else {
            self.refuse(item, format!("\"{name}\" does nothing for this resource"), allowed);
            return Rung::Job(Arc::from(job));
        };
        match jobs.iter().find(|known| *known.name == *job) {
            Some(known) if !known.kind.frees_disk() => {
                self.refuse(item, format!("\"{name}\" makes copies and frees nothing"), "a job that deletes");
            }
            Some(_) => {}
            None => {
                let names: Vec<&str> = jobs.iter().map(|job| &*job.name).collect();
                let suggestion = nearest(job, names.iter().copied()).map(|near| format!("job:{near}"));
                let allowed = names.iter().fold(allowed.to_owned(), |all, name| format!("{all}, \"job:{name}\""));
                let place = self.place(item);
                self.push(item, place, format!("there is no job \"{job}\""), &allowed, suggestion);
            }
        }
        Rung::Job(Arc::from(job))
    }

    fn workers(&mut self, file: &File) -> Vec<Arc<Worker>> {
        let names: Vec<&str> = file.workers.keys().map(String::as_str).collect();
        let mut workers = Vec::new();
        for (name, worker) in &file.workers {
            let key = format!("workers.{name}");
            for (index, other) in worker.after.iter().enumerate() {
                let item = self.item(&format!("{key}.after"), index);
                if other == name {
                    self.refuse(&item, "a worker cannot start after itself".to_owned(), "names of other workers");
                } else if !names.contains(&other.as_str()) {
                    let place = self.place(&item);
                    let suggestion = nearest(other, names.iter().copied().filter(|known| known != name)).map(str::to_owned);
                    self.push(&item, place, format!("there is no worker \"{other}\""), "names of other workers", suggestion);
                }
            }
            workers.push(Arc::new(self.worker(&key, name, worker)));
        }
        self.no_circle(&file.workers);
        self.each_address_once(&file.workers, &file.http.listen);
        self.no_shared_output(&workers);
        workers
    }

    /// Each file has one helper that writes it and moves its older ones on; two would do so across each other.
    fn no_shared_output(&mut self, workers: &[Arc<Worker>]) {
        let files: Vec<(&str, &OutputFile)> = workers.iter().filter_map(|worker| Some((&*worker.name, worker.output.file()?))).collect();
        for (place, (name, file)) in files.iter().enumerate() {
            let mut others = files.iter().enumerate().filter(|(other, _)| *other != place);
            let clash = others.find_map(|(other, (owner, theirs))| {
                // Of two with the same file the later is told.
                let is_same = theirs.path == file.path && other < place;
                (is_same || is_older(&file.path, theirs)).then_some(owner)
            });
            if let Some(owner) = clash {
                let message = format!("{:?} is a file of worker \"{owner}\"", file.path.display().to_string());
                self.refuse(&format!("workers.{name}.output.file"), message, "a file of its own");
            }
        }
    }

    fn worker(&mut self, key: &str, name: &str, worker: &file::Worker) -> Worker {
        let directory = worker.directory.as_ref().map(|directory| self.sources.working_dir.join(directory));
        if let (Some(given), Some(full)) = (&worker.directory, &directory) {
            let place = format!("{key}.directory");
            match std::fs::metadata(full) {
                Ok(found) if found.is_dir() => {}
                Ok(_) => self.refuse_here(&place, format!("{given:?} is not a folder"), "a folder that is there"),
                Err(error) => self.refuse_here(&place, format!("{given:?} {}", not_there(&error)), "a folder that is there"),
            }
        }
        let adopt = self.adopt(key, worker);
        if adopt.is_none() {
            self.program(key, worker, directory.as_deref());
        }
        self.account(&format!("{key}.user"), worker.user.as_ref().map(|user| user.0.as_str()), "/etc/passwd", "user");
        if worker.group.is_some() && worker.user.is_none() {
            self.refuse(&format!("{key}.group"), "has no user beside it".to_owned(), "a group for the user that is named in user");
        } else {
            self.account(&format!("{key}.group"), worker.group.as_ref().map(|group| group.0.as_str()), "/etc/group", "group");
        }
        if worker.backoff.longest < worker.backoff.first {
            self.refuse(&format!("{key}.backoff.longest"), "is shorter than first".to_owned(), "a duration not under backoff.first");
        }
        if matches!(worker.stop.signal.0, libc::SIGSTOP | libc::SIGCONT) {
            self.refuse(
                &format!("{key}.stop.signal"),
                format!("{} ends nothing", worker.stop.signal),
                "a signal that asks to end, such as \"SIGTERM\"",
            );
        }
        if let Some(signal) = worker.shed_signal.filter(|signal| matches!(signal.0, libc::SIGKILL | libc::SIGSTOP | libc::SIGCONT)) {
            self.refuse(
                &format!("{key}.shed_signal"),
                format!("{signal} cannot be caught, or means something else"),
                "a signal the program handles, such as \"SIGUSR1\"",
            );
        }
        for (name, size) in [("limits.memory", worker.limits.memory), ("recycle.memory", worker.recycle.memory)] {
            if size == Some(Size(0)) {
                self.refuse(&format!("{key}.{name}"), "leaves nothing to use".to_owned(), "a size over 0");
            }
        }
        if let (Some(recycle), Some(limit)) = (worker.recycle.memory, worker.limits.memory)
            && recycle.0 >= limit.0
        {
            let message = format!("\"{recycle}\" is not below limits.memory, \"{limit}\": the limit would strike first");
            self.refuse(&format!("{key}.recycle.memory"), message, "a size under limits.memory");
        }
        if worker.backoff.healthy_after > worker.backoff.within {
            let message = format!("\"{}\" is longer than within, \"{}\"", worker.backoff.healthy_after, worker.backoff.within);
            self.refuse(&format!("{key}.backoff.healthy_after"), message, "a duration up to backoff.within");
        }
        if worker.members == Members::Children && worker.recycle.requests.is_some() {
            let message = "cannot be told of the children of a master".to_owned();
            self.refuse(&format!("{key}.recycle.requests"), message, "the master's own setting, such as gunicorn's --max-requests");
        }
        let ready = self.ready(&format!("{key}.ready"), &worker.ready);
        if ready.by == ReadyBy::Done && worker.restart == Restart::Always {
            let message = "is never reached: the worker is started again whenever it ends".to_owned();
            self.refuse(&format!("{key}.ready.done"), message, "restart = \"on-failure\" or \"never\" beside it");
        }
        let lock = self.lock(key, name, worker);
        let health = worker.health.every.map(|every| Health {
            every: every.duration(),
            within: worker.health.within.duration(),
            fails: worker.health.fails,
        });
        if health.is_some() && !matches!(ready.by, ReadyBy::Tcp(_) | ReadyBy::Http(_)) {
            let message = "has nothing to ask".to_owned();
            self.refuse(&format!("{key}.health.every"), message, "ready.tcp or ready.http beside it");
        }
        let output = self.output(&format!("{key}.output"), &worker.output);
        by_members(
            worker.members,
            Worker {
                name: Arc::from(name),
                command: worker.command.clone(),
                adopt,
                directory,
                user: worker.user.as_ref().map(|user| user.0.clone()),
                group: worker.group.as_ref().map(|group| group.0.clone()),
                env: worker.env.iter().map(|(name, value)| (name.clone(), value.0.clone())).collect(),
                env_files: self.env_files(&format!("{key}.env_files"), &worker.env_files),
                listen: worker.listen.clone(),
                ready,
                health,
                on_daemon_death: worker.on_daemon_death,
                lock,
                process: process_settings(worker),
                replicas: match worker.replicas {
                    Count::Number(number) => Replicas::Count(number),
                    Count::Cpus { plus } => Replicas::Cpus { plus },
                },
                after: worker.after.iter().map(|name| Arc::from(name.as_str())).collect(),
                restart: worker.restart,
                backoff: Backoff {
                    first: worker.backoff.first.duration(),
                    longest: worker.backoff.longest.duration(),
                    give_up: worker.backoff.give_up,
                    within: worker.backoff.within.duration(),
                    healthy_after: worker.backoff.healthy_after.duration(),
                },
                stop: Stop { signal: Signal(worker.stop.signal.0), within: worker.stop.within.duration() },
                priority: worker.priority,
                weight: worker.weight,
                protected: worker.protected,
                throttle: worker.throttle,
                longest_stop: worker.longest_stop.duration(),
                shed_signal: worker.shed_signal.map(|signal| Signal(signal.0)),
                output,
                limits: Limits { memory: worker.limits.memory.map(|size| size.0), cpu: worker.limits.cpu.map(|cores| cores.0) },
                members: None,
                recycle: Recycle {
                    lifetime: worker.recycle.lifetime.map(|span| span.duration()),
                    memory: worker.recycle.memory.map(|size| size.0),
                    requests: worker.recycle.requests,
                    sustain: worker.recycle.sustain.duration(),
                    leak: worker.recycle.leak,
                    jitter: worker.recycle.jitter.share(),
                    gap: worker.recycle.gap.duration(),
                    overlap: worker.recycle.overlap,
                },
            },
        )
    }

    fn ready(&mut self, key: &str, ready: &file::Ready) -> Ready {
        let ways = [
            ("notify", ready.notify.then_some(ReadyBy::Notify)),
            ("tcp", ready.tcp.map(|address| ReadyBy::Tcp(address.0))),
            ("http", ready.http.clone().map(ReadyBy::Http)),
            ("delay", ready.delay.map(|delay| ReadyBy::Delay(delay.duration()))),
            ("done", ready.done.then_some(ReadyBy::Done)),
        ];
        let mut set = ways.into_iter().filter_map(|(name, way)| Some((name, way?)));
        let first = set.next();
        if let (Some((one, _)), Some((other, _))) = (&first, set.next()) {
            self.refuse(&format!("{key}.{other}"), format!("stands beside {one}"), "one of notify, tcp, http, delay and done");
        }
        if ready.tcp.is_some_and(|address| address.0.port() == 0) {
            let message = "has no port: nobody can be reached at 0".to_owned();
            self.refuse(&format!("{key}.tcp"), message, "an IP address and a port from 1 to 65535");
        }
        if let Some(delay) = ready.delay.filter(|delay| *delay > ready.within) {
            let message = format!("\"{delay}\" is longer than within, \"{}\"", ready.within);
            self.refuse(&format!("{key}.delay"), message, "a duration up to ready.within");
        }
        Ready { by: first.map_or(ReadyBy::Running, |(_, way)| way), within: ready.within.duration() }
    }

    fn env_files(&mut self, key: &str, files: &[String]) -> Vec<EnvFile> {
        let mut found = Vec::new();
        for (index, given) in files.iter().enumerate() {
            let (path, optional) = given.strip_prefix('-').map_or((given.as_str(), false), |path| (path, true));
            let item = self.item(key, index);
            let Some(path_of) = self.secret(&item, path) else { continue };
            let file = EnvFile { path: path_of, optional };
            match std::fs::read(&file.path) {
                Ok(text) => {
                    if let Err(fault) = env_file::parse(&text) {
                        self.refuse(
                            &item,
                            format!("{path:?}: {fault}"),
                            "lines of NAME=VALUE, blank lines, and comments that begin with #",
                        );
                    }
                }
                Err(error) if optional && error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => self.refuse_here(
                    &item,
                    format!("{path:?} {}", not_there(&error)),
                    "a file that can be read, or \"-\" before a path that need not be there",
                ),
            }
            found.push(file);
        }
        found
    }

    fn lock(&mut self, key: &str, name: &str, worker: &file::Worker) -> Option<Lock> {
        let lock = format!("{key}.lock");
        if !worker.singleton {
            if worker.lock.is_some() {
                self.refuse(&lock, "is for a singleton alone".to_owned(), "singleton = true beside it");
            }
            return None;
        }
        if worker.replicas != Count::Number(1) && worker.replicas != Count::Number(0) {
            self.refuse(&format!("{key}.replicas"), "is more than a singleton can be".to_owned(), "1, or 0 for none");
        }
        Some(match &worker.lock {
            None => Lock::Own(format!("{name}.lock")),
            Some(path) => Lock::At(self.absolute(&lock, path)),
        })
    }

    /// An address is bound once, whoever is handed it.
    fn each_address_once(&mut self, workers: &BTreeMap<String, file::Worker>, own: &[Address]) {
        let ours = own.iter().map(|address| (ListenAddress::Tcp(address.0), "http.listen".to_owned()));
        let mut seen: Vec<(ListenAddress, String)> = ours.collect();
        for (name, worker) in workers {
            for (index, address) in worker.listen.iter().enumerate() {
                if let Some((taken, other)) = seen.iter().find(|(taken, _)| clash(taken, address)) {
                    let message = match taken == address {
                        true => format!("\"{address}\" is listened on by {other} already"),
                        false => format!("\"{address}\" cannot be bound beside \"{taken}\" of {other}"),
                    };
                    let item = self.item(&format!("workers.{name}.listen"), index);
                    self.refuse(&item, message, "an address of its own");
                }
                seen.push((address.clone(), format!("worker \"{name}\"")));
            }
        }
    }

    fn output(&mut self, key: &str, output: &file::Output) -> Output {
        let file = match output {
            file::Output::Stream(file::OutputStream::Inherit) => return Output::Inherit,
            file::Output::Stream(file::OutputStream::Journald) => return Output::Journald,
            file::Output::File(file) => file,
        };
        let (file_key, size_key) = (format!("{key}.file"), format!("{key}.max_size"));
        if !(SMALLEST_OUTPUT..=LARGEST_OUTPUT).contains(&file.max_size.0) {
            let allowed = format!("a size from \"{}\" to \"{}\"", Size(SMALLEST_OUTPUT), Size(LARGEST_OUTPUT));
            self.refuse(&size_key, format!("\"{}\" is out of range", file.max_size), &allowed);
        }
        let allowed = "an absolute path in a folder that is there, such as \"/var/log/web.log\"";
        if file.file.is_empty() {
            if !self.is_spoiled(&file_key) {
                let place = self.place_of_key(key);
                self.push(&file_key, place, "is missing".to_owned(), allowed, None);
            }
        } else if self.sources.elsewhere && file.file.starts_with('/') {
            // Whether it can be written there is not known here.
        } else if let Some(fault) = output_fault(&file.file) {
            self.refuse(&file_key, format!("{:?} {fault}", file.file), allowed);
        }
        // By the folder's one true name: two ways to the same file are one file.
        let path = PathBuf::from(&file.file);
        let folder = path.parent().and_then(|folder| canonical(folder)?.ok());
        let path = folder.zip(path.file_name()).map_or(path.clone(), |(folder, name)| folder.join(name));
        Output::File(OutputFile { path, max_size: file.max_size.0, keep: file.keep })
    }

    /// The program is looked for as `execvp` will look for it: in the worker's own `PATH`, from the worker's folder.
    fn program(&mut self, key: &str, worker: &file::Worker, directory: Option<&Path>) {
        let command = format!("{key}.command");
        let allowed = "a list of the program and its arguments, such as [\"uvicorn\", \"app.main:app\"]";
        let Some(program) = worker.command.first() else {
            // Whoever starts the daemon gives it.
            if key == "workers.main" && !self.is_set(&command) && (self.sources.beside || self.sources.elsewhere) {
                self.unseen.push(format!("{command}: is not set; it is to stand after `plimsoll run --`"));
            } else if !self.is_spoiled(key) {
                let (place, message) = match self.is_set(&command) {
                    true => (self.place(&command), "is empty"),
                    false => (self.place_of_key(key), "is missing"),
                };
                let allowed = if key == "workers.main" { format!("{allowed}; or it is given after --") } else { allowed.to_owned() };
                self.push(&command, place, message.to_owned(), &allowed, None);
            }
            return;
        };
        if self.is_spoiled(&command) {
            return;
        }
        let item = self.item(&command, 0);
        if program.is_empty() {
            self.refuse(&item, "is empty".to_owned(), allowed);
            return;
        }
        // What was typed after -- is tried as a shell would: starting it fails with 126 or 127.
        if self.sources.elsewhere || (key == "workers.main" && !self.sources.command.is_empty()) {
            return;
        }
        let start = directory.unwrap_or(&self.sources.working_dir);
        if !start.is_dir() {
            return;
        }
        if program.contains('/') {
            if let Some(fault) = fault(&start.join(program)) {
                self.refuse(&item, format!("{program:?} {fault}"), "a program that can be run");
            }
            return;
        }
        let own = worker.env.get("PATH").map(|path| path.0.as_str());
        let path = own.or_else(|| self.sources.variable("PATH")).unwrap_or(DEFAULT_PATH);
        let mut best: Option<String> = None;
        for folder in path.split(':') {
            let candidate = start.join(if folder.is_empty() { "." } else { folder }).join(program);
            match fault(&candidate) {
                None => return,
                Some(fault) if candidate.exists() => best = best.or_else(|| Some(format!("{fault} ({})", candidate.display()))),
                Some(_) => {}
            }
        }
        let fault = best.unwrap_or_else(|| "is in no folder of PATH".to_owned());
        let has_blanks = worker.command.len() == 1 && program.contains(' ');
        let allowed = if has_blanks { allowed } else { "a program that can be run" };
        self.refuse(&item, format!("{program:?} {fault}"), allowed);
    }

    /// Names are looked up in the files only: a directory service may not be reachable when it matters, and numbers always work.
    fn account(&mut self, key: &str, name: Option<&str>, accounts: &str, kind: &str) {
        // The highest number means "leave it as it is" to the kernel: a worker would stay what the daemon is.
        let is_number = |name: &&str| name.parse::<u32>().is_ok_and(|id| id != u32::MAX);
        let Some(name) = name.filter(|name| !self.sources.elsewhere && !is_number(name)) else { return };
        let text = match std::fs::read(accounts) {
            // As it is in an image with nothing but programs in it.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let message = format!("there is no {kind} \"{name}\": {accounts} is not there");
                self.refuse(key, message, "a number, such as 65532; or put that file in place");
                return;
            }
            text => text.unwrap_or_default(),
        };
        let text = String::from_utf8_lossy(&text);
        let names: Vec<&str> = text.lines().filter_map(|line| line.split(':').next()).collect();
        if !names.contains(&name) {
            let place = self.place(key);
            let suggestion = nearest(name, names.iter().copied()).map(str::to_owned);
            self.push(key, place, format!("there is no {kind} \"{name}\" in {accounts}"), "a name from there, or a number", suggestion);
        }
    }

    /// Nobody can wait for a worker that waits for him.
    fn no_circle(&mut self, workers: &BTreeMap<String, file::Worker>) {
        let mut reported: BTreeSet<&str> = BTreeSet::new();
        for start in workers.keys() {
            if reported.contains(start.as_str()) {
                continue;
            }
            if let Some(circle) = circle(workers, start) {
                let shown = circle.iter().chain(circle.first()).copied().collect::<Vec<_>>().join(" → ");
                reported.extend(&circle);
                self.refuse(&format!("workers.{start}.after"), format!("the order is a circle: {shown}"), "an order with a first worker");
            }
        }
    }
}

/// What holds for each child says nothing of the whole.
fn by_members(members: Members, worker: Worker) -> Worker {
    if members == Members::Tree {
        return worker;
    }
    let Worker { limits, recycle, .. } = worker;
    let Recycle { lifetime, memory, sustain, leak, jitter, gap, .. } = recycle;
    Worker {
        members: Some(MemberRules { limit: limits.memory, memory, sustain, leak, lifetime, jitter, gap }),
        limits: Limits { memory: None, ..limits },
        recycle: Recycle { lifetime: None, memory: None, leak: false, requests: None, ..recycle },
        ..worker
    }
}

fn process_settings(worker: &file::Worker) -> ProcessSettings {
    let file::Rlimits { address_space, core, cpu, data, fsize, memlock, nofile, nproc, stack } = &worker.rlimits;
    let rlimits = [
        (Rlimit::AddressSpace, address_space),
        (Rlimit::Core, core),
        (Rlimit::Cpu, cpu),
        (Rlimit::Data, data),
        (Rlimit::Fsize, fsize),
        (Rlimit::Memlock, memlock),
        (Rlimit::Nofile, nofile),
        (Rlimit::Nproc, nproc),
        (Rlimit::Stack, stack),
    ];
    let amount = |amount: ResourceAmount| match amount {
        ResourceAmount::Unlimited => None,
        ResourceAmount::Amount(amount) => Some(amount),
    };
    ProcessSettings {
        umask: worker.umask.map(|mask| mask.0),
        nice: worker.nice,
        ionice: worker.ionice,
        affinity: worker.affinity.as_ref().map(|list| list.0.clone()),
        oom_score_adj: worker.oom_score_adj,
        merge_pages: worker.merge_pages,
        rlimits: rlimits.into_iter().filter_map(|(which, set)| Some((which, amount((*set)?)))).collect(),
    }
}

/// The way from `start` along `after` back to itself, without `start` at its end.
fn circle<'a>(workers: &'a BTreeMap<String, file::Worker>, start: &'a str) -> Option<Vec<&'a str>> {
    let mut seen = BTreeSet::new();
    let mut ways = vec![vec![start]];
    while let Some(way) = ways.pop() {
        let last = way.last().copied().unwrap_or(start);
        for next in workers.get(last).map(|worker| worker.after.as_slice()).unwrap_or_default() {
            if next == start && way.len() > 1 {
                return Some(way);
            }
            if next != start && seen.insert(next.as_str()) {
                ways.push(way.iter().copied().chain([next.as_str()]).collect());
            }
        }
    }
    None
}

const CPU_RUNGS: [&str; 4] = ["notify", "throttle", "recycle", "kill"];
const MEMORY_RUNGS: [&str; 6] = RUNGS;
const DISK_RUNGS: [&str; 2] = ["notify", "throttle"];

fn not_there(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "is not there".to_owned(),
        _ => format!("cannot be reached: {error}"),
    }
}

/// How long a disk may take to say whether a folder is on it.
const PATIENCE: Duration = Duration::from_millis(250);

/// What a disk answers. `None` when it does not: on a dead network or FUSE mount the question never returns, so it is asked
/// by a thread of its own, which is left behind then.
fn patiently<T: Send + 'static>(question: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (tell, told) = std::sync::mpsc::channel();
    // Whoever asked may have stopped waiting.
    let ask = move || drop(tell.send(question()));
    std::thread::Builder::new().name("disk".into()).stack_size(64 * 1024).spawn(ask).ok()?;
    told.recv_timeout(PATIENCE).ok()
}

/// The folder as the kernel sees it; `None` when its disk does not answer.
fn canonical(path: &Path) -> Option<std::io::Result<PathBuf>> {
    let path = path.to_path_buf();
    patiently(move || std::fs::canonicalize(path))
}

/// Files for output have sizes in between.
const SMALLEST_OUTPUT: u64 = 64_000;
const LARGEST_OUTPUT: u64 = 1_000_000_000_000;

/// Why a file cannot take in the output of a worker. One whose disk does not answer may well do: its worker is told of in
/// the file itself.
fn output_fault(file: &str) -> Option<String> {
    if !file.starts_with('/') {
        return Some("is a relative path".to_owned());
    }
    let path = PathBuf::from(file);
    // "/var/log/" and "/var/log/.." name folders, whatever is there.
    let (Some(_), Some(folder), false) = (path.file_name(), path.parent().map(Path::to_path_buf), file.ends_with('/')) else {
        return Some("is a folder".to_owned());
    };
    let (there, around) = patiently(move || (std::fs::symlink_metadata(path), std::fs::metadata(folder)))?;
    match (there, around) {
        (Ok(there), _) if there.is_dir() => Some("is a folder".to_owned()),
        // Where a worker may write to the folder, a link would have the daemon write anywhere.
        (Ok(there), _) if there.is_symlink() => Some("is a symbolic link, which is not followed".to_owned()),
        (Ok(there), _) if !there.is_file() => Some("is no regular file".to_owned()),
        (_, Ok(around)) if !around.is_dir() => Some("is not in a folder".to_owned()),
        (_, Err(error)) => Some(format!("is in a folder that {}", not_there(&error))),
        _ => None,
    }
}

/// The kernel does not bind both: all addresses of a family are one with each of them. Those of the two families stand side by side.
fn clash(one: &ListenAddress, other: &ListenAddress) -> bool {
    let (ListenAddress::Tcp(one), ListenAddress::Tcp(other)) = (one, other) else { return one == other };
    let is_any = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port() && one.port() != 0 && one.is_ipv4() == other.is_ipv4() && (is_any || one.ip() == other.ip())
}

/// True for `web.log.1` beside `web.log`, up to as many as are kept.
fn is_older(path: &Path, of: &OutputFile) -> bool {
    let number = path.to_str().zip(of.path.to_str()).and_then(|(path, current)| path.strip_prefix(current)?.strip_prefix('.'));
    number.and_then(|number| number.parse::<u32>().ok()).is_some_and(|number| (1..=of.keep).contains(&number))
}

/// Why a file cannot be run.
fn fault(path: &Path) -> Option<String> {
    use std::os::unix::fs::PermissionsExt as _;
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => Some("is a folder".to_owned()),
        Ok(found) if found.permissions().mode() & 0o111 == 0 => Some("is not executable".to_owned()),
        Ok(_) => None,
        Err(error) => Some(not_there(&error)),
    }
}

/// `points` under a percentage, or half of it when it is too small for that.
fn under(high: Percent, points: f64) -> Percent {
    Percent(if high.0 > 2.0 * points { high.0 - points } else { high.0 / 2.0 })
}

fn low_under(high: BytesLine, points: f64, parts: u64) -> BytesLine {
    match high {
        BytesLine::Percent(high) => BytesLine::Percent(under(high, points)),
        BytesLine::Size(Size(high)) => BytesLine::Size(Size(high / (parts + 1) * parts)),
    }
}

/// Between a percentage and the limit; nothing lies between 100 % and the limit.
fn half_way(high: BytesLine) -> Option<BytesLine> {
    match high {
        BytesLine::Percent(Percent(high)) if high < 100.0 => Some(BytesLine::Percent(Percent((high + 100.0) / 2.0))),
        _ => None,
    }
}

/// A line as it can be compared and shown.
trait LineText: Copy + std::fmt::Display {
    fn line(self) -> Line;
}

impl LineText for BytesLine {
    fn line(self) -> Line {
        match self {
            BytesLine::Percent(percent) => Line::Share(percent.share()),
            // Exact up to 8 PiB.
            BytesLine::Size(Size(bytes)) => Line::Amount(bytes as f64),
        }
    }
}

impl LineText for CoresLine {
    fn line(self) -> Line {
        match self {
            CoresLine::Percent(percent) => Line::Share(percent.share()),
            CoresLine::Cores(Cores(cores)) => Line::Amount(cores),
        }
    }
}

/// Whether `a` is under `b`; unknown for a share and an amount without a limit.
fn below<L: LineText>(a: L, b: L, limit: Option<f64>) -> Option<bool> {
    match (a.line(), b.line(), limit) {
        (Line::Share(a), Line::Share(b), _) | (Line::Amount(a), Line::Amount(b), _) => Some(a < b),
        (a, b, Some(limit)) => Some(a.amount_of(limit) < b.amount_of(limit)),
        _ => None,
    }
}
