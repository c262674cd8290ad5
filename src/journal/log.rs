//! Where the log goes: text on a terminal, JSON lines elsewhere, native fields when standard error is the journal.
//!
//! The loop must never wait for whoever reads the log: lines go through a bounded queue to a thread that writes them, and
//! the journal's socket is made non-blocking (with a journal that does not drain, the tenth event blocked for 5 s). What
//! does not fit is dropped and counted.

use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::time::Duration;

use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, Registry};

use crate::config::settings::{Log, LogFormat, LogLevel};
use crate::host::scheduling;

/// Lines waiting to be written.
const QUEUE: usize = 1024;

/// Keeps the log going; dropping it writes out what is queued.
#[derive(Debug)]
pub struct Guard {
    sender: Option<SyncSender<Line>>,
    finished: mpsc::Receiver<()>,
    dropped: Arc<AtomicU64>,
}

enum Line {
    Text(Vec<u8>),
    End,
}

impl Guard {
    /// Lines that were dropped because nobody took them.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Those of the program we were before count too.
    pub fn count_on(&self, dropped: u64) {
        self.dropped.fetch_add(dropped, Ordering::Relaxed);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(sender) = self.sender.take() {
            // A reader that has stalled does not hold up the end for long.
            let _ = sender.try_send(Line::End);
            let _ = self.finished.recv_timeout(Duration::from_secs(1));
        }
    }
}

#[derive(Clone)]
struct Queue {
    sender: SyncSender<Line>,
    dropped: Arc<AtomicU64>,
}

impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.sender.try_send(Line::Text(line.to_vec())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Queue;

    fn make_writer(&'a self) -> Queue {
        self.clone()
    }
}

/// Starts the log for the whole process. Called once, before other threads exist. `journal_stream` is the environment's
/// `JOURNAL_STREAM`.
///
/// # Errors
/// When the writing thread cannot be made, or journald was asked for by name and is not there.
pub fn start(settings: &Log, journal_stream: Option<&str>) -> io::Result<Guard> {
    let (sender, lines) = mpsc::sync_channel(QUEUE);
    let (done, finished) = mpsc::channel();
    let dropped = Arc::new(AtomicU64::new(0));
    let format = match settings.format {
        LogFormat::Auto if stderr_is_journal(journal_stream) => LogFormat::Journald,
        LogFormat::Auto if io::stderr().is_terminal() => LogFormat::Text,
        LogFormat::Auto => LogFormat::Json,
        chosen => chosen,
    };
    let level = match settings.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    // Libraries speak only when something is wrong.
    let filter = Targets::new().with_default(LevelFilter::WARN.min(level)).with_target("plimsoll", level);
    let queue = Queue { sender: sender.clone(), dropped: dropped.clone() };
    let lines_layer = |format: LogFormat| -> Box<dyn Layer<Registry> + Send + Sync> {
        let layer = tracing_subscriber::fmt::layer().with_writer(queue.clone()).with_ansi(false).with_target(false);
        match format {
            LogFormat::Text => layer.compact().boxed(),
            _ => layer.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed(),
        }
    };
    let layer = match format {
        LogFormat::Journald => match journald() {
            Ok(layer) => layer.boxed(),
            Err(error) if settings.format == LogFormat::Journald => {
                return Err(io::Error::new(error.kind(), format!("log.format = \"journald\", but the journal cannot be reached: {error}")));
            }
            Err(_) => lines_layer(LogFormat::Json),
        },
        other => lines_layer(other),
    };
    let subscriber = Registry::default().with(layer.with_filter(filter));
    tracing::subscriber::set_global_default(subscriber).map_err(io::Error::other)?;
    let missed = dropped.clone();
    let log = std::thread::Builder::new().name("log".into()).stack_size(256 * 1024);
    scheduling::deaf_to_signals(|| log.spawn(move || write_lines(&lines, &done, &missed)))?;
    Ok(Guard { sender: Some(sender), finished, dropped })
}

fn write_lines(lines: &mpsc::Receiver<Line>, done: &mpsc::Sender<()>, dropped: &AtomicU64) {
    let mut told = 0;
    let mut stderr = io::stderr();
    while let Ok(Line::Text(text)) = lines.recv() {
        // Nobody is left to be told when standard error is gone.
        let _ = stderr.write_all(&text);
        let now = dropped.load(Ordering::Relaxed);
        if now > told {
            let _ = writeln!(stderr, "{{\"event\":\"log_lines_dropped\",\"count\":{}}}", now - told);
            told = now;
        }
    }
    let _ = done.send(());
}

/// The layer that speaks the journal's own protocol, its socket made non-blocking: it opens exactly one, the descriptor
/// that was not there before.
fn journald() -> io::Result<tracing_journald::Layer> {
    let before = open_descriptors();
    // The crate files info under notice: `journalctl -p info` and an alert on notice would not mean what they say.
    let priorities = PriorityMappings { info: Priority::Informational, debug: Priority::Debug, ..PriorityMappings::new() };
    let layer = tracing_journald::layer()?.with_field_prefix(None).with_syslog_identifier("plimsoll".to_owned());
    let layer = layer.with_priority_mappings(priorities);
    for fd in open_descriptors().into_iter().filter(|fd| !before.contains(fd)) {
        // SAFETY: the descriptor was listed a moment ago and belongs to the layer, which lives on.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let flags = rustix::fs::fcntl_getfl(fd)?;
        rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)?;
    }
    Ok(layer)
}

/// Descriptors of this process, sockets among them.
fn open_descriptors() -> Vec<RawFd> {
    let sockets = |fd: RawFd| {
        let link = std::fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
        link.to_string_lossy().starts_with("socket:").then_some(fd)
    };
    let Ok(folder) = std::fs::read_dir("/proc/self/fd") else { return Vec::new() };
    folder.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).filter_map(sockets).collect()
}

/// `JOURNAL_STREAM` names the device and inode of a stream to the journal; only if standard error is that very stream is
/// it ours (systemd.exec(5)).
fn stderr_is_journal(journal_stream: Option<&str>) -> bool {
    let Some((device, inode)) = journal_stream.and_then(|stream| stream.split_once(':')) else { return false };
    let Ok(fd) = io::stderr().as_fd().try_clone_to_owned() else { return false };
    let Ok(metadata) = std::fs::File::from(fd).metadata() else { return false };
    device.parse() == Ok(metadata.dev()) && inode.parse() == Ok(metadata.ino())
}
