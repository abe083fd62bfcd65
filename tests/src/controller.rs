//! A controller, and the calls that a cluster's sidecars make to it.

use std::{
    collections::HashMap,
    fs::File,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tarbox_proto::csi::v1::{
    CapacityRange, ControllerModifyVolumeRequest, ControllerPublishVolumeRequest,
    ControllerUnpublishVolumeRequest, CreateSnapshotRequest, CreateVolumeRequest, DeleteSnapshotRequest,
    DeleteVolumeRequest, Snapshot, Volume, VolumeCapability, VolumeContentSource,
    controller_client::ControllerClient,
    volume_capability::{AccessMode, AccessType, MountVolume},
    volume_content_source::{SnapshotSource, Type, VolumeSource},
};
use tonic::{Status, transport::Channel};

use crate::{deadline::wait_for, product::program};

const LIMIT: Duration = Duration::from_secs(60);

/// A controller that runs; ended in `Drop`.
#[derive(Debug)]
pub struct Controller {
    process: Option<Child>,
    url: String,
    home: PathBuf,
}

impl Controller {
    /// Starts one over a database, with its socket and its log in a directory.
    ///
    /// # Errors
    /// If it does not serve.
    pub fn start(home: &Path, url: &str) -> Result<Self> {
        Self::start_with(home, url, &[])
    }

    /// As [`Self::start`], with further words on its command line.
    ///
    /// # Errors
    /// If it does not serve.
    pub fn start_with(home: &Path, url: &str, words: &[&str]) -> Result<Self> {
        let mut controller = Self { process: None, url: url.to_owned(), home: home.to_owned() };
        controller.start_again(words)?;
        Ok(controller)
    }

    /// Starts it after its end, with further words on its command line.
    ///
    /// # Errors
    /// If it does not serve.
    pub fn start_again(&mut self, words: &[&str]) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.home.join("controller.log"))?;
        let _ = std::fs::remove_file(self.socket());
        let mut command = Command::new(program("tarbox-controller"));
        command.args(["serve", "--endpoint", &format!("unix://{}", self.socket().display())]).args(words);
        command.env("TARBOX_DATABASE_URL", &self.url);
        let command = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.process = Some(command.spawn().context("start the controller")?);
        // Between its making and the first who may connect there is a moment.
        wait_for("the controller's socket", LIMIT, || UnixStream::connect(self.socket()).ok().map(drop))
            .with_context(|| self.log())
    }

    /// Ends it with `kill -9`.
    ///
    /// # Panics
    /// If it does not run.
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("a controller runs");
        process.kill().expect("kill");
        process.wait().expect("reap");
    }

    /// Lets it end by itself.
    ///
    /// # Errors
    /// If it does not, or not well.
    pub fn end(&mut self) -> Result<()> {
        let mut process = self.process.take().context("a controller runs")?;
        kill(Pid::from_raw(process.id().cast_signed()), Signal::SIGTERM)?;
        let status = wait_for("the controller's end", LIMIT, || process.try_wait().transpose())??;
        ensure!(status.success(), "it ended with {status}\n{}", self.log());
        Ok(())
    }

    /// Its database.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where it serves.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.home.join("controller.sock")
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.home.join("controller.log")).unwrap_or_default()
    }

    /// Somebody who calls it.
    ///
    /// # Errors
    /// If it cannot be reached.
    pub async fn caller(&self) -> Result<Caller> {
        let channel = tarbox_rpc::connect(&self.socket(), LIMIT).await?;
        Ok(Caller { client: ControllerClient::new(channel) })
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// What a volume can be asked for as.
#[must_use]
pub fn capability() -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: 1 }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    }
}

/// Text by text.
#[must_use]
pub fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// A request for a volume of so many bytes.
#[must_use]
pub fn volume(name: &str, bytes: i64) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.to_owned(),
        capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
        volume_capabilities: vec![capability()],
        ..Default::default()
    }
}

/// What a snapshot shows.
#[must_use]
pub fn from_snapshot(id: &str) -> Option<VolumeContentSource> {
    let source = Type::Snapshot(SnapshotSource { snapshot_id: id.to_owned() });
    Some(VolumeContentSource { r#type: Some(source) })
}

/// What a volume shows.
#[must_use]
pub fn from_volume(id: &str) -> Option<VolumeContentSource> {
    let source = Type::Volume(VolumeSource { volume_id: id.to_owned() });
    Some(VolumeContentSource { r#type: Some(source) })
}

/// Calls as the sidecars make them.
#[derive(Clone, Debug)]
pub struct Caller {
    /// For calls that have no shorter form here.
    pub client: ControllerClient<Channel>,
}

impl Caller {
    /// CreateVolume.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn create(&mut self, request: CreateVolumeRequest) -> Result<Volume, Status> {
        let made = self.client.create_volume(request).await?.into_inner();
        Ok(made.volume.expect("a volume"))
    }

    /// DeleteVolume.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn delete(&mut self, id: &str) -> Result<(), Status> {
        let request = DeleteVolumeRequest { volume_id: id.to_owned(), ..Default::default() };
        self.client.delete_volume(request).await.map(drop)
    }

    /// ControllerPublishVolume, for this access mode; what the node is to be told.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn publish(
        &mut self,
        id: &str,
        node: &str,
        mode: i32,
        readonly: bool,
    ) -> Result<HashMap<String, String>, Status> {
        let request = ControllerPublishVolumeRequest {
            volume_id: id.to_owned(),
            node_id: node.to_owned(),
            volume_capability: Some(VolumeCapability {
                access_mode: Some(AccessMode { mode }),
                ..capability()
            }),
            readonly,
            ..Default::default()
        };
        Ok(self.client.controller_publish_volume(request).await?.into_inner().publish_context)
    }

    /// ControllerUnpublishVolume; an empty name stands for all nodes.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn unpublish(&mut self, id: &str, node: &str) -> Result<(), Status> {
        let request = ControllerUnpublishVolumeRequest {
            volume_id: id.to_owned(),
            node_id: node.to_owned(),
            ..Default::default()
        };
        self.client.controller_unpublish_volume(request).await.map(drop)
    }

    /// ControllerModifyVolume.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn modify(&mut self, id: &str, parameters: &[(&str, &str)]) -> Result<(), Status> {
        let request = ControllerModifyVolumeRequest {
            volume_id: id.to_owned(),
            mutable_parameters: map(parameters),
            ..Default::default()
        };
        self.client.controller_modify_volume(request).await.map(drop)
    }

    /// CreateSnapshot.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn snapshot(&mut self, name: &str, of: &str) -> Result<Snapshot, Status> {
        let request = CreateSnapshotRequest {
            name: name.to_owned(),
            source_volume_id: of.to_owned(),
            ..Default::default()
        };
        let made = self.client.create_snapshot(request).await?.into_inner();
        Ok(made.snapshot.expect("a snapshot"))
    }

    /// DeleteSnapshot.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn delete_snapshot(&mut self, id: &str) -> Result<(), Status> {
        let request = DeleteSnapshotRequest { snapshot_id: id.to_owned(), ..Default::default() };
        self.client.delete_snapshot(request).await.map(drop)
    }
}
