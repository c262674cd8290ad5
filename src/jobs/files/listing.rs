//! What lies below the folders of a job, read once and kept small: 32 bytes and its name for each file that may have to go.

use std::collections::BTreeMap;
use std::ffi::{CStr, OsStr};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::io::Errno;

use super::super::plan::Tally;
use super::super::run::{Failure, Foreman, Report};
use super::roots::{Owners, Root};
use crate::config::globs::Globs;
use crate::host::beneath::{Directory, Facts, Kind};

/// A file that may have to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct File {
    pub inode: u64,
    /// When it was last written, changed or made, in nanoseconds since 1970.
    pub youngest: i64,
    name_at: u32,
    pub folder: u32,
    /// Of 512 bytes, at most: a larger file counts as 2 TiB.
    pub sectors: u32,
    name_length: u8,
    /// `include` names it; else it is only there for its group.
    pub is_included: bool,
    /// Other names lead to it, so it stays.
    pub has_links: bool,
}

impl File {
    pub fn bytes(&self) -> u64 {
        u64::from(self.sectors) * 512
    }

    /// True for what is still the very file that was listed, untouched since.
    pub fn is_still(&self, facts: &Facts) -> bool {
        facts.kind == Kind::File
            && facts.inode == self.inode
            && facts.youngest == self.youngest
            && clamped(facts.sectors) == self.sectors
            && (facts.links == 1) != self.has_links
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Folder {
    pub device: u64,
    pub inode: u64,
    pub youngest: i64,
    /// `None` for one that the settings name.
    pub parent: Option<u32>,
    /// Which of the folders of the settings it lies in.
    pub root: u32,
    name_at: u32,
    name_length: u8,
    /// All of them, whatever they are.
    pub entries: u32,
    /// It was read to its end.
    pub is_whole: bool,
}

/// What is read, and how.
#[derive(Debug)]
pub struct Look<'l> {
    pub globs: &'l Globs,
    pub owners: &'l Owners,
    /// Files that `include` does not name are wanted too, for the sake of those of their group that it does.
    pub groups: bool,
    /// Nothing younger may go, whatever the plan, so it is only counted; in nanoseconds since 1970.
    pub floor: Option<i64>,
    /// When the reading begins; what is younger may lie in the future.
    pub begun: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Of the settings.
    pub roots: Vec<PathBuf>,
    /// Each after the one it lies in.
    pub folders: Vec<Folder>,
    pub files: Vec<File>,
    /// Each ends with a NUL.
    names: Vec<u8>,
    /// What stays whatever the plan, by the reason.
    pub kept: BTreeMap<&'static str, Tally>,
    /// The youngest file that was made after the reading began, or will be.
    pub ahead: Option<(i64, PathBuf)>,
    /// There is more than fits; what is not listed comes next time.
    pub is_cut: bool,
}

/// About 120 MiB. Where only age counts the list holds nothing but what goes.
const MOST: usize = 2_000_000;
/// The kernel fills it at each call; as large as what find(1) takes.
const ROOM: usize = 32 * 1024;
/// Between two looks whether to stop.
const STRIDE: u32 = 1024;
/// The longest name there is, but on a few filesystems of user space.
const LONGEST_NAME: usize = 255;

pub fn clamped(sectors: u64) -> u32 {
    u32::try_from(sectors).unwrap_or(u32::MAX)
}

impl Listing {
    /// Reads everything below `roots`. `None` when the run is to stop.
    ///
    /// # Errors
    /// When there are more names than can be counted.
    pub fn read(roots: &[Root], look: &Look<'_>, foreman: &mut dyn Foreman) -> Result<Option<Listing>, Failure> {
        let mut reader = Reader {
            listing: Listing { roots: roots.iter().map(|root| root.path.clone()).collect(), ..Listing::default() },
            look,
            path: Vec::new(),
            warned: BTreeMap::new(),
        };
        for (place, root) in roots.iter().enumerate() {
            reader.listing.add_folder(None, number(place)?, c"", root.directory.facts().device)?;
        }
        let mut room = vec![MaybeUninit::uninit(); ROOM];
        let mut at = 0;
        while let Some(folder) = reader.listing.folders.get(at).copied() {
            if !foreman.at_safe_point() {
                return Ok(None);
            }
            if reader.listing.files.len() >= MOST {
                reader.listing.is_cut = true;
                break;
            }
            let root = roots.get(folder.root as usize).ok_or_else(|| Failure("find a folder of the settings again".to_owned()))?;
            match reader.open(at, folder, root) {
                Ok(directory) => {
                    if !reader.read_folder(at, &directory, &mut room, foreman)? {
                        return Ok(None);
                    }
                }
                Err(reason) => reader.leave_folder(at, reason, foreman),
            }
            at += 1;
        }
        let mut listing = reader.listing;
        for folder in listing.folders.iter_mut().skip(at) {
            folder.is_whole = false;
        }
        Ok(Some(listing))
    }

    /// A folder that was never read: each file with its name, when it was touched, and its sectors.
    #[cfg(test)]
    pub fn made_up(files: &[(&CStr, i64, u32)]) -> Listing {
        let mut listing = Listing { roots: vec!["/made/up".into()], ..Listing::default() };
        listing.add_folder(None, 0, c"", 1).unwrap();
        for (place, (name, youngest, sectors)) in files.iter().enumerate() {
            let (name_at, name_length) = (listing.add_name(name).unwrap(), u8::try_from(name.to_bytes().len()).unwrap());
            let (youngest, sectors) = (*youngest, *sectors);
            listing.files.push(File {
                inode: place as u64,
                youngest,
                name_at,
                folder: 0,
                sectors,
                name_length,
                is_included: true,
                has_links: false,
            });
        }
        listing
    }

    fn add_name(&mut self, name: &CStr) -> Result<u32, Failure> {
        let at = number(self.names.len())?;
        self.names.extend_from_slice(name.to_bytes_with_nul());
        Ok(at)
    }

    fn add_folder(&mut self, parent: Option<u32>, root: u32, name: &CStr, device: u64) -> Result<(), Failure> {
        let name_at = self.add_name(name)?;
        let name_length = u8::try_from(name.to_bytes().len()).unwrap_or(u8::MAX);
        self.folders.push(Folder { device, inode: 0, youngest: 0, parent, root, name_at, name_length, entries: 0, is_whole: false });
        Ok(())
    }

    pub fn keep(&mut self, reason: &'static str, bytes: u64) {
        self.kept.entry(reason).or_default().add(bytes);
    }

    pub fn file(&self, at: u32) -> Option<&File> {
        self.files.get(at as usize)
    }

    pub fn folder(&self, at: u32) -> Option<&Folder> {
        self.folders.get(at as usize)
    }

    pub fn name(&self, file: &File) -> &CStr {
        self.name_of(file.name_at, file.name_length)
    }

    pub fn folder_name(&self, folder: &Folder) -> &CStr {
        self.name_of(folder.name_at, folder.name_length)
    }

    fn name_of(&self, at: u32, length: u8) -> &CStr {
        let bytes = self.names.get(at as usize..at as usize + usize::from(length) + 1);
        bytes.and_then(|bytes| CStr::from_bytes_with_nul(bytes).ok()).unwrap_or_default()
    }

    /// The way to a folder from the one of the settings it lies in, into `path`.
    pub fn way_to(&self, at: u32, path: &mut Vec<u8>) {
        path.clear();
        let mut chain = Vec::new();
        let mut next = self.folder(at);
        while let Some(folder) = next {
            chain.push(folder);
            next = folder.parent.and_then(|parent| self.folder(parent));
        }
        for folder in chain.iter().rev() {
            let name = self.folder_name(folder).to_bytes();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
        }
    }

    /// The whole path of a folder.
    pub fn folder_path(&self, at: u32) -> PathBuf {
        let mut path = Vec::new();
        self.way_to(at, &mut path);
        let root = self.folder(at).and_then(|folder| self.roots.get(folder.root as usize));
        let root = root.cloned().unwrap_or_default();
        if path.is_empty() { root } else { root.join(OsStr::from_bytes(&path)) }
    }

    /// The whole path of a file.
    pub fn path(&self, file: &File) -> PathBuf {
        self.folder_path(file.folder).join(OsStr::from_bytes(self.name(file).to_bytes()))
    }
}

fn number(length: usize) -> Result<u32, Failure> {
    u32::try_from(length).map_err(|_| Failure("list the files: their names take more than 4 GiB".to_owned()))
}

struct Reader<'l> {
    listing: Listing,
    look: &'l Look<'l>,
    /// The way to the entry that is looked at, from the folder of the settings.
    path: Vec<u8>,
    /// Reasons that a person was told of, once each.
    warned: BTreeMap<&'static str, ()>,
}

impl Reader<'_> {
    fn open(&mut self, at: usize, folder: Folder, root: &Root) -> Result<Directory, &'static str> {
        let at = u32::try_from(at).unwrap_or(u32::MAX);
        self.listing.way_to(at, &mut self.path);
        let directory = root.directory.descend(&self.path).map_err(|errno| match errno {
            Errno::XDEV => "other-device",
            Errno::NOENT | Errno::LOOP | Errno::NOTDIR => "changed",
            _ => "unreadable",
        })?;
        let facts = directory.facts();
        if folder.parent.is_some() && !self.look.owners.includes(facts.owner) {
            return Err("other-owner");
        }
        if let Some(folder) = self.listing.folders.get_mut(at as usize) {
            (folder.device, folder.inode, folder.youngest, folder.is_whole) = (facts.device, facts.inode, facts.youngest, true);
        }
        Ok(directory)
    }

    /// A folder that is not entered, and everything in it stays.
    fn leave_folder(&mut self, at: usize, reason: &'static str, foreman: &mut dyn Foreman) {
        self.listing.keep(reason, 0);
        let words = match reason {
            "other-owner" => "it belongs to somebody else; owner says whose folders are searched",
            "unreadable" => "it cannot be opened",
            _ => return,
        };
        if self.warned.insert(reason, ()).is_none() {
            let path = self.listing.folder_path(u32::try_from(at).unwrap_or(u32::MAX));
            foreman.tell(Report::Warning {
                text: format!("{} is not searched: {words} (told for the first of such folders)", path.display()),
            });
        }
    }

    /// False when the run is to stop.
    fn read_folder(
        &mut self,
        at: usize,
        directory: &Directory,
        room: &mut [MaybeUninit<u8>],
        foreman: &mut dyn Foreman,
    ) -> Result<bool, Failure> {
        let way = self.path.len();
        let (mut entries, mut is_to_stop, mut outcome, mut is_full) = (0_u32, false, Ok(()), false);
        let read = directory.entries(room, |name, kind| {
            entries = entries.saturating_add(1);
            if entries.is_multiple_of(STRIDE) {
                is_to_stop = !foreman.at_safe_point();
                // A group is never seen in part.
                is_full = !self.look.groups && self.listing.files.len() >= MOST;
            }
            self.path.truncate(way);
            if way > 0 {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(name.to_bytes());
            outcome = self.note(at, directory, name, kind);
            !is_to_stop && !is_full && outcome.is_ok()
        });
        outcome?;
        self.listing.is_cut |= is_full;
        if let Some(folder) = self.listing.folders.get_mut(at) {
            folder.entries = entries;
            folder.is_whole &= read.is_ok() && !is_full;
        }
        if read.is_err() {
            self.leave_folder(at, "unreadable", foreman);
        }
        Ok(!is_to_stop)
    }

    fn note(&mut self, at: usize, directory: &Directory, name: &CStr, kind: Kind) -> Result<(), Failure> {
        let bytes = name.to_bytes();
        let mut seen = None;
        let kind = match kind {
            Kind::Unknown => match directory.look(name) {
                Ok(facts) => seen.insert(facts).kind,
                Err(_) => return Ok(()),
            },
            kind => kind,
        };
        let is_included = kind == Kind::Folder || self.look.globs.includes(bytes, &self.path);
        let may_be_in_a_group = self.look.groups && kind == Kind::File;
        if !is_included && !may_be_in_a_group {
            return Ok(());
        }
        if self.look.globs.excludes(bytes, &self.path) {
            if is_included {
                self.listing.keep("excluded", 0);
            }
            return Ok(());
        }
        if bytes.len() > LONGEST_NAME {
            self.listing.keep("unreadable", 0);
            return Ok(());
        }
        match kind {
            Kind::Folder => {
                let root = self.listing.folders.get(at).map_or(0, |folder| folder.root);
                self.listing.add_folder(Some(number(at)?), root, name, 0)
            }
            Kind::File => match seen.map_or_else(|| directory.look(name), Ok) {
                Ok(facts) => self.note_file(at, name, &facts, is_included),
                // Gone again.
                Err(_) => Ok(()),
            },
            Kind::Symlink => {
                self.listing.keep("symlink", 0);
                Ok(())
            }
            Kind::Other | Kind::Unknown => {
                self.listing.keep("special", 0);
                Ok(())
            }
        }
    }

    fn note_file(&mut self, at: usize, name: &CStr, facts: &Facts, is_included: bool) -> Result<(), Failure> {
        let sectors = clamped(facts.sectors);
        let bytes = u64::from(sectors) * 512;
        if facts.kind != Kind::File || facts.is_mount_root == Some(true) {
            self.listing.keep(if facts.kind == Kind::File { "other-device" } else { "changed" }, 0);
            return Ok(());
        }
        if facts.youngest > self.look.begun && self.listing.ahead.as_ref().is_none_or(|(ahead, _)| facts.youngest > *ahead) {
            let folder = self.listing.folder_path(number(at)?);
            self.listing.ahead = Some((facts.youngest, folder.join(OsStr::from_bytes(name.to_bytes()))));
        }
        let has_links = facts.links != 1;
        if !self.look.groups {
            let reason = if has_links { Some("hard-link") } else { None };
            let reason = reason.or_else(|| self.look.floor.is_some_and(|floor| facts.youngest > floor).then_some("young"));
            if let Some(reason) = reason {
                self.listing.keep(reason, bytes);
                return Ok(());
            }
        }
        let (name_at, name_length) = (self.listing.add_name(name)?, u8::try_from(name.to_bytes().len()).unwrap_or(u8::MAX));
        let (inode, youngest, folder) = (facts.inode, facts.youngest, number(at)?);
        self.listing.files.push(File { inode, youngest, name_at, folder, sectors, name_length, is_included, has_links });
        Ok(())
    }
}
