//! What keeps tenants apart in a database: a mounter that is given a login of its tenant's own can reach no other.

use async_trait::async_trait;
use tarbox_types::TenantId;

use crate::error::Result;

/// How tenants are kept apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// Logins can be made, which the server keeps to their tenants.
    Logins,
    /// Each family is a directory of its own: who may read its files decides.
    Files,
    /// Logins cannot be made: every mounter can do what this program can. Why, and what would change it.
    None(String),
}

/// A login.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The user of the database.
    pub role: String,
    /// In the clear.
    pub password: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("role", &self.role).finish_non_exhaustive()
    }
}

/// What became of the wish for a login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Made {
    /// It can be used: it has been tried.
    Login(Login),
    /// There can be none. Why, and what would change it.
    Impossible(String),
}

/// The logins of one database.
#[async_trait]
pub trait Logins: Send + Sync {
    /// How tenants are kept apart, as far as this program's own rights go.
    async fn isolation(&self) -> Result<Isolation>;

    /// Makes the login of a tenant's mounters on a node. One that is there gets another password: who has the old one can connect no
    /// more. It reaches what is its tenant's, what that begins at, and its family's blocks.
    ///
    /// # Errors
    /// [`crate::StoreError::NoTenant`]; what is no answer to whether there can be one.
    async fn make_login(&self, tenant: TenantId, node: &str) -> Result<Made>;

    /// Takes that login away. Not an error where there is none. A tenant that is reaped takes its logins with it.
    async fn remove_login(&self, tenant: TenantId, node: &str) -> Result<()>;
}
