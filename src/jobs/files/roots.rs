//! The folders a job may search: opened once and held, and refused where a slip of the pen would cost more than old files.

use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::super::run::Failure;
use crate::config::jobs::Files;
use crate::host::accounts;
use crate::host::beneath::{Directory, Facts};

/// A folder that may be searched.
#[derive(Debug)]
pub struct Root {
    pub path: PathBuf,
    pub directory: Directory,
}

/// Whose folders may be searched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owners {
    /// As configured.
    One { uid: u32, name: String },
    /// Those of this process, and of ordinary users.
    Ordinary { own: u32 },
}

/// Ordinary users begin here, and end before the two numbers that mean nobody.
const ORDINARY: std::ops::Range<u32> = 1000..65_534;

impl Owners {
    /// # Errors
    /// When there is no such user.
    pub fn of(owner: Option<&str>) -> Result<Owners, Failure> {
        match owner {
            None => Ok(Owners::Ordinary { own: rustix::process::geteuid().as_raw() }),
            Some(name) => match accounts::find(name, None) {
                Ok(account) => Ok(Owners::One { uid: account.uid, name: name.to_owned() }),
                Err(error) => Err(Failure(format!("tell whose folders to search: {error}; owner takes a user's name or number"))),
            },
        }
    }

    pub fn includes(&self, uid: u32) -> bool {
        match self {
            Owners::One { uid: wanted, .. } => *wanted == uid,
            Owners::Ordinary { own } => *own == uid || ORDINARY.contains(&uid),
        }
    }

    fn words(&self) -> String {
        match self {
            Owners::One { name, .. } => format!("owner = {name:?} is asked for"),
            Owners::Ordinary { own } => format!("only those of user {own} and of ordinary users are searched; owner names another"),
        }
    }
}

/// Never searched themselves, though what lies in them may be.
const CROWDED: [&str; 24] = [
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/home",
    "/lib",
    "/lib32",
    "/lib64",
    "/media",
    "/mnt",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/usr",
    "/usr/local",
    "/usr/src",
    "/var",
    "/var/lib",
    "/var/log",
    "/var/spool",
];
/// Never searched, and nothing in them either.
const SYSTEM: [&str; 15] = [
    "/bin",
    "/boot",
    "/etc",
    "/lib",
    "/lib32",
    "/lib64",
    "/proc",
    "/sbin",
    "/sys",
    "/usr/bin",
    "/usr/include",
    "/usr/lib",
    "/usr/sbin",
    "/usr/share",
    "/var/lib/dpkg",
];

/// What a folder is held against.
#[derive(Clone, Debug)]
pub struct Ground {
    /// Folders users are at home in, symlinks resolved.
    pub homes: Vec<PathBuf>,
    pub owners: Owners,
    /// Of `/`.
    pub top: (u64, u64),
    /// The root of a disk is one of them.
    pub mounted: bool,
}

impl Ground {
    /// # Errors
    /// When the owner is nobody, or `/` cannot be looked at.
    pub fn look(owner: Option<&str>, mounted: bool) -> Result<Ground, Failure> {
        let top = Facts::at(Path::new("/")).map_err(|errno| Failure(format!("look at /: {errno}")))?;
        let homes = accounts::homes().into_iter().map(|home| home.canonicalize().unwrap_or(home)).collect();
        Ok(Ground { homes, owners: Owners::of(owner)?, top: (top.device, top.inode), mounted })
    }

    /// Why a folder is not searched, as words that follow its path; `None` for one that may be. `parent` is the device of the
    /// folder it lies in.
    pub fn refusal(&self, path: &Path, facts: &Facts, parent: u64) -> Option<String> {
        if (facts.device, facts.inode) == self.top || path.parent().is_none() {
            return Some("is the root of the whole tree".to_owned());
        }
        if let Some(system) = SYSTEM.iter().find(|system| path.starts_with(system)) {
            return Some(format!("belongs to the system ({system})"));
        }
        if CROWDED.iter().any(|crowded| path == Path::new(crowded)) {
            return Some("holds what belongs to many; name a folder in it".to_owned());
        }
        if let Some(home) = self.homes.iter().find(|home| home.starts_with(path)) {
            let words = if home == path { "is somebody's home".to_owned() } else { format!("holds somebody's home ({})", home.display()) };
            return Some(format!("{words}; name a folder in it"));
        }
        // Where the kernel does not tell mounts, another device than that of the folder around it is one.
        if !self.mounted && facts.device != parent && facts.is_mount_root.unwrap_or(true) {
            return Some("is where another disk is mounted; name a folder on it, or say mounted = true".to_owned());
        }
        (!self.owners.includes(facts.owner)).then(|| format!("belongs to user {}, and {}", facts.owner, self.owners.words()))
    }
}

/// Opens every folder of the settings and looks at each before the first is searched. Gives those that are there, and words
/// about those that are not.
///
/// # Errors
/// When one of them is not to be searched, or cannot be opened.
pub fn open(settings: &Files, ground: &Ground) -> Result<(Vec<Root>, Vec<String>), Failure> {
    let paths = &settings.paths;
    for (place, path) in paths.iter().enumerate() {
        let others = paths.iter().enumerate().filter(|(other, _)| *other != place);
        if let Some((_, outer)) = others.into_iter().find(|(_, outer)| path.starts_with(outer)) {
            return Err(Failure(format!(
                "search {}: it lies in {}, which is searched too; name one of them",
                path.display(),
                outer.display()
            )));
        }
    }
    let (mut roots, mut absent) = (Vec::new(), Vec::new());
    for path in paths {
        match open_one(path, ground)? {
            Some(root) => roots.push(root),
            None => absent.push(format!("{} is not there", path.display())),
        }
    }
    Ok((roots, absent))
}

fn open_one(path: &Path, ground: &Ground) -> Result<Option<Root>, Failure> {
    let refused = |words: &str| Failure(format!("search {}: it {words}", path.display()));
    let directory = match Directory::open(path) {
        Ok(directory) => directory,
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::INVAL) => return Err(refused("is no absolute path without . and ..")),
        Err(Errno::LOOP | Errno::NOTDIR) => return Err(refused(&what_else(path))),
        Err(errno) => return Err(refused(&format!("cannot be opened: {errno}"))),
    };
    let parent = path.parent().unwrap_or(path);
    let parent = Facts::at(parent).map_err(|errno| refused(&format!("lies in a folder that cannot be looked at: {errno}")))?;
    match ground.refusal(path, directory.facts(), parent.device) {
        Some(words) => Err(refused(&words)),
        None => Ok(Some(Root { path: path.to_path_buf(), directory })),
    }
}

/// What stands where a folder was expected.
fn what_else(path: &Path) -> String {
    match path.canonicalize() {
        Ok(real) if real != path => format!("leads over a symbolic link; name the folder itself: {}", real.display()),
        _ => "is no folder".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ground(owners: Owners) -> Ground {
        Ground { homes: vec!["/home/app".into(), "/srv/data/people/ann".into()], owners, top: (1, 2), mounted: false }
    }

    /// An ordinary folder of user 1000.
    fn facts() -> Facts {
        Facts { owner: 1000, device: 7, inode: 99, is_mount_root: Some(false), ..Facts::at(Path::new("/")).unwrap() }
    }

    #[test]
    fn folders_that_cost_too_much_are_refused() {
        let ground = ground(Owners::Ordinary { own: 0 });
        let cases = [
            ("/", "root of the whole tree"),
            ("/usr", "holds what belongs to many"),
            ("/usr/lib/python3", "belongs to the system (/usr/lib)"),
            ("/etc/app", "belongs to the system (/etc)"),
            ("/home", "holds what belongs to many"),
            ("/home/app", "is somebody's home"),
            ("/srv/data", "holds somebody's home (/srv/data/people/ann)"),
            ("/proc/self", "belongs to the system"),
        ];
        for (path, words) in cases {
            let refusal = ground.refusal(Path::new(path), &facts(), 7).unwrap_or_default();
            assert!(refusal.contains(words), "{path}: {refusal}");
        }
        for path in ["/home/app/audio", "/app/data/audio", "/tmp/audio", "/dev/shm/audio", "/usr/src/app/audio", "/homes", "/srv/databank"]
        {
            assert_eq!(ground.refusal(Path::new(path), &facts(), 7), None, "{path}");
        }
        let same_as_top = Facts { device: 1, inode: 2, ..facts() };
        assert!(ground.refusal(Path::new("/elsewhere/bound"), &same_as_top, 1).is_some(), "the root under another name");
    }

    #[test]
    fn the_root_of_another_disk_is_refused_and_a_bound_folder_is_not() {
        let ground = ground(Owners::Ordinary { own: 0 });
        for (mount, parent, is_refused) in
            [(Some(true), 8, true), (None, 8, true), (Some(false), 8, false), (Some(true), 7, false), (None, 7, false)]
        {
            let facts = Facts { is_mount_root: mount, ..facts() };
            assert_eq!(ground.refusal(Path::new("/data/audio"), &facts, parent).is_some(), is_refused, "{mount:?} {parent}");
            assert_eq!(Ground { mounted: true, ..ground.clone() }.refusal(Path::new("/data/audio"), &facts, parent), None);
        }
        let root = Facts { is_mount_root: Some(true), device: 1, inode: 2, ..facts() };
        assert!(Ground { mounted: true, ..ground }.refusal(Path::new("/mnt"), &root, 8).is_some(), "the root of the tree is none of these");
    }

    #[test]
    fn folders_of_others_are_refused() {
        let audio = Path::new("/app/audio");
        for (owners, uid, is_refused) in [
            (Owners::Ordinary { own: 0 }, 0, false),
            (Owners::Ordinary { own: 0 }, 1000, false),
            (Owners::Ordinary { own: 0 }, 33, true),
            (Owners::Ordinary { own: 33 }, 33, false),
            (Owners::Ordinary { own: 33 }, 0, true),
            (Owners::Ordinary { own: 0 }, 65_534, true),
            (Owners::One { uid: 33, name: "www-data".into() }, 33, false),
            (Owners::One { uid: 33, name: "www-data".into() }, 0, true),
            (Owners::One { uid: 33, name: "www-data".into() }, 1000, true),
        ] {
            let refusal = ground(owners.clone()).refusal(audio, &Facts { owner: uid, ..facts() }, 7);
            assert_eq!(refusal.is_some(), is_refused, "{owners:?} {uid}");
        }
    }
}
