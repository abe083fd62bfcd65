//! Whether the database can be reached, and its versions.

use std::{path::Path, time::Duration};

use tarbox_runtime::Finding;
use tarbox_store::Isolation;

use crate::{failure::Failure, places};

const WHAT: &str = "database";
/// A database that takes longer is not fit for a file system.
const REACH_WITHIN: Duration = Duration::from_secs(10);

/// What keeps mounters on nodes from each other's tenants. Pure.
fn kept_apart(isolation: &Isolation) -> String {
    match isolation {
        Isolation::Logins => "nodes can give each tenant a role of its own".to_owned(),
        Isolation::Files => "each family of tenants is a directory of its own".to_owned(),
        Isolation::None(why) => format!("nodes cannot give tenants roles of their own ({why})"),
    }
}

pub(super) async fn reach(url: &str) -> Finding {
    let shown = places::without_password(url);
    if let Some(directory) = url.strip_prefix("sqlite://")
        && !Path::new(directory).exists()
    {
        // Opening would make it, and looking should change nothing.
        return Finding::fine(WHAT, format!("{shown} is not there yet: the first mount makes it"));
    }
    let opened = tokio::time::timeout(REACH_WITHIN, async {
        let database = tarbox_store::open(url).await?;
        let schema = database.schema_version().await?;
        let isolation = database.isolation().await?;
        Ok::<_, Failure>((schema, database.tenants().await?.len(), isolation))
    });
    match opened.await {
        Ok(Ok((schema, tenants, isolation))) => Finding::fine(
            WHAT,
            format!(
                "{shown}: {tenants} tenants, schema {}, usable from schema {} on; {}",
                schema.version,
                schema.min_version,
                kept_apart(&isolation)
            ),
        ),
        Ok(Err(failure)) => Finding::fault(
            WHAT,
            failure.report().to_string().lines().next().unwrap_or_default().to_owned(),
            "check the URL, that the server runs, and that this user may use it",
        ),
        Err(_) => Finding::fault(
            WHAT,
            format!("{shown} did not answer within {} s", REACH_WITHIN.as_secs()),
            "check that the server runs and that the network leads there",
        ),
    }
}
