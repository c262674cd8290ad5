//! The state and runtime folders, and the lock that keeps a second daemon off them.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::config::Sources;
use crate::config::settings::{Daemon, Folder};

/// What the daemon writes to, and holds for as long as it lives.
#[derive(Debug)]
pub struct Folders {
    pub state: PathBuf,
    pub runtime: PathBuf,
    /// Why no state is kept, if none is.
    pub stateless: Option<String>,
    _locks: Vec<File>,
}

/// Why the folders cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("another plimsoll is running on {path}{}; give this one a folder of its own (daemon.state_dir, daemon.runtime_dir) or stop the other", .pid.as_ref().map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    Taken { path: PathBuf, pid: Option<String> },
    #[error("{key} = {path} cannot be used: {error}")]
    Unusable { key: &'static str, path: PathBuf, error: io::Error },
}

impl FolderError {
    /// 77 when it is a matter of permission, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            FolderError::Unusable { error, .. } if error.kind() == io::ErrorKind::PermissionDenied => 77,
            _ => 1,
        }
    }
}

/// Where everybody may make folders, so that a name proves nothing: the last resort.
const SHARED: [&str; 2] = ["/tmp", "/dev/shm"];

impl Folders {
    /// Makes and locks both folders. A default that cannot be used is replaced by one of the user's own; one that was
    /// asked for and cannot be used is an error. A full or read-only state folder is none: the daemon then keeps no state.
    pub fn take(settings: &Daemon, env: &Sources) -> Result<Folders, FolderError> {
        let runtime = usable(&settings.runtime_dir, "daemon.runtime_dir", &runtime_fallbacks(env))?;
        let mut locks = vec![lock(&runtime).map_err(|error| taken_or_unusable(error, &runtime, "daemon.runtime_dir"))?];
        let state = match usable(&settings.state_dir, "daemon.state_dir", &state_fallbacks(env)) {
            Ok(state) => state,
            Err(error) if settings.state_dir.explicit && !is_full(&error) => return Err(error),
            Err(error) => {
                return Ok(Folders { state: settings.state_dir.path.clone(), runtime, stateless: Some(error.to_string()), _locks: locks });
            }
        };
        let mut stateless = None;
        if same(&state, &runtime) {
            return Ok(Folders { state, runtime, stateless, _locks: locks });
        }
        match lock(&state) {
            Ok(held) => locks.push(held),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                stateless = Some(format!("{}: {error}", state.display()));
            }
            Err(error) => return Err(taken_or_unusable(error, &state, "daemon.state_dir")),
        }
        Ok(Folders { state, runtime, stateless, _locks: locks })
    }

    /// Where locks are made that daemons and commands on the same settings share: with the state, or, where that cannot be written,
    /// at run time.
    pub fn for_locks(&self) -> &Path {
        if self.stateless.is_some() { &self.runtime } else { &self.state }
    }

    /// Where this daemon writes down what it changes. Its own file: the sentinel of one that has died may still be
    /// reading the other.
    pub fn undo_log(&self) -> PathBuf {
        self.runtime.join(format!("{UNDO}{}.jsonl", rustix::process::getpid().as_raw_nonzero()))
    }
}

const UNDO: &str = "undo-";

/// The undo logs of the daemons that had this runtime folder before, also where only what stands beside a log is left.
pub fn undo_logs(runtime: &Path) -> Vec<PathBuf> {
    let ours = |path: &PathBuf| path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(UNDO));
    let entries = std::fs::read_dir(runtime).into_iter().flatten().flatten().map(|entry| entry.path());
    let logs: BTreeSet<PathBuf> = entries.filter(ours).map(|path| path.with_extension("jsonl")).collect();
    logs.into_iter().collect()
}

/// Every folder a daemon with these settings may have taken as its runtime folder, the likeliest first.
pub fn runtime_candidates(runtime_dir: &Folder, env: &Sources) -> Vec<PathBuf> {
    let mut candidates = vec![runtime_dir.path.clone()];
    if !runtime_dir.explicit {
        candidates.extend(runtime_fallbacks(env));
    }
    candidates
}

/// As [`runtime_candidates`], for the state folder.
pub fn state_candidates(state_dir: &Folder, env: &Sources) -> Vec<PathBuf> {
    let fallbacks = if state_dir.explicit { Vec::new() } else { state_fallbacks(env) };
    std::iter::once(state_dir.path.clone()).chain(fallbacks).collect()
}

fn runtime_fallbacks(env: &Sources) -> Vec<PathBuf> {
    let own = format!("plimsoll-{}", rustix::process::getuid().as_raw());
    let given = env.variable("XDG_RUNTIME_DIR").filter(|path| path.starts_with('/')).map(|path| PathBuf::from(path).join("plimsoll"));
    // A container with a read-only root and no /tmp has this one still.
    given.into_iter().chain(SHARED.map(|folder| PathBuf::from(folder).join(&own))).collect()
}

fn state_fallbacks(env: &Sources) -> Vec<PathBuf> {
    let absolute = |name: &str| env.variable(name).filter(|path| path.starts_with('/')).map(PathBuf::from);
    let state_home = absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
    let own = format!("plimsoll-{}", rustix::process::getuid().as_raw());
    state_home.map(|home| home.join("plimsoll")).into_iter().chain([PathBuf::from("/tmp").join(own)]).collect()
}

fn usable(folder: &Folder, key: &'static str, fallbacks: &[PathBuf]) -> Result<PathBuf, FolderError> {
    let first = match make(&folder.path) {
        Ok(()) => return Ok(folder.path.clone()),
        Err(error) => FolderError::Unusable { key, path: folder.path.clone(), error },
    };
    if folder.explicit {
        return Err(first);
    }
    fallbacks.iter().find(|path| make(path).is_ok()).cloned().ok_or(first)
}

/// Makes the folder if it is not there, and makes sure that it is ours to write to and nobody else's to replace.
fn make(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o750).create(path)?;
    let metadata = std::fs::symlink_metadata(path)?;
    let me = rustix::process::geteuid().as_raw();
    if SHARED.iter().any(|shared| path.starts_with(shared)) && (metadata.file_type().is_symlink() || metadata.uid() != me) {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it belongs to somebody else"));
    }
    Ok(rustix::fs::access(path, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK)?)
}

/// Locks the folder for this process, for as long as the file it returns is open and this process opens it nowhere else.
///
/// A record lock and not `flock`: that one goes on to every child until its exec, so that a daemon killed while it
/// started a worker would keep the next one out.
fn lock(folder: &Path) -> io::Result<File> {
    let file = File::options().create(true).read(true).write(true).truncate(false).open(folder.join("plimsoll.lock"))?;
    rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive)?;
    // Only for people and for the message above; a disk too full for it changes nothing.
    let _ = file.set_len(0).and_then(|()| (&file).write_all(rustix::process::getpid().as_raw_nonzero().to_string().as_bytes()));
    Ok(file)
}

fn taken_or_unusable(error: io::Error, path: &Path, key: &'static str) -> FolderError {
    if error.kind() == io::ErrorKind::WouldBlock {
        let pid =
            std::fs::read_to_string(path.join("plimsoll.lock")).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        return FolderError::Taken { path: path.to_path_buf(), pid };
    }
    FolderError::Unusable { key, path: path.to_path_buf(), error }
}

fn is_full(error: &FolderError) -> bool {
    matches!(error, FolderError::Unusable { error, .. } if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::ReadOnlyFilesystem))
}

fn same(one: &Path, other: &Path) -> bool {
    matches!((std::fs::metadata(one), std::fs::metadata(other)), (Ok(one), Ok(other)) if (one.dev(), one.ino()) == (other.dev(), other.ino()))
}
