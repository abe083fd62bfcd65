//! How a volume is to be mounted, from its capability. Pure.

use serde::{Deserialize, Serialize};
use tarbox_proto::csi::v1::{VolumeCapability, volume_capability::AccessType};
use tarbox_types::AccessMode;

use super::request::RequestError;

/// Types that a volume may be asked for as.
const FS_TYPES: &[&str] = &["", "tarbox", "fuse.tarbox"];
/// Mount options that may be asked for.
const FLAGS: &str =
    "ro, rw, suid, nosuid, dev, nodev, exec, noexec, atime, noatime, relatime, diratime, nodiratime";

/// How a volume is to be mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountWish {
    /// Writes are refused by the kernel.
    pub read_only: bool,
    /// Set-user-id programs have no effect.
    pub nosuid: bool,
    /// Device files have no effect.
    pub nodev: bool,
    /// No program can be started.
    pub noexec: bool,
    /// The group that the root directory is given to.
    pub group: Option<u32>,
    /// Whether other nodes may have it mounted at the same time, for reading.
    pub many_readers: bool,
}

/// Reads a capability; `read_only` is what the request says beside it.
///
/// # Errors
/// Where it is missing, is for a block volume, or says something that there is not.
pub fn read(capability: Option<&VolumeCapability>, read_only: bool) -> Result<MountWish, RequestError> {
    let capability = capability.ok_or(RequestError::Missing("volume_capability"))?;
    let mount = match &capability.access_type {
        Some(AccessType::Mount(mount)) => mount,
        Some(AccessType::Block(_)) => {
            return Err(RequestError::value(
                "volume_capability.access_type",
                "block",
                "mount: Tarbox volumes are file systems",
            ));
        }
        None => return Err(RequestError::Missing("volume_capability.access_type")),
    };
    if !FS_TYPES.contains(&mount.fs_type.as_str()) {
        return Err(RequestError::value(
            "volume_capability.mount.fs_type",
            &mount.fs_type,
            "`tarbox`, or none: a tenant is no disk that could be formatted",
        ));
    }
    let mode = mode(capability)?;
    let mut wish = MountWish {
        read_only: read_only || mode.only_reads(),
        nosuid: false,
        nodev: false,
        noexec: false,
        group: group(&mount.volume_mount_group)?,
        many_readers: mode == AccessMode::MultiNodeReaderOnly,
    };
    mount.mount_flags.iter().try_for_each(|flag| apply(&mut wish, flag))?;
    Ok(wish)
}

/// Whether the volume may be published at one place only (ReadWriteOncePod).
#[must_use]
pub fn is_for_one_target(capability: Option<&VolumeCapability>) -> bool {
    capability.is_some_and(|capability| mode(capability) == Ok(AccessMode::SingleNodeSingleWriter))
}

/// Who may use the volume at the same time.
///
/// # Errors
/// Where it is not said, or there is no such mode.
pub fn mode(capability: &VolumeCapability) -> Result<AccessMode, RequestError> {
    let mode =
        capability.access_mode.as_ref().ok_or(RequestError::Missing("volume_capability.access_mode"))?.mode;
    AccessMode::of_number(mode).ok_or_else(|| {
        let allowed = "one of SINGLE_NODE_WRITER (1) to SINGLE_NODE_MULTI_WRITER (7)";
        RequestError::value("volume_capability.access_mode", mode, allowed)
    })
}

fn group(text: &str) -> Result<Option<u32>, RequestError> {
    if text.is_empty() {
        return Ok(None);
    }
    let bad =
        |_| RequestError::value("volume_capability.mount.volume_mount_group", text, "the number of a group");
    text.parse().map(Some).map_err(bad)
}

fn apply(wish: &mut MountWish, flag: &str) -> Result<(), RequestError> {
    match flag {
        "ro" => wish.read_only = true,
        "nosuid" => wish.nosuid = true,
        "nodev" => wish.nodev = true,
        "noexec" => wish.noexec = true,
        // Access times do not change by reading, whatever is asked for.
        "rw" | "suid" | "dev" | "exec" | "atime" | "noatime" | "relatime" | "diratime" | "nodiratime" => {}
        _ => return Err(RequestError::value("volume_capability.mount.mount_flags", flag, FLAGS)),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tarbox_proto::csi::v1::volume_capability::{AccessMode, MountVolume};

    use super::*;

    fn mount(mode: i32, mount: MountVolume) -> VolumeCapability {
        VolumeCapability {
            access_mode: Some(AccessMode { mode }),
            access_type: Some(AccessType::Mount(mount)),
        }
    }

    #[test]
    fn readers_get_a_read_only_mount_and_writers_one_they_can_write() {
        for mode in 1..=7 {
            let wish = read(Some(&mount(mode, MountVolume::default())), false).expect("known");
            assert_eq!(wish.read_only, [2, 3].contains(&mode), "mode {mode}");
            assert_eq!(wish.many_readers, mode == 3, "mode {mode}");
            assert!(read(Some(&mount(mode, MountVolume::default())), true).expect("known").read_only);
        }
    }

    #[test]
    fn options_are_applied_and_unknown_ones_named() {
        let with = |flags: &[&str]| MountVolume {
            mount_flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
            volume_mount_group: "1000".into(),
            ..Default::default()
        };
        let wish = read(Some(&mount(1, with(&["ro", "noexec", "nodev", "nosuid", "noatime"]))), false);
        let wish = wish.expect("known options");
        assert!(wish.read_only && wish.noexec && wish.nodev && wish.nosuid);
        assert_eq!(wish.group, Some(1000));
        let error = read(Some(&mount(1, with(&["data=journal"]))), false).expect_err("unknown").to_string();
        assert!(error.contains("`data=journal`") && error.contains("noexec"), "{error}");
    }

    #[test]
    fn other_file_systems_and_groups_by_name_are_refused() {
        let ext4 = MountVolume { fs_type: "ext4".into(), ..Default::default() };
        assert!(read(Some(&mount(1, ext4)), false).expect_err("ext4").to_string().contains("`ext4`"));
        let named = MountVolume { volume_mount_group: "staff".into(), ..Default::default() };
        assert!(read(Some(&mount(1, named)), false).expect_err("staff").to_string().contains("`staff`"));
    }
}
