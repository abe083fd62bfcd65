//! Whether the database can be reached, and its versions.

use std::{path::Path, time::Duration};

use tarbox_runtime::Finding;

use crate::{failure::Failure, places};

const WHAT: &str = "database";
/// A database that takes longer is not fit for a file system.
const REACH_WITHIN: Duration = Duration::from_secs(10);

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
        Ok::<_, Failure>((schema, database.tenants().await?.len()))
    });
    match opened.await {
        Ok(Ok((schema, tenants))) => Finding::fine(
            WHAT,
            format!(
                "{shown}: {tenants} tenants, schema {}, usable from schema {} on",
                schema.version, schema.min_version
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
