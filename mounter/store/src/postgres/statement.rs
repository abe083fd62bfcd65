//! A statement while it is put together: text, and arguments in the order of their `$n`.
//!
//! Text comes from this crate only; every value is bound.

use sqlx::{Arguments, Encode, Postgres, Type, postgres::PgArguments};

/// A statement with its arguments.
#[derive(Default)]
pub(super) struct Statement {
    pub(super) sql: String,
    pub(super) arguments: PgArguments,
    count: usize,
}

impl Statement {
    /// A statement of fixed text, to be followed by [`Statement::with`].
    pub(super) fn new(sql: impl Into<String>) -> Self {
        Self { sql: sql.into(), ..Self::default() }
    }

    /// Binds the next value.
    pub(super) fn with<'q, T: Encode<'q, Postgres> + Type<Postgres>>(mut self, value: T) -> Self {
        self.bind(value);
        self
    }

    /// Binds the next value; returns its number.
    pub(super) fn bind<'q, T: Encode<'q, Postgres> + Type<Postgres>>(&mut self, value: T) -> usize {
        // Our types are numbers, text, bytes, UUIDs and arrays of them: their encoders cannot fail
        // but for more than 2 GiB, which a batch never has.
        self.arguments.add(value).expect("plain values can be encoded");
        self.count += 1;
        self.count
    }

    /// Adds text.
    pub(super) fn push(&mut self, sql: &str) {
        self.sql.push_str(sql);
    }
}

/// As the database stores it. Numbers of the model stay below 2^63 (inode numbers below 2^48).
pub(super) fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// As the model counts it.
pub(super) fn count(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// A column of an array argument.
pub(super) fn column<T, U>(rows: &[T], field: impl Fn(&T) -> U) -> Vec<U> {
    rows.iter().map(field).collect()
}
