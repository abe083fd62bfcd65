//! Names of the pods that have the tenant, as the agent has noted them beside the tenant's directory.

use std::{collections::HashMap, fs, path::PathBuf, time::SystemTime};

use parking_lot::Mutex;
use tarbox_fs::PodNames;
use tarbox_handover::pods;
use uuid::Uuid;

/// See the module's documentation. What was read once is remembered: events of a pod may be put together after it has gone.
#[derive(Debug)]
pub(crate) struct PodFile {
    path: PathBuf,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    read: Option<SystemTime>,
    names: HashMap<Uuid, (String, String)>,
}

impl PodFile {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, known: Mutex::default() }
    }
}

impl PodNames for PodFile {
    fn name_of(&self, uid: Uuid) -> Option<(String, String)> {
        let mut known = self.known.lock();
        if let Some(name) = known.names.get(&uid) {
            return Some(name.clone());
        }
        let changed = fs::metadata(&self.path).and_then(|file| file.modified()).ok()?;
        if known.read != Some(changed) {
            known.read = Some(changed);
            let pods = pods::read(&fs::read_to_string(&self.path).unwrap_or_default());
            let named = |pod: pods::Pod| Some((pod.uid.parse().ok()?, (pod.namespace, pod.name)));
            known.names.extend(pods.into_iter().filter_map(named));
        }
        known.names.get(&uid).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_found_once_they_are_written_and_are_not_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(pods::FILE);
        let file = PodFile::new(path.clone());
        let (one, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        assert_eq!(file.name_of(one), None, "there is no file yet");
        let write = |uid: Uuid, name: &str, at| {
            fs::write(&path, format!("{uid} team {name}\n")).unwrap();
            let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(at);
            fs::File::options().write(true).open(&path).unwrap().set_modified(at).unwrap();
        };
        write(one, "agent-0", 10);
        assert_eq!(file.name_of(one), Some(("team".into(), "agent-0".into())));
        assert_eq!(file.name_of(other), None);
        write(other, "agent-1", 20);
        assert_eq!(file.name_of(other), Some(("team".into(), "agent-1".into())));
        assert_eq!(file.name_of(one), Some(("team".into(), "agent-0".into())), "it has gone from the file");
    }
}
