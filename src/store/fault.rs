//! What a closure on a connection may fail with, and how SQLite's and the file system's words become a `StoreError` that says what to do.

use super::StoreError;
use std::path::Path;

/// Failure inside a closure: SQLite's, still without the name of its database, or ours.
#[derive(Debug)]
pub(super) enum Fault {
    /// SQLite said no.
    Sql(rusqlite::Error),
    /// The store said no.
    Store(StoreError),
}

impl From<rusqlite::Error> for Fault {
    fn from(e: rusqlite::Error) -> Self {
        Self::Sql(e)
    }
}
impl From<StoreError> for Fault {
    fn from(e: StoreError) -> Self {
        Self::Store(e)
    }
}

impl Fault {
    /// Whether it is what is stored in one row that cannot be read back, while the database answers.
    pub(super) fn of_a_row(&self) -> bool {
        use rusqlite::Error as E;
        match self {
            Self::Store(e) => matches!(e, StoreError::Corrupt { .. }),
            Self::Sql(e) => {
                matches!(e, E::InvalidColumnType(..) | E::FromSqlConversionFailure(..) | E::IntegralValueOutOfRange(..) | E::Utf8Error(..))
            }
        }
    }

    /// Names the database.
    pub(super) fn named(self, path: &Path) -> StoreError {
        match self {
            Self::Sql(e) => database(path, e),
            Self::Store(e) => e,
        }
    }
}

/// Result inside a closure.
pub(super) type Sql<T> = Result<T, Fault>;

/// SQLite's error with its file and, where there is one, the way out.
pub(super) fn database(path: &Path, e: rusqlite::Error) -> StoreError {
    use rusqlite::ErrorCode;
    let hint = match e.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => return StoreError::Full { detail: format!("{} could not be written", path.display()) },
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
            " (the supervisor's user must own the file and its directory)"
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => " (another program holds it: close that, then try again)",
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => " (restore it from a backup of the home)",
        _ => "",
    };
    StoreError::Database { db: path.display().to_string(), detail: format!("{e}{hint}") }
}

/// File system error.
pub(super) fn io(path: &Path, e: &std::io::Error) -> StoreError {
    StoreError::Io { path: path.display().to_string(), detail: e.to_string() }
}

/// A stored value that cannot be read back.
pub(super) fn corrupt(what: &'static str, detail: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt { what, detail: detail.to_string() }
}

/// Something that is not there.
pub(super) fn missing(what: &'static str, id: impl std::fmt::Display) -> StoreError {
    StoreError::Missing { what, id: id.to_string() }
}
