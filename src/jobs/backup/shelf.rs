//! The folder of copies: their names, what is in it, and what a run that was killed has left there.
//!
//! A copy is two files, `memory-20261129T020000Z.db.zst` and the same with `.json`: the manifest. It is one once both have
//! these names, the manifest last; until then everything a run makes ends in `.partial`. What is not named so is none of ours.

use std::io::{Read, Write};
use std::path::Path;
use std::time::SystemTime;

use serde::Serialize;

use super::manifest::{self, Manifest};
use super::rotation::Known;
use super::watch::Halt;
use crate::config::jobs::Compress;
use crate::host::durable::{self, Directory, Owner};

/// Behind the name of a copy that is sealed.
const SEALED: &str = ".age";
const PARTIAL: &str = ".partial";
/// Of a database that is brought back, or copied, for a while.
const WORK: [&str; 3] = [".partial", ".partial.scratch", ".partial.scratch-journal"];
/// A manifest with thousands of tables takes less.
const LONGEST_MANIFEST: u64 = 16 << 20;

/// One copy, or what looks like one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Copy {
    /// Of the copy; that of the manifest has `.json` behind it.
    pub name: String,
    /// In JSON `state`, and `reason` beside it where there is one.
    #[serde(flatten)]
    pub state: State,
    /// Absent where it cannot be read.
    pub manifest: Option<Manifest>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state", content = "reason")]
pub enum State {
    /// Proven to come back.
    Good,
    /// Made, and not proven yet.
    Unverified,
    /// It will not come back, or not as it was.
    Damaged(String),
    /// It belongs to somebody else: nothing is known of it.
    Unreadable(String),
}

impl Copy {
    /// What rotation has to know of it.
    pub fn known(&self) -> Option<Known> {
        Some(Known { made: self.manifest.as_ref()?.made, is_good: self.state == State::Good })
    }

    pub fn bytes(&self) -> u64 {
        self.manifest.as_ref().map_or(0, |manifest| manifest.file_bytes)
    }
}

#[derive(Debug)]
pub struct Shelf {
    pub folder: Directory,
}

impl Shelf {
    /// # Errors
    /// A fragment that gives the reason.
    pub fn open(path: &Path) -> Result<Shelf, Halt> {
        let folder = Directory::open(path).map_err(|error| Halt::Failed(format!("{}: {error}", path.display())))?;
        Ok(Shelf { folder })
    }

    /// Opens it and keeps everybody else out, until it is dropped. Made where it is not there.
    ///
    /// # Errors
    /// A fragment that gives the reason.
    pub fn take(path: &Path) -> Result<Shelf, Halt> {
        let failed = |error: std::io::Error| Halt::Failed(format!("{}: {error}", path.display()));
        let folder = Directory::open_or_make(path).map_err(failed)?;
        if !folder.try_lock().map_err(failed)? {
            return Err(Halt::Failed(format!("{}: another run is at work in it", path.display())));
        }
        Ok(Shelf { folder })
    }

    /// Every copy, the oldest first; those whose manifest cannot be read come before all.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn copies(&self) -> Result<Vec<Copy>, Halt> {
        let names = self.folder.names().map_err(Halt::because)?;
        let copies = names.iter().filter_map(|name| name.strip_suffix(manifest::SUFFIX)).filter(|name| is_copy(name));
        let mut copies: Vec<Copy> = copies.map(|name| self.copy(name)).collect();
        copies.sort_by_key(|copy| (copy.manifest.as_ref().map(|manifest| manifest.made), copy.name.clone()));
        Ok(copies)
    }

    /// One copy by its name.
    pub fn copy(&self, name: &str) -> Copy {
        let manifest = match self.manifest(name) {
            Ok(manifest) => manifest,
            Err(state) => return Copy { name: name.to_owned(), state, manifest: None },
        };
        let state = match (self.folder.entry(name), &manifest.damaged) {
            (Err(error), _) => unreadable(&error),
            (Ok(None), _) => State::Damaged("the copy is not there, its manifest alone".to_owned()),
            (Ok(Some(entry)), _) if !entry.is_file => State::Damaged("it is no regular file".to_owned()),
            (Ok(Some(entry)), _) if entry.size != manifest.file_bytes => {
                State::Damaged(format!("it has {} bytes and should have {}", entry.size, manifest.file_bytes))
            }
            (Ok(Some(_)), Some(reason)) => State::Damaged(reason.clone()),
            (Ok(Some(_)), None) if manifest.is_good() => State::Good,
            (Ok(Some(_)), None) => State::Unverified,
        };
        Copy { name: name.to_owned(), state, manifest: Some(manifest) }
    }

    fn manifest(&self, name: &str) -> Result<Manifest, State> {
        let text = self.folder.file(&format!("{name}{}", manifest::SUFFIX)).and_then(|file| {
            let mut text = Vec::new();
            file.take(LONGEST_MANIFEST).read_to_end(&mut text).map(|_| text)
        });
        let manifest = Manifest::parse(&text.map_err(|error| unreadable(&error))?).map_err(State::Damaged)?;
        if manifest.file != name {
            return Err(State::Damaged(format!("its manifest is that of {}", manifest.file)));
        }
        Ok(manifest)
    }

    /// A name for a copy that is not taken.
    ///
    /// # Errors
    /// When the folder cannot be asked.
    pub fn free_name(&self, source: &Path, made: SystemTime, compress: Compress, is_sealed: bool) -> Result<String, Halt> {
        for number in 1..10_000 {
            let ending = if is_sealed { SEALED } else { "" };
            let name = format!("{}{ending}", name_of(source, made, compress, number));
            let wanted = [name.clone(), format!("{name}{}", manifest::SUFFIX)];
            let mut is_taken = false;
            for name in &wanted {
                is_taken |= self.folder.entry(name).map_err(Halt::because)?.is_some();
            }
            if !is_taken {
                return Ok(name);
            }
        }
        Err(Halt::because("there are 10000 copies of the same second"))
    }

    /// The name under which a copy is made.
    pub fn partial(name: &str) -> String {
        format!("{name}{PARTIAL}")
    }

    /// Gives a finished copy its name, and then its manifest: from here on it is one.
    ///
    /// # Errors
    /// When the disk or the folder does not take it; what was made is taken away again.
    pub fn place(&self, manifest: &Manifest) -> Result<(), Halt> {
        let name = &manifest.file;
        let placed = self.write_manifest(manifest, None).and_then(|partial| {
            if let Some(owner) = self.owner_of_new() {
                // Where it cannot be given away it is root's: made all the same.
                let _ = durable::give(&self.folder.file(&Shelf::partial(name))?, owner);
            }
            self.folder.rename_new(&Shelf::partial(name), name)?;
            self.folder.rename_new(&partial, &format!("{name}{}", manifest::SUFFIX))?;
            self.folder.sync()
        });
        placed.map_err(|error| {
            for name in [format!("{name}{}", manifest::SUFFIX), name.clone()] {
                // The error that is told is the first one; what stays behind is swept by the next run.
                let _ = self.folder.remove(&name);
            }
            Halt::Failed(format!("{name} cannot be put into its place: {error}"))
        })
    }

    /// Replaces the manifest of a copy; it belongs to whom the old one belonged to.
    ///
    /// # Errors
    /// When the disk or the folder does not take it, or it cannot be given to its owner; the old one is there then.
    pub fn replace_manifest(&self, manifest: &Manifest) -> Result<(), Halt> {
        let name = format!("{}{}", manifest.file, manifest::SUFFIX);
        let replaced = self.folder.entry(&name).and_then(|old| {
            let partial = self.write_manifest(manifest, old.map(|old| old.owner))?;
            self.folder.rename_over(&partial, &name)?;
            self.folder.sync()
        });
        replaced.map_err(|error| Halt::Failed(format!("the manifest of {} cannot be replaced: {error}", manifest.file)))
    }

    /// Who new files are to belong to, where it is not who makes them: what root makes in a folder of the application is the
    /// application's, or it could not prove, restore or take away its own copies.
    fn owner_of_new(&self) -> Option<Owner> {
        let folder = self.folder.owner().ok()?;
        (durable::acting_user() == 0 && folder.user != 0).then_some(Owner { mode: 0o600, ..folder })
    }

    /// In place of one that belongs to `owner`, or new. Answers with the name it has until it is renamed.
    fn write_manifest(&self, manifest: &Manifest, owner: Option<Owner>) -> std::io::Result<String> {
        let partial = format!("{}{}{PARTIAL}", manifest.file, manifest::SUFFIX);
        self.folder.remove(&partial)?;
        let mut file = self.folder.create(&partial)?;
        let given = match owner {
            Some(owner) => durable::give(&file, owner),
            None => {
                // As in `place`.
                let _ = self.owner_of_new().map(|owner| durable::give(&file, owner));
                Ok(())
            }
        };
        if let Err(error) = given {
            let _ = self.folder.remove(&partial);
            return Err(error);
        }
        file.write_all(manifest.to_text().as_bytes())?;
        file.sync_all()?;
        Ok(partial)
    }

    /// Deletes a copy: the data first, because a manifest without its copy counts for nothing. Answers with the bytes it took.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn delete(&self, name: &str) -> std::io::Result<u64> {
        let bytes = self.folder.entry(name)?.map_or(0, |entry| entry.size);
        self.folder.remove(name)?;
        self.folder.remove(&format!("{name}{}", manifest::SUFFIX))?;
        self.folder.sync()?;
        Ok(bytes)
    }

    /// Takes away what runs that were killed have left. To be called by who has taken the folder.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn sweep(&self) -> Result<Vec<String>, Halt> {
        let mut swept = Vec::new();
        for name in self.folder.names().map_err(Halt::because)? {
            let Some(made) = WORK.iter().find_map(|ending| name.strip_suffix(ending)) else {
                continue;
            };
            let copy = made.strip_suffix(manifest::SUFFIX);
            if !is_copy(copy.unwrap_or(made)) {
                continue;
            }
            // Killed between the two names: the copy has its own and the manifest not yet. It was never proven to be whole on the disk.
            if let Some(copy) = copy
                && self.folder.entry(&format!("{copy}{}", manifest::SUFFIX)).map_err(Halt::because)?.is_none()
                && self.folder.remove(copy).map_err(Halt::because)?
            {
                swept.push(copy.to_owned());
            }
            if self.folder.remove(&name).map_err(Halt::because)? {
                swept.push(name);
            }
        }
        Ok(swept)
    }
}

fn unreadable(error: &std::io::Error) -> State {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => State::Unreadable(error.to_string()),
        _ => State::Damaged(error.to_string()),
    }
}

/// `memory-20261129T020000Z.db.zst`; from the second of the same second on with `-2` and so on before the `.db`.
fn name_of(source: &Path, made: SystemTime, compress: Compress, number: u32) -> String {
    let stem = source.file_stem().unwrap_or_default().to_string_lossy();
    // A name of a file is 255 bytes at most, and what cannot be read stands in no terminal.
    let stem: String = stem.chars().map(|c| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '_' }).take(40).collect();
    let stem = stem.trim_start_matches('.');
    let stamp =
        jiff::Timestamp::try_from(made).map_or_else(|_| "19700101T000000Z".to_owned(), |at| at.strftime("%Y%m%dT%H%M%SZ").to_string());
    let number = if number == 1 { String::new() } else { format!("-{number}") };
    let packed = if matches!(compress, Compress::Zstd(_)) { ".zst" } else { "" };
    format!("{}-{stamp}{number}.db{packed}", if stem.is_empty() { "database" } else { stem })
}

/// True for a name as [`name_of`] makes them.
pub fn is_copy(name: &str) -> bool {
    let name = name.strip_suffix(SEALED).unwrap_or(name);
    let Some(name) = name.strip_suffix(".db").or_else(|| name.strip_suffix(".db.zst")) else {
        return false;
    };
    if name.contains('/') || name.starts_with('.') {
        return false;
    }
    let is_number = |text: &str| !text.is_empty() && text.len() <= 4 && text.bytes().all(|byte| byte.is_ascii_digit());
    let name = match name.rsplit_once('-') {
        Some((rest, number)) if is_number(number) => rest,
        _ => name,
    };
    let Some((stem, stamp)) = name.rsplit_once('-') else {
        return false;
    };
    let shape = |(place, byte): (usize, u8)| match place {
        8 => byte == b'T',
        15 => byte == b'Z',
        _ => byte.is_ascii_digit(),
    };
    !stem.is_empty() && stamp.len() == 16 && stamp.bytes().enumerate().all(shape)
}

#[cfg(test)]
mod tests {
    use super::super::manifest::tests::manifest;
    use super::*;
    use std::time::Duration;

    fn shelf() -> (tempfile::TempDir, Shelf) {
        let base = tempfile::tempdir().unwrap();
        let shelf = Shelf::take(&base.path().join("backups")).unwrap();
        (base, shelf)
    }

    fn place(shelf: &Shelf, made: u64) -> Manifest {
        let name = shelf.free_name(Path::new("/app/memory.db"), manifest(made).made, Compress::Zstd(3), false).unwrap();
        shelf.folder.create(&Shelf::partial(&name)).unwrap().write_all(&[7; 100]).unwrap();
        let manifest = Manifest { file: name, ..manifest(made) };
        shelf.place(&manifest).unwrap();
        manifest
    }

    #[test]
    fn names_say_what_and_when_and_nothing_else_is_taken_for_one() {
        let made = SystemTime::UNIX_EPOCH + Duration::from_secs(1_764_000_000);
        let name = |source: &str, number| name_of(Path::new(source), made, Compress::Zstd(3), number);
        assert_eq!(name("/app/memory.db", 1), "memory-20251124T160000Z.db.zst");
        assert_eq!(name("/app/memory.db", 2), "memory-20251124T160000Z-2.db.zst");
        assert_eq!(name_of(Path::new("/app/x"), made, Compress::None, 1), "x-20251124T160000Z.db");
        assert_eq!(name("/app/.a b\n/c.sqlite", 1), "c-20251124T160000Z.db.zst");
        assert_eq!(name("/app/.\u{1b}[1m;.db", 1), "__1m_-20251124T160000Z.db.zst");
        for source in ["/app/memory.db", "/app/.hidden", "/app/a-b-1", "/app/ä.db", &format!("/{}", "x".repeat(250))] {
            assert!(is_copy(&name(source, 1)) && is_copy(&name(source, 77)) && is_copy(&format!("{}.age", name(source, 1))), "{source}");
        }
        for other in [
            "memory.db",
            "memory-2025.db.zst",
            "-20251124T160000Z.db",
            "x-20251124T160000Z.db.gz",
            "x-20251124T160000Z",
            "a/x-20251124T160000Z.db",
        ] {
            assert!(!is_copy(other), "{other}");
        }
    }

    #[test]
    fn what_is_on_the_shelf_is_told_with_its_state() {
        let (base, shelf) = shelf();
        let (one, other) = (place(&shelf, 2000), place(&shelf, 1000));
        let twin = place(&shelf, 2000);
        assert!(twin.file.ends_with("-2.db.zst"), "{}", twin.file);
        let states =
            |shelf: &Shelf| -> Vec<(String, State)> { shelf.copies().unwrap().into_iter().map(|copy| (copy.name, copy.state)).collect() };
        assert_eq!(states(&shelf), [(other.file.clone(), State::Good), (twin.file.clone(), State::Good), (one.file.clone(), State::Good)]);
        shelf.replace_manifest(&Manifest { verified: None, ..other.clone() }).unwrap();
        std::fs::write(shelf.folder.path().join(&one.file), [7; 99]).unwrap();
        std::fs::remove_file(shelf.folder.path().join(&twin.file)).unwrap();
        std::fs::write(shelf.folder.path().join("more-20251124T160000Z.db.zst.json"), "{").unwrap();
        let found = states(&shelf);
        assert!(matches!(&found[0], (name, State::Damaged(reason)) if name.starts_with("more") && reason.contains("no manifest")));
        assert_eq!(found[1], (other.file.clone(), State::Unverified));
        assert!(matches!(&found[2].1, State::Damaged(reason) if reason.contains("not there")), "{found:?}");
        assert_eq!(found[3].1, State::Damaged("it has 99 bytes and should have 100".into()));
        let written = |copy: Copy| serde_json::to_value(copy).unwrap();
        let (good, damaged) = (written(shelf.copy(&other.file)), written(shelf.copy(&one.file)));
        assert_eq!((&good["state"], good.get("reason")), (&"unverified".into(), None));
        assert_eq!((&damaged["state"], &damaged["reason"]), (&"damaged".into(), &"it has 99 bytes and should have 100".into()));
        assert_eq!(shelf.delete(&other.file).unwrap(), 100);
        assert_eq!(states(&shelf).len(), 3);
        assert!(Shelf::take(&base.path().join("backups")).is_err());
    }

    #[test]
    fn what_root_makes_and_replaces_belongs_to_whom_it_belonged_to() {
        if durable::acting_user() != 0 {
            eprintln!("skipped: only root gives files away");
            return;
        }
        let (_base, shelf) = shelf();
        let owner = |name: &str| {
            let Owner { user, group, mode } = shelf.folder.entry(name).unwrap().unwrap().owner;
            (user, group, mode)
        };
        let old = place(&shelf, 1000);
        assert_eq!(owner(&old.file), (0, 0, 0o600));
        std::os::unix::fs::chown(shelf.folder.path(), Some(12_345), Some(23_456)).unwrap();
        let new = place(&shelf, 2000);
        let json = |manifest: &Manifest| format!("{}.json", manifest.file);
        for name in [new.file.clone(), json(&new)] {
            assert_eq!(owner(&name), (12_345, 23_456, 0o600), "{name}");
        }
        shelf.replace_manifest(&Manifest { verified: None, ..old.clone() }).unwrap();
        shelf.replace_manifest(&Manifest { verified: None, ..new.clone() }).unwrap();
        assert_eq!((owner(&json(&old)), owner(&json(&new))), ((0, 0, 0o600), (12_345, 23_456, 0o600)));
        // Who may not read it knows nothing of it. The thread alone is somebody else for a moment.
        use rustix::process::Uid;
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(shelf.folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        rustix::thread::set_thread_res_uid(None, Uid::from_raw(54_321), None).unwrap();
        let copy = shelf.copy(&old.file);
        rustix::thread::set_thread_res_uid(None, Uid::ROOT, None).unwrap();
        assert!(matches!(&copy.state, State::Unreadable(reason) if reason.contains("Permission denied")), "{copy:?}");
    }

    #[test]
    fn what_a_killed_run_left_is_swept_and_nothing_else() {
        let (_base, shelf) = shelf();
        let good = place(&shelf, 1000);
        let keep = ["notes.txt", "notes.partial", "mine.db.zst", "memory-20251124T160000Z.db.zst"];
        let sweep = [
            "memory-20251124T150000Z.db.zst.partial",
            "memory-20251124T150000Z.db.zst.partial.scratch",
            "memory-20251124T140000Z.db.zst",
            "memory-20251124T140000Z.db.zst.json.partial",
        ];
        for name in keep.iter().chain(&sweep) {
            shelf.folder.create(name).unwrap();
        }
        // A manifest that was to be replaced: the copy has one.
        shelf.folder.create(&format!("{}.json.partial", good.file)).unwrap();
        let mut swept = shelf.sweep().unwrap();
        swept.sort();
        let mut expected: Vec<String> = sweep.iter().map(|name| (*name).to_owned()).collect();
        expected.push(format!("{}.json.partial", good.file));
        expected.sort();
        assert_eq!(swept, expected);
        let left = shelf.folder.names().unwrap();
        assert!(keep.iter().all(|name| left.contains(&(*name).to_owned())));
        assert_eq!(shelf.copies().unwrap().len(), 1);
        assert_eq!(shelf.sweep().unwrap(), [""; 0]);
    }
}
