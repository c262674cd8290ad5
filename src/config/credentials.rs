//! Secrets that the service manager hands over: `credential:NAME` in place of a path means the file of that name in
//! `$CREDENTIALS_DIRECTORY` (systemd's `LoadCredential=NAME:FILE`). It is readable for the service alone, never swapped out, and in
//! nobody's environment.

use std::path::{Path, PathBuf};

/// What stands before the name of a credential.
const PREFIX: &str = "credential:";

/// For messages.
pub const ALLOWED: &str = "a path, or \"credential:NAME\" where the unit has LoadCredential=NAME:FILE";

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// systemd allows the characters of a file's name, less those that could lead elsewhere.
    #[error("{0:?} is no name of a credential")]
    Name(String),
    #[error("no credentials are given here: CREDENTIALS_DIRECTORY is not set")]
    NoFolder,
}

/// The file that `given` means: itself, or the credential it names in `folder`.
///
/// # Errors
/// When it names a credential, and its name is none or none are given.
pub fn resolve(given: &str, folder: Option<&str>) -> Result<PathBuf, Fault> {
    let Some(name) = given.strip_prefix(PREFIX) else { return Ok(given.into()) };
    let is_name = !name.is_empty() && name.len() <= 255 && !name.starts_with('.') && name.chars().all(|c| c.is_ascii_graphic() && c != '/');
    if !is_name {
        return Err(Fault::Name(name.to_owned()));
    }
    folder.map(|folder| Path::new(folder).join(name)).ok_or(Fault::NoFolder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_credential_is_a_file_in_the_folder_of_credentials() {
        let folder = Some("/run/credentials/plimsoll.service");
        assert_eq!(resolve("credential:api-key", folder), Ok("/run/credentials/plimsoll.service/api-key".into()));
        assert_eq!(resolve("/etc/plimsoll/api-key", folder), Ok("/etc/plimsoll/api-key".into()));
        assert_eq!(resolve("api-key", None), Ok("api-key".into()));
        assert_eq!(resolve("credential:api-key", None), Err(Fault::NoFolder));
    }

    proptest! {
        /// No name leads out of the folder.
        #[test]
        fn a_name_stays_in_its_folder(name in "[./a-z:\u{0}ä -]{0,12}") {
            if let Ok(file) = resolve(&format!("credential:{name}"), Some("/run/credentials/x")) {
                prop_assert_eq!(file.parent(), Some(Path::new("/run/credentials/x")));
                prop_assert!(file.file_name().is_some_and(|last| last == &*name));
            } else {
                prop_assert!(name.is_empty() || name.starts_with('.') || name.contains(|c: char| !c.is_ascii_graphic() || c == '/'));
            }
        }
    }
}
