//! What an error of SQLite says of a database: that it is damaged, that nothing is known, or that a check is not possible. By the code
//! alone, never by the words.

use rusqlite::ErrorCode;

use super::watch::Halt;

/// Why a copy was not proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is not what it should be.
    Damaged(String),
    /// It could not be looked at; it may be good.
    Unknown(Halt),
}

/// By the code alone: a disk that cannot be read, memory or room that is missing, a lock, say nothing about the content.
impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Fault {
        match code(&error) {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Fault::Damaged(error.to_string()),
            _ => Fault::Unknown(error.into()),
        }
    }
}

impl From<Fault> for Halt {
    fn from(fault: Fault) -> Halt {
        match fault {
            Fault::Damaged(reason) => Halt::Failed(reason),
            Fault::Unknown(halt) => halt,
        }
    }
}

/// True where SQLite cannot do what a statement asks for, because a function, a collation, a tokenizer is missing. It says so in many
/// words, some of them as few as "SQL logic error", but always with this code, which never stands for damage.
pub fn is_impossible(error: &rusqlite::Error) -> bool {
    code(error) == Some(ErrorCode::Unknown)
}

/// What SQLite answered, of whatever kind the error is that was made of it.
pub fn code(error: &rusqlite::Error) -> Option<ErrorCode> {
    match error {
        // A statement that could not be understood: `rusqlite` tells the code of every other.
        rusqlite::Error::SqlInputError { error, .. } => Some(error.code),
        error => error.sqlite_error_code(),
    }
}
