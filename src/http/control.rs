//! What a request may ask of the loop: a command, answered when the loop has carried it out.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::config::settings::Signal;

/// One command and the way back to whoever asked.
#[derive(Debug)]
pub struct Request {
    pub command: Command,
    pub answer: oneshot::Sender<Answer>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Read the file again and apply it whole or not at all.
    Reload,
    /// Say what that would do.
    PlanReload,
    /// Undo every limit and thaw everything; policy may act again from the next tick on.
    Release,
    /// End in order, as after SIGTERM.
    Shutdown,
    Worker(WorkerCommand),
    Job(JobCommand),
    /// Become the program the daemon was started from, as it is now. Never another: whoever may ask over the network may not choose
    /// what is executed.
    Upgrade,
}

/// A job is to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobCommand {
    pub job: Arc<str>,
    /// The plan alone.
    pub dry_run: bool,
    /// Somebody has looked at the plan: no brake holds it.
    pub yes: bool,
    /// How long whoever asked waits for its end; as long as it may take unless set.
    pub wait: Option<Duration>,
}

/// Something a worker is to do, or one replica of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerCommand {
    pub worker: Arc<str>,
    pub replica: Option<u32>,
    pub verb: Verb,
    /// How long whoever asked waits for it to be done; as long as it may take unless set.
    pub wait: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Start,
    Stop,
    Restart,
    Recycle,
    /// To so many replicas.
    Scale(u32),
    Signal(Signal),
    /// Asked to drop its caches.
    Shed,
    /// The replica that has this process, or the one named, has answered requests.
    Requests {
        pid: Option<i32>,
        requests: Requests,
    },
}

/// A number of requests: how many since the last report, or in the whole life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requests {
    More(u64),
    InAll(u64),
}

/// What became of it, in words for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Done(String),
    /// As above, with all that is to be said.
    Data(serde_json::Value),
    /// The daemon is about to become another program, and who asked may look for that.
    Becoming(String),
    /// There is nothing of that name.
    Unknown(String),
    Refused(String),
    /// Begun and not done in the time that was given: what it waits for.
    Waits(String),
}

/// The sending end of the loop's queue. Bounded: a flood of requests is refused, the loop is never slowed.
#[derive(Clone)]
pub struct CommandQueue {
    sender: mpsc::SyncSender<Request>,
    wake: std::sync::Arc<dyn Fn() + Send + Sync>,
}

impl CommandQueue {
    /// A queue of `capacity` requests; `wake` is called after each, to get the loop out of its wait.
    pub fn new(capacity: usize, wake: std::sync::Arc<dyn Fn() + Send + Sync>) -> (CommandQueue, mpsc::Receiver<Request>) {
        let (sender, receiver) = mpsc::sync_channel(capacity);
        (CommandQueue { sender, wake }, receiver)
    }

    /// Puts a command in the queue; the answer arrives on the returned channel. `None` when the queue is full or the
    /// loop has ended.
    pub fn ask(&self, command: Command) -> Option<oneshot::Receiver<Answer>> {
        let (answer, receiver) = oneshot::channel();
        self.sender.try_send(Request { command, answer }).ok()?;
        (self.wake)();
        Some(receiver)
    }
}

impl std::fmt::Debug for CommandQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CommandQueue")
    }
}
