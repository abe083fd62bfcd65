//! What the database answered, in the store's words.

use std::borrow::Cow;

use sqlx::error::DatabaseError;

use crate::error::StoreError;

/// A failure inside the engine: [`StoreError`]s that were meant, and sqlx's that are still to be put into words.
#[derive(Debug)]
pub(super) enum Failure {
    Store(StoreError),
    Sql(sqlx::Error),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

impl Failure {
    /// A deadlock or a serialization failure: the same again may succeed at once.
    pub(super) fn is_conflict(&self) -> bool {
        self.code().is_some_and(|code| matches!(&*code, "40001" | "40P01"))
    }

    /// The connection is gone, or the server is about to go.
    pub(super) fn is_broken(&self) -> bool {
        match self {
            Self::Sql(error) => is_unavailable(error),
            Self::Store(_) => false,
        }
    }

    /// The unique index that forbids it.
    pub(super) fn violates(&self, constraint: &str) -> bool {
        self.is_of("23505", constraint)
    }

    /// The reference that forbids it.
    pub(super) fn would_break(&self, constraint: &str) -> bool {
        self.is_of("23503", constraint)
    }

    fn is_of(&self, code: &str, constraint: &str) -> bool {
        let Self::Sql(sqlx::Error::Database(error)) = self else { return false };
        error.constraint() == Some(constraint) && error.code().as_deref() == Some(code)
    }

    /// What the server says who refuses it to whoever is connected: no right to do it, or to be let in.
    pub(super) fn denial(&self) -> Option<String> {
        let Self::Sql(sqlx::Error::Database(error)) = self else { return None };
        let is_denied = error.code().is_some_and(|code| code.starts_with("28") || code == "42501");
        is_denied.then(|| error.message().to_owned())
    }

    /// Something still depends on what was to go.
    pub(super) fn is_depended_on(&self) -> bool {
        self.code().is_some_and(|code| code == "2BP01")
    }

    fn code(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Sql(sqlx::Error::Database(error)) => error.code(),
            _ => None,
        }
    }

    /// In the store's words.
    pub(super) fn into_store(self, url: &str, doing: &'static str) -> StoreError {
        let error = match self {
            Self::Store(error) => return error,
            Self::Sql(error) => error,
        };
        if is_unavailable(&error) {
            return StoreError::Unavailable { url: url.to_owned(), source: error.into() };
        }
        match &error {
            sqlx::Error::Database(answer) => match answer.code().as_deref() {
                Some("53100") => StoreError::Full { url: url.to_owned(), source: error.into() },
                Some(code) if code.starts_with("28") || matches!(code, "3D000" | "42501") => {
                    StoreError::Refused(format!("the database {url} refuses: {}", answer.message()))
                }
                _ => StoreError::Sql { doing, source: error.into() },
            },
            sqlx::Error::Configuration(_) => {
                StoreError::Url { url: url.to_owned(), reason: error.to_string() }
            }
            _ => StoreError::Sql { doing, source: error.into() },
        }
    }
}

fn is_unavailable(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(answer) => is_unavailable_answer(&**answer),
        // A protocol error leaves the connection in an unknown state: only a new one can tell.
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) | sqlx::Error::PoolTimedOut => {
            true
        }
        _ => false,
    }
}

/// Connection failures; too many connections; shutdown, crash and recovery; a primary that became a standby;
/// a statement cancelled by an administrator; no memory.
fn is_unavailable_answer(answer: &dyn DatabaseError) -> bool {
    answer.code().is_some_and(|code| {
        code.starts_with("08")
            || code.starts_with("57P")
            || matches!(&*code, "53300" | "53200" | "53400" | "25006" | "57014" | "25P03")
    })
}
