//! The databases that requests name, each opened once; and which of them a volume is in.

use std::{collections::BTreeSet, sync::Arc};

use tarbox_rpc::csi::identity::Readiness;
use tarbox_runtime::Reached;
use tarbox_store::{Database, Opened, VolumeRecord};
use tarbox_types::TenantId;
use tonic::Status;
use uuid::Uuid;

use crate::{
    failure::{ControllerError, Result},
    volume::Description,
};

/// See the module.
pub(crate) struct Databases {
    /// That of requests that name none; it also knows the volumes whose parameters name another.
    home: Option<String>,
    home_reached: Reached,
    opened: Opened,
}

/// An open database, and where it is.
#[derive(Clone)]
pub(crate) struct Place {
    /// It.
    pub(crate) database: Arc<dyn Database>,
    /// Its URL, with what is secret in it.
    pub(crate) url: String,
}

impl Databases {
    pub(crate) fn new(home: Option<String>) -> Self {
        Self { home, home_reached: Reached::default(), opened: Opened::default() }
    }

    /// The database of a request: its own, where it names one.
    pub(crate) async fn of_request(&self, named: Option<&str>) -> Result<Place> {
        let url = named.or(self.home.as_deref()).ok_or(ControllerError::NoDatabase)?;
        let database = self.opened.at(url).await?;
        if Some(url) == self.home.as_deref() {
            self.home_reached.answered();
        }
        Ok(Place { database, url: url.to_owned() })
    }

    /// The database that a volume is in: what the request names, else what was noted when the volume was made, else home.
    pub(crate) async fn of_volume(&self, id: TenantId, named: Option<&str>) -> Result<Place> {
        let place = self.of_request(named).await?;
        if named.is_some() {
            return Ok(place);
        }
        match self.elsewhere(&place, id).await? {
            Some(url) => self.of_request(Some(&url)).await,
            None => Ok(place),
        }
    }

    /// The database that a snapshot is in: what the request names, else home, else one of the others that home knows volumes to be in.
    /// Home for one that is nowhere.
    pub(crate) async fn of_snapshot(&self, id: Uuid, named: Option<&str>) -> Result<Place> {
        let place = self.of_request(named).await?;
        if named.is_some() || place.database.snapshot(id).await?.is_some() {
            return Ok(place);
        }
        for url in self.others().await? {
            let other = self.of_request(Some(&url)).await?;
            if other.database.snapshot(id).await?.is_some() {
                return Ok(other);
            }
        }
        Ok(place)
    }

    /// Opens the databases that home knows volumes to be in, so that the work in the background is done there as well, whatever this process
    /// was asked for. One that cannot be reached is tried again with the next call.
    pub(crate) async fn open_others(&self) -> Result<()> {
        for url in self.others().await? {
            if let Err(error) = self.of_request(Some(&url)).await {
                tracing::warn!(url, error = error.report(), "a database with volumes cannot be opened");
            }
        }
        Ok(())
    }

    /// The URLs of the other databases that home knows volumes to be in.
    async fn others(&self) -> Result<BTreeSet<String>> {
        if self.home.is_none() {
            return Ok(BTreeSet::new());
        }
        let home = self.of_request(None).await?;
        let page = |after, limit| home.database.volumes(after, limit);
        let records = tarbox_store::all(|record: &VolumeRecord| record.id, page).await?;
        Ok(records.iter().filter_map(|record| Description::read(&record.description).elsewhere).collect())
    }

    /// Asks home whether it answers.
    pub(crate) async fn ask_home(&self) -> Result<()> {
        let asked = async {
            let place = self.of_request(None).await?;
            place.database.schema_version().await?;
            Ok(())
        };
        let answered: Result<()> = asked.await;
        match &answered {
            Ok(()) => self.home_reached.answered(),
            Err(error) => self.home_reached.failed(error.report()),
        }
        answered
    }

    /// Whether home answered when it was last asked; `None` where there is none.
    pub(crate) fn home_answers(&self) -> Option<std::result::Result<(), String>> {
        self.home.as_ref().map(|_| self.home_reached.is_now("the database"))
    }

    /// Every database that was opened, home among them.
    pub(crate) fn opened(&self) -> Vec<Arc<dyn Database>> {
        self.opened.all()
    }

    /// The other database that home knows a volume to be in.
    async fn elsewhere(&self, home: &Place, id: TenantId) -> Result<Option<String>> {
        let noted = home.database.volume(id).await?;
        Ok(noted.and_then(|record| Description::read(&record.description).elsewhere))
    }

    /// Home, where `place` is another one and there is one.
    pub(crate) async fn home_beside(&self, place: &Place) -> Result<Option<Place>> {
        match &self.home {
            Some(home) if *home != place.url => self.of_request(None).await.map(Some),
            Some(_) | None => Ok(None),
        }
    }
}

impl Readiness for Databases {
    /// Ready once the controller's own database has been reached, if it has one: a later outage is none that a restart would mend.
    fn is_ready(&self) -> std::result::Result<bool, Status> {
        Ok(self.home.is_none() || self.home_reached.has_been())
    }
}
