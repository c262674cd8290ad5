//! The server: its own thread, listeners handed in already bound, everything answered from the published snapshot.
//!
//! | route | class | answers |
//! |---|---|---|
//! | `GET /metrics` | open | the page, Prometheus text or OpenMetrics by `Accept` |
//! | `GET /healthz` | open | 200 while the loop meets its deadline, else 503 |
//! | `GET /readyz` | open | 200 when all workers are past their start, else 503 |
//! | `GET /` | guarded | the dashboard, if it is switched on |
//! | `GET /admin/resources/health` | guarded | `{status, checks, timestamp}` |
//! | `GET /admin/resources/stats` | guarded | the snapshot |
//! | `POST /admin/resources/cache/invalidate` | guarded | reads the configuration again |
//! | `GET /admin/throttle?wait=300s` | guarded | `{throttled, resources, retry_after_s}` |
//! | `GET /admin/workers` | guarded | the workers of the snapshot |
//! | `POST /admin/workers/NAME/VERB` | guarded | start, stop, restart, recycle, scale, signal, shed, requests |
//! | `GET /admin/jobs` | guarded | the jobs of the snapshot |
//! | `GET /admin/jobs/NAME/runs` | guarded | how its last runs ended, the latest first |
//! | `POST /admin/jobs/NAME/run?dry_run=true&yes=true&wait=30s` | guarded | runs it now, and answers when it has ended |
//! | `GET /admin/explain?of=NAME` | guarded | how one thing, or everything, is and why |
//! | `GET /admin/events?follow=true&after=N` | guarded | events after number N, or a stream of them |
//! | `GET /admin/config` | guarded | the effective settings without secrets |
//! | `POST /admin/config/reload?dry_run=true` | guarded | applies the file, whole or not at all; with `dry_run` says what that would do |
//! | `POST /admin/release` | guarded | undoes every limit |
//! | `POST /admin/upgrade` | guarded | the daemon becomes its program as it is now on the disk |
//!
//! `access.rs` says who may ask. A `GET` route answers `HEAD` too. Errors are `{error, message}`; only what is not HTTP at all
//! gets a bare 400 or 431 from the protocol library.

use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::mpsc;
use std::sync::{Arc, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tower::ServiceExt;

use super::access::{Claim, Class, CurrentAccess, Denied, Peer, judge};
use super::control::CommandQueue;
use super::dashboard;
use super::ending::Ending;
use super::events::EventSource;
use super::patient::Patient;
use super::problem::Problem;
use super::routes::{self, Shared};
use crate::host::scheduling;
use crate::metrics::Scrape;
use crate::metrics::registry::Clock;
use crate::snapshot::Published;

/// Everything the server needs; it opens nothing itself.
pub struct Parts {
    pub tcp: Vec<TcpListener>,
    pub unix: Option<UnixListener>,
    pub published: Arc<Published>,
    pub commands: CommandQueue,
    pub access: Arc<CurrentAccess>,
    /// The effective settings without secrets, replaced by a reload.
    pub effective: Arc<RwLock<Value>>,
    pub events: Arc<dyn EventSource>,
    pub clock: Clock,
    pub limits: Limits,
}

/// What one client may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For the whole head of a request, and for an idle connection between two.
    pub head: Duration,
    /// For a request's body to arrive, and for the loop to answer a command.
    pub request: Duration,
    /// For a client to take some of its answer.
    pub write: Duration,
    /// Bytes of a head.
    pub head_size: usize,
    /// Bytes of a body.
    pub body_size: usize,
    /// Connections at once over TCP, and as many again on the control socket, so that a flood outside locks nobody out.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            head: Duration::from_secs(10),
            request: Duration::from_secs(10),
            write: Duration::from_secs(30),
            head_size: 16 * 1024,
            body_size: 64 * 1024,
            connections: 256,
        }
    }
}

/// The running server. Dropping it ends the server too, without waiting.
pub struct Handle {
    end: watch::Sender<Option<Duration>>,
    done: mpsc::Receiver<()>,
    thread: JoinHandle<()>,
}

impl Handle {
    /// As [`Handle::shutdown`] begins, for whoever has something else to do before it waits.
    pub fn begin_shutdown(&self, grace: Duration) {
        // An error says that the thread has ended already.
        let _ = self.end.send(Some(grace));
    }

    /// Stops accepting, lets what is being answered finish for at most `grace`, and waits for the thread to end. Waiting and
    /// following requests are told at once. False when the thread did not end in time.
    pub fn shutdown(self, grace: Duration) -> bool {
        self.begin_shutdown(grace);
        // What is left after the grace is dropped at once; the second is for a machine too busy to do even that.
        match self.done.recv_timeout(grace + Duration::from_secs(1)) {
            Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => self.thread.join().is_ok(),
            Err(mpsc::RecvTimeoutError::Timeout) => false,
        }
    }

    /// True when the thread has ended, which it does by itself only through a defect.
    pub fn ended(&self) -> bool {
        self.thread.is_finished()
    }
}

/// Starts the server on a thread of its own, named `http`. It has its own copies of the listeners: the caller drops `parts`
/// when all went well, and tries again with them when it did not.
///
/// # Errors
/// No thread, descriptor or memory to be had.
pub fn spawn(parts: &Parts) -> io::Result<Handle> {
    let (end, ending) = watch::channel(None);
    let ending = Ending::new(ending);
    let scrape = Scrape::new(parts.published.clone(), parts.clock.clone()).map_err(io::Error::other)?;
    let shared = Shared {
        published: parts.published.clone(),
        scrape,
        commands: parts.commands.clone(),
        access: parts.access.clone(),
        effective: parts.effective.clone(),
        events: parts.events.clone(),
        clock: parts.clock.clone(),
        patience: parts.limits.request,
        ending: ending.clone(),
    };
    let front = Front { access: shared.access.clone(), router: routes::router(shared), limits: parts.limits, ending };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let entered = runtime.enter();
    let mut tcp = Vec::with_capacity(parts.tcp.len());
    for listener in &parts.tcp {
        listener.set_nonblocking(true)?;
        tcp.push(tokio::net::TcpListener::from_std(listener.try_clone()?)?);
    }
    let mut unix = None;
    if let Some(listener) = &parts.unix {
        listener.set_nonblocking(true)?;
        unix = Some(tokio::net::UnixListener::from_std(listener.try_clone()?)?);
    }
    drop(entered);
    let (finished, done) = mpsc::channel();
    let answer = move || {
        runtime.block_on(serve(front, tcp, unix));
        drop(runtime);
        // Nobody is listening when the handle was dropped.
        let _ = finished.send(());
    };
    let thread = std::thread::Builder::new().name("http".to_owned()).stack_size(1 << 20);
    let thread = scheduling::deaf_to_signals(|| thread.spawn(answer))?;
    Ok(Handle { end, done, thread })
}

/// Accepts until the end is asked for, then gives what is under way its grace.
async fn serve(front: Front, tcp: Vec<tokio::net::TcpListener>, unix: Option<tokio::net::UnixListener>) {
    let mut ending = front.ending.clone();
    let places = Arc::new(Semaphore::new(front.limits.connections));
    let mut listeners = JoinSet::new();
    for listener in tcp {
        listeners.spawn(accept(front.clone(), Listener::Tcp(listener), places.clone()));
    }
    if let Some(listener) = unix {
        let places = Arc::new(Semaphore::new(front.limits.connections));
        listeners.spawn(accept(front.clone(), Listener::Unix(listener), places));
    }
    let grace = ending.wait().await;
    // Each listener closes and waits for its own connections; what is left when time is up falls with the runtime.
    let _ = tokio::time::timeout(grace, listeners.join_all()).await;
}

enum Listener {
    Tcp(tokio::net::TcpListener),
    Unix(tokio::net::UnixListener),
}

/// Takes connections from one listener until the end, then waits for those it took.
async fn accept(front: Front, listener: Listener, places: Arc<Semaphore>) {
    let mut ending = front.ending.clone();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            _ = ending.wait() => break,
            // Those that have ended are taken out, or the set would only grow.
            _ = connections.join_next(), if !connections.is_empty() => {}
            taken = listener.take() => {
                let Ok((stream, peer)) = taken else {
                    // Most often no descriptors are left: the connection stays queued, and trying again at once would spin.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                };
                let Ok(place) = places.clone().try_acquire_owned() else {
                    stream.refuse();
                    continue;
                };
                let front = front.clone();
                connections.spawn(async move {
                    match stream {
                        Stream::Tcp(stream) => front.converse(stream, peer).await,
                        Stream::Unix(stream) => front.converse(stream, peer).await,
                    }
                    drop(place);
                });
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

enum Stream {
    Tcp(tokio::net::TcpStream),
    Unix(tokio::net::UnixStream),
}

impl Listener {
    async fn take(&self) -> io::Result<(Stream, Peer)> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // Answers are written whole; waiting to fill a packet only delays them. Failing costs time, not truth.
                let _ = stream.set_nodelay(true);
                Ok((Stream::Tcp(stream), Peer::Tcp(address)))
            }
            Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| (Stream::Unix(stream), Peer::Unix)),
        }
    }
}

impl Stream {
    /// Says in one breath that there is no place, without waiting for anything, and closes.
    fn refuse(self) {
        const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 2\r\n\
            connection: close\r\ncontent-length: 76\r\n\r\n\
            {\"error\":\"too_many_connections\",\"message\":\"every place is taken; try later\"}";
        fn say(mut stream: impl Read + Write) {
            // What was sent already is read first, or closing would reset the connection before the answer is seen. All of
            // this is a courtesy: a failure changes nothing.
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write(FULL);
        }
        // The stream stays non-blocking.
        match self {
            Stream::Tcp(stream) => drop(stream.into_std().map(say)),
            Stream::Unix(stream) => drop(stream.into_std().map(say)),
        }
    }
}

/// What stands before the routes: access, sizes, deadlines.
#[derive(Clone)]
struct Front {
    access: Arc<CurrentAccess>,
    router: Router,
    limits: Limits,
    ending: Ending,
}

impl Front {
    /// Serves one connection to its end.
    async fn converse(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, peer: Peer) {
        let limits = self.limits;
        let mut ending = self.ending.clone();
        let service = service_fn(move |request| {
            let front = self.clone();
            async move { Ok::<_, Infallible>(routes::finish(front.answer(request, peer).await)) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head)
            .max_buf_size(limits.head_size)
            .serve_connection(TokioIo::new(Patient::new(stream, limits.write)), service);
        let mut connection = std::pin::pin!(connection);
        // An error here is the peer's: it left, was too slow or did not speak HTTP. There is nobody left to tell.
        tokio::select! {
            _ = connection.as_mut() => return,
            _ = ending.wait() => {}
        }
        connection.as_mut().graceful_shutdown();
        let _ = connection.await;
    }

    async fn answer(&self, request: Request<Incoming>, peer: Peer) -> Response {
        match self.admit(&request, peer) {
            Err(why) => {
                let door =
                    why == Denied::KeyMissing && request.uri().path() == "/" && wants_html(&request) && self.access.current().dashboard;
                if door { dashboard::door() } else { Problem::denied(why).into_response() }
            }
            Ok(()) => match self.gather(request).await {
                Ok(request) => self.route(request).await,
                Err(problem) => problem.into_response(),
            },
        }
    }

    fn admit(&self, request: &Request<Incoming>, peer: Peer) -> Result<(), Denied> {
        let claim = Claim::of(request.method(), request.uri(), request.headers());
        judge(&self.access.current(), Class::of(request.uri().path()), peer, &claim)
    }

    /// Takes the body in whole, so that no handler waits for a client.
    async fn gather(&self, request: Request<Incoming>) -> Result<Request<Body>, Problem> {
        let (parts, body) = request.into_parts();
        let limit = self.limits.body_size;
        let too_large = || Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", format!("a body may have {limit} bytes at most"));
        if body.size_hint().lower() > limit as u64 {
            return Err(too_large());
        }
        let bytes: Bytes = match tokio::time::timeout(self.limits.request, Limited::new(body, limit).collect()).await {
            Ok(Ok(whole)) => whole.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(too_large()),
            Ok(Err(_)) => return Err(Problem::new(StatusCode::BAD_REQUEST, "bad_body", "the body could not be read")),
            Err(_) => return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "too_slow", "the body did not arrive in time")),
        };
        Ok(Request::from_parts(parts, Body::from(bytes)))
    }

    /// Lets the route answer; whoever still waits when the end begins is told so.
    async fn route(&self, request: Request<Body>) -> Response {
        let mut ending = self.ending.clone();
        tokio::select! {
            biased;
            Ok(response) = self.router.clone().oneshot(request) => response,
            _ = ending.wait() => Problem::ending().into_response(),
        }
    }
}

fn wants_html(request: &Request<Incoming>) -> bool {
    request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).is_some_and(|accept| accept.contains("text/html"))
}
