//! Asks the running daemon over its control socket.

use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;

/// Connecting to a local socket either works at once or the daemon is not well.
const CONNECT: Duration = Duration::from_secs(5);

/// For an ordinary answer; a command waits in the daemon for 10 s at most.
const ANSWER: Duration = Duration::from_secs(15);

/// A followed daemon says that it is still there every 15 s.
const SILENCE: Duration = Duration::from_secs(60);

/// A daemon answers with a few hundred kilobytes at most; whatever sends more is none.
const LARGEST: usize = 64 * 1024 * 1024;

/// Why there is no answer, each with its exit code.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers on any of the sockets.
    #[error("no daemon is running: {}; start one with `plimsoll run`; to reach one of another user, ask as that user, or name its folder in daemon.runtime_dir", list(.tried))]
    Unreachable { tried: Vec<(PathBuf, String)> },
    #[error("not permitted to use {}; ask as its owner or as a member of its group", .socket.display())]
    NotPermitted { socket: PathBuf },
    /// The daemon understood and said no.
    #[error("{message}")]
    Refused { status: u16, error: String, message: String },
    /// The daemon took the question and did not answer as it should.
    #[error("the daemon on {} {problem}", .socket.display())]
    Broken { socket: PathBuf, problem: String },
    /// This process could not even ask.
    #[error("could not ask the daemon: {0}")]
    Local(io::Error),
}

impl ClientError {
    pub fn exit_code(&self) -> u8 {
        match self {
            ClientError::Unreachable { .. } => 69,
            ClientError::NotPermitted { .. } => 77,
            ClientError::Refused { .. } | ClientError::Broken { .. } | ClientError::Local(_) => 1,
        }
    }
}

fn list(tried: &[(PathBuf, String)]) -> String {
    let mut text = String::new();
    for (socket, why) in tried {
        let comma = if text.is_empty() { "" } else { ", " };
        // Writing to a String cannot fail.
        let _ = write!(text, "{comma}{} ({why})", socket.display());
    }
    if text.is_empty() { "no socket to try".to_owned() } else { text }
}

/// A daemon that was found.
pub struct Client {
    socket: PathBuf,
    runtime: Runtime,
}

impl Client {
    /// The first of `sockets` that somebody answers on.
    ///
    /// # Errors
    /// `NotPermitted` when one is there but closed to us and no other answers, else `Unreachable` with all that were tried.
    pub fn find(sockets: &[PathBuf]) -> Result<Client, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build().map_err(ClientError::Local)?;
        let mut tried = Vec::new();
        let mut closed = None;
        for socket in sockets {
            match runtime.block_on(connect(socket)) {
                Ok(_) => return Ok(Client { socket: socket.clone(), runtime }),
                Err(error) => {
                    if error.kind() == io::ErrorKind::PermissionDenied {
                        closed.get_or_insert_with(|| socket.clone());
                    }
                    tried.push((socket.clone(), cause(&error)));
                }
            }
        }
        match closed {
            Some(socket) => Err(ClientError::NotPermitted { socket }),
            None => Err(ClientError::Unreachable { tried }),
        }
    }

    /// The socket that answered.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// `GET path`, its JSON read as `T`.
    pub fn get_json<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.get_json_within(path, ANSWER)
    }

    /// As [`Client::get_json`] for a route that waits, such as `/admin/throttle?wait=5m`.
    pub fn get_json_within<T: DeserializeOwned>(&self, path: &str, patience: Duration) -> Result<T, ClientError> {
        let bytes = self.ask(Method::GET, path, patience)?;
        serde_json::from_slice(&bytes).map_err(|error| self.broken(format!("sent something else than was asked for: {error}")))
    }

    /// `GET path` as it was sent, for what is only passed on.
    pub fn get_text(&self, path: &str) -> Result<String, ClientError> {
        let bytes = self.ask(Method::GET, path, ANSWER)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| self.broken("sent something that is not text".to_owned()))
    }

    /// `POST path` without a body; its JSON.
    pub fn post(&self, path: &str) -> Result<Value, ClientError> {
        self.post_within(path, ANSWER)
    }

    /// As [`Client::post`] for what takes its time.
    pub fn post_within(&self, path: &str, patience: Duration) -> Result<Value, ClientError> {
        let bytes = self.ask(Method::POST, path, patience)?;
        serde_json::from_slice(&bytes).map_err(|error| self.broken(format!("sent something that is not JSON: {error}")))
    }

    /// `GET path` whose answer has no end: each part of it goes to `part` as it comes, until that says false.
    ///
    /// # Errors
    /// `Unreachable` when the daemon ends or falls silent, which is how it always ends unless `part` says so.
    pub fn follow(&self, path: &str, mut part: impl FnMut(&[u8]) -> bool) -> Result<(), ClientError> {
        let gone = |why: &str| ClientError::Unreachable { tried: vec![(self.socket.clone(), why.to_owned())] };
        self.runtime.block_on(async {
            let stream = connect(&self.socket).await.map_err(|error| gone(&cause(&error)))?;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| gone(&error.to_string()))?;
            let request = question(Method::GET, path).map_err(|problem| self.broken(problem))?;
            let talk = async {
                let mut response = sender.send_request(request).await.map_err(|error| gone(&error.to_string()))?;
                if !response.status().is_success() {
                    return Err(self.broken(format!("answered {}", response.status())));
                }
                loop {
                    match timeout(SILENCE, response.frame()).await {
                        Err(_) => return Err(gone("it has fallen silent")),
                        Ok(None | Some(Err(_))) => return Err(gone("it has ended")),
                        Ok(Some(Ok(frame))) => match frame.data_ref() {
                            Some(data) if !part(data) => return Ok(()),
                            _ => {}
                        },
                    }
                }
            };
            drive(talk, connection).await
        })
    }

    /// One request on a connection of its own; the body of a 2xx answer, or what the daemon objected.
    fn ask(&self, method: Method, path: &str, patience: Duration) -> Result<Bytes, ClientError> {
        let answered = self.runtime.block_on(async { timeout(patience, exchange(&self.socket, method, path)).await });
        let (status, body) = match answered {
            Err(_) => return Err(self.broken(format!("did not answer within {} s", patience.as_secs_f64()))),
            Ok(Err(Trouble::Socket(error))) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(ClientError::NotPermitted { socket: self.socket.clone() });
            }
            Ok(Err(Trouble::Socket(error))) => {
                return Err(ClientError::Unreachable { tried: vec![(self.socket.clone(), cause(&error))] });
            }
            Ok(Err(Trouble::Talk(problem))) => return Err(self.broken(problem)),
            Ok(Ok(answer)) => answer,
        };
        if status.is_success() {
            return Ok(body);
        }
        let told: Value = serde_json::from_slice(&body).unwrap_or_default();
        let field = |name: &str| told.get(name).and_then(Value::as_str).map(str::to_owned);
        Err(ClientError::Refused {
            status: status.as_u16(),
            error: field("error").unwrap_or_default(),
            message: field("message").or_else(|| field("status")).unwrap_or_else(|| format!("the daemon answered {status}")),
        })
    }

    fn broken(&self, problem: String) -> ClientError {
        ClientError::Broken { socket: self.socket.clone(), problem }
    }
}

/// Where an exchange went wrong.
enum Trouble {
    Socket(io::Error),
    Talk(String),
}

async fn connect(socket: &Path) -> io::Result<UnixStream> {
    timeout(CONNECT, UnixStream::connect(socket)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn exchange(socket: &Path, method: Method, path: &str) -> Result<(StatusCode, Bytes), Trouble> {
    let stream = connect(socket).await.map_err(Trouble::Socket)?;
    let request = question(method, path).map_err(Trouble::Talk)?;
    let broke = |error: hyper::Error| Trouble::Talk(format!("broke off: {error}"));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broke)?;
    let talk = async {
        let response = sender.send_request(request).await.map_err(broke)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST).collect().await.map_err(|error| {
            let large = error.is::<LengthLimitError>();
            Trouble::Talk(if large { "sent more than any daemon would".to_owned() } else { format!("broke off: {error}") })
        })?;
        Ok((status, body.to_bytes()))
    };
    drive(talk, connection).await
}

fn question(method: Method, path: &str) -> Result<Request<Empty<Bytes>>, String> {
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "localhost")
        .header(header::ACCEPT, "application/json, */*;q=0.5")
        .body(Empty::<Bytes>::new())
        .map_err(|error| format!("cannot be asked for {path}: {error}"))
}

/// The connection only moves while it is polled. Should it end first, the talk fails by itself and says why.
async fn drive<T>(talk: impl Future<Output = T>, connection: impl Future) -> T {
    let driven = async {
        let _ = connection.await;
        std::future::pending().await
    };
    tokio::select! {
        outcome = talk => outcome,
        never = driven => never,
    }
}

/// The causes a user meets, in plain words.
fn cause(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "not there".to_owned(),
        io::ErrorKind::ConnectionRefused => "left behind by a daemon that has ended".to_owned(),
        io::ErrorKind::PermissionDenied => "not permitted".to_owned(),
        io::ErrorKind::TimedOut => "does not accept".to_owned(),
        _ => error.to_string(),
    }
}
