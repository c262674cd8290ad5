//! Whether a life that was started is ready: looked at again and again, each look answering at once.
//!
//! A connection that the kernel has taken is no proof: where the daemon itself listens for the worker, or another copy shares
//! the port, it may wait for, or be answered by, somebody else. There a check counts only once the other end of the
//! connection is a descriptor of this very tree; that is looked at before anything is asked, while the connection stands still.
//! Elsewhere it need not be: a container's port is held by its engine, say. But who held the port before the worker was
//! started is not it.

use std::net::SocketAddr;
use std::time::Duration;

use crate::config::settings::ReadyBy;
use crate::host::Paths;
use crate::host::sockets::{Connection, NotifySocket, Progress};

/// Between two looks: at first, and at the most.
const FIRST_LOOK: Duration = Duration::from_millis(10);
const LONGEST_LOOK: Duration = Duration::from_millis(250);
/// The same while a connection is there: whoever has accepted it may do nothing else until it is used or closed.
const FIRST_STEP: Duration = Duration::from_millis(2);
const LONGEST_STEP: Duration = Duration::from_millis(25);
/// An attempt that has brought nothing by then is given up for another.
const ATTEMPT: Duration = Duration::from_secs(10);
/// No status line is longer.
const LONGEST_ANSWER: usize = 4096;

/// What a look may ask about the tree that is to be ready.
pub trait Tree {
    /// A process of it.
    fn holds(&self, pid: i32) -> bool;
    /// One of its processes has this socket.
    fn owns(&self, inode: u64) -> bool;
    /// Who has this socket and was there before the tree was, in words; `None` where that is nobody, or cannot be seen.
    fn held_before(&self, inode: u64) -> Option<String>;
}

/// The check of one life.
#[derive(Debug)]
pub struct Check {
    by: ReadyBy,
    began: Duration,
    next_look: Duration,
    gap: Duration,
    /// Somebody else may answer.
    is_shared: bool,
    attempt: Option<Attempt>,
    pub notify: Option<NotifySocket>,
    /// Why it is not ready yet, for people.
    pub missing: String,
}

#[derive(Debug)]
struct Attempt {
    connection: Connection,
    began: Duration,
    step: Duration,
    asked: bool,
    is_ours: bool,
    answer: Vec<u8>,
}

impl Check {
    pub fn new(by: &ReadyBy, is_shared: bool, notify: Option<NotifySocket>, now: Duration) -> Check {
        let missing = match by {
            ReadyBy::Notify => "it has not said READY=1".to_owned(),
            ReadyBy::Done => "it has not ended".to_owned(),
            _ => String::new(),
        };
        Check { by: by.clone(), began: now, next_look: now, gap: FIRST_LOOK, is_shared, attempt: None, notify, missing }
    }

    /// When it began, on the steady clock.
    pub fn began(&self) -> Duration {
        self.began
    }

    /// When it wants to be looked at without anything arriving.
    pub fn next_look(&self) -> Option<Duration> {
        match &self.by {
            ReadyBy::Running => Some(self.began),
            ReadyBy::Notify | ReadyBy::Done => None,
            ReadyBy::Delay(delay) => Some(self.began + *delay),
            ReadyBy::Tcp(_) | ReadyBy::Http(_) => Some(self.next_look),
        }
    }

    /// True once it is ready.
    pub fn look(&mut self, now: Duration, paths: &Paths, tree: &dyn Tree) -> bool {
        match &self.by {
            ReadyBy::Running => true,
            ReadyBy::Done => false,
            ReadyBy::Delay(delay) => now >= self.began + *delay,
            ReadyBy::Notify => self.notify.as_ref().is_some_and(|notify| was_told(notify, tree)),
            ReadyBy::Tcp(_) | ReadyBy::Http(_) if now < self.next_look => false,
            ReadyBy::Tcp(_) | ReadyBy::Http(_) => {
                let is_ready = self.try_once(now, paths, tree);
                self.next_look = match &mut self.attempt {
                    Some(attempt) => {
                        attempt.step = (attempt.step * 5 / 4).min(LONGEST_STEP);
                        now + attempt.step
                    }
                    None => {
                        let gap = self.gap;
                        self.gap = (gap * 3 / 2).min(LONGEST_LOOK);
                        now + gap
                    }
                };
                is_ready
            }
        }
    }

    fn try_once(&mut self, now: Duration, paths: &Paths, tree: &dyn Tree) -> bool {
        let (target, path) = match &self.by {
            ReadyBy::Tcp(address) => (*address, None),
            ReadyBy::Http(place) => (place.address, Some(place.path.as_str())),
            _ => return false,
        };
        let attempt = match self.attempt.take().filter(|attempt| now < attempt.began + ATTEMPT) {
            Some(attempt) => Ok(attempt),
            None => Connection::begin(target).map(|connection| Attempt {
                connection,
                began: now,
                step: FIRST_STEP,
                asked: false,
                is_ours: false,
                answer: Vec::new(),
            }),
        };
        let step = attempt.and_then(|mut attempt| Ok((attempt.go_on(target, self.is_shared, path, paths, tree)?, attempt)));
        match step {
            Ok((Stage::Ready, _)) => return true,
            Ok((Stage::Unfit(why), _)) => self.missing = why,
            Ok((Stage::Pending(why), attempt)) => {
                self.missing = why;
                self.attempt = Some(attempt);
            }
            Err(error) => self.missing = format!("{target}: {error}"),
        }
        false
    }
}

enum Stage {
    Ready,
    Pending(String),
    /// This attempt comes to nothing.
    Unfit(String),
}

impl Attempt {
    fn go_on(&mut self, target: SocketAddr, is_shared: bool, path: Option<&str>, paths: &Paths, tree: &dyn Tree) -> std::io::Result<Stage> {
        if self.connection.progress()? == Progress::Pending {
            return Ok(Stage::Pending("the connection is not there yet".to_owned()));
        }
        if !self.is_ours {
            match self.connection.peer_inode(paths) {
                Some(inode) if tree.owns(inode) => self.is_ours = true,
                Some(_) if is_shared => return Ok(Stage::Unfit("another copy has answered".to_owned())),
                None if is_shared => return Ok(Stage::Pending("it has not accepted the connection".to_owned())),
                // Nobody else is to be there, so whoever listens will do, but for one that had the port before the worker came.
                found => match found.or_else(|| self.connection.listener_inode(paths)).and_then(|inode| tree.held_before(inode)) {
                    Some(who) => return Ok(Stage::Unfit(format!("{target} is held by {who}, which was there before it"))),
                    None => self.is_ours = true,
                },
            }
        }
        let Some(path) = path else { return Ok(Stage::Ready) };
        if !self.asked {
            let request = format!(
                "GET {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: plimsoll\r\nAccept: */*\r\nConnection: close\r\n\r\n",
                host(target)
            );
            self.connection.send(request.as_bytes())?;
            self.asked = true;
        }
        let is_open = self.connection.receive(&mut self.answer)?;
        match status(&self.answer) {
            Some(200..=399) => Ok(Stage::Ready),
            Some(code) => Ok(Stage::Unfit(format!("GET {path} is answered with status {code}, which is none of 200 to 399"))),
            None if !is_open || self.answer.len() > LONGEST_ANSWER => Ok(Stage::Unfit("what it answers is not HTTP".to_owned())),
            None => Ok(Stage::Pending("it has not answered".to_owned())),
        }
    }
}

/// As `Host` wants it: an IPv6 address in brackets, and the port where it is not the usual one.
fn host(target: SocketAddr) -> String {
    match (target.port(), target) {
        (80, SocketAddr::V4(target)) => target.ip().to_string(),
        (80, SocketAddr::V6(target)) => format!("[{}]", target.ip()),
        _ => target.to_string(),
    }
}

/// The status in the first line of an answer, once that is whole enough to tell.
fn status(answer: &[u8]) -> Option<u16> {
    let rest = answer.strip_prefix(b"HTTP/1.")?;
    let code = rest.get(2..5).filter(|_| rest.get(1) == Some(&b' ') && rest.get(5).is_some_and(|byte| !byte.is_ascii_digit()))?;
    std::str::from_utf8(code).ok()?.parse().ok()
}

/// Takes in what has arrived; true when a process of the tree has said that it is ready.
pub fn was_told(notify: &NotifySocket, tree: &dyn Tree) -> bool {
    let mut is_ready = false;
    while let Some(message) = notify.receive() {
        let says_so = message.text.split(|byte| *byte == b'\n').any(|line| line.trim_ascii_end() == b"READY=1");
        is_ready |= says_so && tree.holds(message.pid);
    }
    is_ready
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::path::Path;

    use crate::config::settings::WebAddress;

    /// A tree that is this test itself, or nobody.
    struct Whole(bool);

    impl Tree for Whole {
        fn holds(&self, _: i32) -> bool {
            self.0
        }

        fn owns(&self, _: u64) -> bool {
            self.0
        }

        fn held_before(&self, _: u64) -> Option<String> {
            None
        }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn status_lines_as_servers_write_them() {
        for (answer, code) in [
            ("HTTP/1.1 200 OK\r\n", Some(200)),
            ("HTTP/1.0 503\r\n", Some(503)),
            ("HTTP/1.1 20", None),
            ("HTTP/1.1 200", None),
            ("HTTP/1.1 2000 ", None),
            ("SSH-2.0-x", None),
            ("", None),
        ] {
            assert_eq!(status(answer.as_bytes()), code, "{answer:?}");
        }
    }

    #[test]
    fn a_connection_in_the_backlog_proves_nothing_for_a_port_that_is_shared() {
        let paths = Paths::below(Path::new("/"));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let by = ReadyBy::Tcp(listener.local_addr().unwrap());
        assert!(Check::new(&by, false, None, seconds(0)).look(seconds(0), &paths, &Whole(true)), "nobody else is there");
        let mut check = Check::new(&by, true, None, seconds(0));
        assert!(!check.look(seconds(0), &paths, &Whole(true)), "nobody has accepted it");
        let _first = listener.accept().unwrap();
        let _second = listener.accept().unwrap();
        assert!(check.look(seconds(1), &paths, &Whole(true)));
        let mut check = Check::new(&by, true, None, seconds(0));
        check.look(seconds(0), &paths, &Whole(false));
        let _third = listener.accept().unwrap();
        assert!(!check.look(seconds(1), &paths, &Whole(false)));
        assert_eq!(check.missing, "another copy has answered");
    }

    #[test]
    fn an_answer_counts_by_its_status() {
        let paths = Paths::below(Path::new("/"));
        for (answer, is_ready) in [("HTTP/1.1 204 No Content\r\n\r\n", true), ("HTTP/1.1 503 Not yet\r\n\r\n", false), ("hello\r\n", false)]
        {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let mut check = Check::new(&ReadyBy::Http(WebAddress { address, path: "/health".into() }), true, None, seconds(0));
            assert!(!check.look(seconds(0), &paths, &Whole(true)));
            let (mut server, _) = listener.accept().unwrap();
            check.look(seconds(1), &paths, &Whole(true));
            let mut request = [0_u8; 512];
            let length = server.read(&mut request).unwrap();
            assert!(request[..length].starts_with(format!("GET /health HTTP/1.1\r\nHost: {address}\r\n").as_bytes()));
            server.write_all(answer.as_bytes()).unwrap();
            drop(server);
            assert_eq!(check.look(seconds(2), &paths, &Whole(true)), is_ready, "{answer}: {}", check.missing);
        }
    }

    #[test]
    fn who_had_the_port_before_is_not_the_worker() {
        /// Nobody of the tree listens; somebody else did before.
        struct Taken;
        impl Tree for Taken {
            fn holds(&self, _: i32) -> bool {
                false
            }
            fn owns(&self, _: u64) -> bool {
                false
            }
            fn held_before(&self, inode: u64) -> Option<String> {
                (inode != 0).then(|| "pid 1 (old)".to_owned())
            }
        }
        let paths = Paths::below(Path::new("/"));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let web = WebAddress { address, path: "/".into() };
        for by in [ReadyBy::Tcp(address), ReadyBy::Http(web)] {
            let mut check = Check::new(&by, false, None, seconds(0));
            assert!(!check.look(seconds(0), &paths, &Taken), "in its queue");
            assert_eq!(check.missing, format!("{address} is held by pid 1 (old), which was there before it"));
            let _accepted = listener.accept().unwrap();
        }
        assert!(Check::new(&ReadyBy::Tcp(address), false, None, seconds(0)).look(seconds(0), &paths, &Whole(false)), "it came later");
    }

    #[test]
    fn hosts_are_named_as_http_wants_it() {
        for (target, named) in
            [("127.0.0.1:80", "127.0.0.1"), ("127.0.0.1:8000", "127.0.0.1:8000"), ("[::1]:80", "[::1]"), ("[::1]:8000", "[::1]:8000")]
        {
            assert_eq!(host(target.parse().unwrap()), named);
        }
    }

    #[test]
    fn refused_is_asked_again_at_growing_distance() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut check = Check::new(&ReadyBy::Tcp(address), false, None, seconds(0));
        let mut looks = 0;
        let mut now = Duration::ZERO;
        while now < seconds(10) {
            assert!(!check.look(now, &Paths::below(Path::new("/")), &Whole(true)));
            now = check.next_look().unwrap();
            looks += 1;
        }
        assert!((40..60).contains(&looks), "{looks}");
        assert!(check.missing.contains("refused"), "{}", check.missing);
    }

    proptest! {
        #[test]
        fn any_answer_is_survived(answer in proptest::collection::vec(any::<u8>(), 0..64)) {
            status(&answer);
        }
    }
}
