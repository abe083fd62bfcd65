//! What mounters log in to their database with: a role of their tenant's own, which the server keeps to that tenant, in place of the
//! driver's.
//!
//! It is made when a tenant is staged, and known to its mounters and the keeper alone. A stage that is repeated leaves it as it is:
//! with another password, who is at work could connect no more.

use std::time::Duration;

use tarbox_store::{Isolation, Login, Made};
use tarbox_supervisor::State;
use tarbox_types::{TenantId, database_url};

use crate::{
    failure::AgentError,
    node::Node,
    settings::TenantRoles,
    tenant::{Snapshot, Staged},
};

/// How long the end of a login may keep an unstage waiting. One that is left reaches its tenant only, by a password that nobody has.
const LOG_OUT_WITHIN: Duration = Duration::from_secs(2);

/// What a mounter logs in with.
#[derive(Debug)]
pub(crate) enum LogIn {
    /// What the driver does.
    Driver,
    /// What its tenant's mounters have already.
    Kept,
    /// This URL.
    Own(String),
}

/// Whether the tenant's mounters have a login by now that is to stay. Pure.
fn has_login(seen: &Snapshot) -> bool {
    let is_staged = !matches!(seen.record.state, State::Absent | State::Gone);
    // Of one staged by an earlier release, or where there could be none, the driver's goes on.
    is_staged && (seen.staged.login.is_none() || seen.has_secrets)
}

impl Node {
    /// Sees to it that the tenant has a login on this node, and notes it in what is staged; `url` is the driver's.
    ///
    /// # Errors
    /// Where there can be none and the configuration requires it; where the database does not answer in time.
    pub(crate) async fn log_in(
        &self,
        staged: &mut Staged,
        url: &str,
        limit: Duration,
    ) -> Result<LogIn, AgentError> {
        let roles = self.settings.tenant_roles;
        let seen = self.tenant(staged.tenant).map(|handle| handle.snapshot.borrow().clone());
        if let Some(seen) = seen.filter(has_login) {
            staged.login.clone_from(&seen.staged.login);
            return Ok(if staged.login.is_some() { LogIn::Kept } else { LogIn::Driver });
        }
        if roles == TenantRoles::Off || !database_url::has_users(url) {
            return Ok(LogIn::Driver);
        }
        let made = tokio::time::timeout(limit, self.make_login(staged.tenant, url)).await;
        let made = made.unwrap_or_else(|_| {
            let (what, why) = ("staging", "the database does not answer".to_owned());
            Err(AgentError::Unfinished { tenant: staged.tenant, what, why })
        });
        match made? {
            Made::Login(Login { role, password }) => {
                let own = database_url::with_user(url, &role, Some(&password));
                staged.login = Some(role);
                Ok(LogIn::Own(own))
            }
            Made::Impossible(why) if roles == TenantRoles::Required => {
                Err(AgentError::Precondition(format!(
                    "the volume {} gets no role of the database of its own, which tenantRoles = `required` asks for: {why}",
                    staged.tenant
                )))
            }
            Made::Impossible(why) => {
                let tenant = staged.tenant;
                tracing::warn!(%tenant, why, "NOT ISOLATED: the mounter gets the driver's own access to the database");
                Ok(LogIn::Driver)
            }
        }
    }

    async fn make_login(&self, tenant: TenantId, url: &str) -> Result<Made, AgentError> {
        let database = self.databases.at(url).await?;
        Ok(database.make_login(tenant, &self.settings.node_id).await?)
    }

    /// The agent's own URL, if that is where the tenant is: it has the password that what is noted of a tenant has not.
    pub(crate) fn own_url_of(&self, staged: &Staged) -> Option<&str> {
        let own = self.settings.database_url.as_deref();
        own.filter(|url| database_url::public(url).0 == staged.database_url)
    }

    /// Takes the login of a tenant away that is staged no more. Where it cannot be done now, the next stage gives it another password, and
    /// the tenant's end takes it away.
    pub(crate) async fn log_out(&self, staged: &Staged) {
        let (Some(url), true) = (self.own_url_of(staged), staged.login.is_some()) else { return };
        let removed = async {
            let database = self.databases.at(url).await?;
            database.remove_login(staged.tenant, &self.settings.node_id).await
        };
        let tenant = staged.tenant;
        match tokio::time::timeout(LOG_OUT_WITHIN, removed).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%tenant, %error, "a login is left behind"),
            Err(_) => tracing::warn!(%tenant, "a login is left behind: the database does not answer"),
        }
    }

    /// Notes how tenants are kept apart in the agent's own database.
    pub(crate) fn found_isolation(&self, found: Isolation) {
        let mut known = self.isolation.lock();
        if known.as_ref() != Some(&found)
            && let (Isolation::None(why), true) = (&found, self.settings.tenant_roles != TenantRoles::Off)
        {
            tracing::warn!(
                why,
                "tenants are NOT ISOLATED: mounters get the driver's own access to the database"
            );
        }
        *known = Some(found);
    }

    /// Whether tenants are kept apart as the configuration requires.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn keeps_apart(&self) -> Result<(), String> {
        match &*self.isolation.lock() {
            Some(Isolation::None(why)) if self.settings.tenant_roles == TenantRoles::Required => {
                Err(format!("tenantRoles = `required`, and {why}"))
            }
            _ => Ok(()),
        }
    }

    /// What keeps tenants apart, for people; and what is lacking.
    pub(crate) fn isolation(&self) -> (String, String) {
        let staged = self.all().into_iter().filter(|(_, handle)| {
            let seen = handle.snapshot.borrow();
            database_url::has_users(&seen.staged.database_url) && seen.staged.login.is_none()
        });
        let without = staged.count();
        let roles = self.settings.tenant_roles;
        match &*self.isolation.lock() {
            None => (String::new(), String::new()),
            Some(Isolation::Files) => {
                ("each family of tenants is a directory of its own".to_owned(), String::new())
            }
            Some(Isolation::None(why)) => (String::new(), why.clone()),
            Some(Isolation::Logins) if roles == TenantRoles::Off => {
                (String::new(), "tenantRoles = `off`: every mounter has the driver's access".to_owned())
            }
            Some(Isolation::Logins) if without > 0 => (
                String::new(),
                format!(
                    "{without} of the volumes staged here have the driver's access until they are staged anew"
                ),
            ),
            Some(Isolation::Logins) => {
                ("each tenant has a role of the database of its own".to_owned(), String::new())
            }
        }
    }
}
