//! What a request asked for, as it is kept beside the volume: what the next call of the same name is compared with.

use std::{
    collections::{BTreeMap, HashMap},
    str::FromStr,
};

use serde::{Deserialize, Serialize};
use tarbox_rpc::csi::{
    native,
    parameters::{self, DATABASE_URL},
};
use tarbox_store::{Compression, Tenant};
use tarbox_types::ByteSize;
use uuid::Uuid;

/// What a volume begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Source {
    /// What a snapshot shows.
    Snapshot(Uuid),
    /// What a volume shows when it is asked for.
    Volume(Uuid),
}

/// See the module. Holds no secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Description {
    /// Parameters as they were given, those of the provisioner as well.
    #[serde(default)]
    pub(crate) parameters: BTreeMap<String, String>,
    /// Those that may change later, as they stand; they come before `parameters`.
    #[serde(default)]
    pub(crate) mutable: BTreeMap<String, String>,
    /// What it begins with; nothing = empty.
    #[serde(default)]
    pub(crate) source: Option<Source>,
    /// Of a volume in another database than the one that this stands in: its URL.
    #[serde(default)]
    pub(crate) elsewhere: Option<String>,
}

impl Description {
    /// As it was written. What a later release has added is not known here; what is not JSON says nothing.
    pub(crate) fn read(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_default()
    }

    /// As it is kept.
    pub(crate) fn text(&self) -> String {
        serde_json::to_string(self).expect("maps of text can be written as JSON")
    }

    /// Where another description of the same name asks for something else.
    pub(crate) fn difference(&self, other: &Self) -> Option<String> {
        let differs = difference("parameters", &self.parameters, &other.parameters)
            .or_else(|| difference("mutable_parameters", &self.mutable, &other.mutable));
        differs.or_else(|| (self.source != other.source).then(|| "`volume_content_source`".to_owned()))
    }

    /// What is to be changed, and nothing else.
    pub(crate) fn changed_to(mutable: BTreeMap<String, String>) -> Self {
        Self { mutable, ..Self::default() }
    }

    /// The value of a parameter, as it stands.
    pub(crate) fn given(&self, key: &str) -> Option<&str> {
        self.mutable.get(key).or_else(|| self.parameters.get(key)).map(String::as_str)
    }

    /// A value that was checked by its key.
    fn checked<T: FromStr>(&self, key: &str) -> Option<T> {
        self.given(key).and_then(|text| text.parse().ok())
    }

    /// Bytes per block, where it is said.
    pub(crate) fn block_size(&self) -> Option<u64> {
        self.checked::<ByteSize>("blockSize").map(ByteSize::bytes)
    }

    /// How blocks are stored, where it is said.
    pub(crate) fn compression(&self) -> Option<Compression> {
        match self.given("compression") {
            Some("zstd") => Some(Compression::Zstd),
            Some(_) => Some(Compression::None),
            None => None,
        }
    }

    /// Most inodes, where it is said.
    pub(crate) fn inodes(&self) -> Option<u64> {
        self.checked("inodes")
    }

    /// Size of the largest file, where it is said; 0 = unlimited.
    pub(crate) fn file_bytes(&self) -> Option<u64> {
        self.checked::<ByteSize>("maxFileSize").map(ByteSize::bytes)
    }

    /// What a node is told when the volume is staged. Never a password. What has changed since, it finds in the database.
    pub(crate) fn context(&self, tenant: &Tenant) -> HashMap<String, String> {
        let is_for_nodes = |key: &str| {
            // Templates of native mounts stand for what the provisioner says of the claim.
            if parameters::is_foreign(key) { self.parameters.contains_key(native::KEY) } else { true }
        };
        let own = self.parameters.iter().filter(|(key, _)| is_for_nodes(key));
        let mut context: HashMap<_, _> = own.map(|(key, value)| (key.clone(), value.clone())).collect();
        context.insert("tenant_id".to_owned(), tenant.id.to_string());
        context.insert("tenant_name".to_owned(), tenant.name.clone());
        context
    }

    /// The database that the parameters name.
    pub(crate) fn database_url(&self) -> Option<&str> {
        self.parameters.get(DATABASE_URL).map(String::as_str)
    }
}

/// The first key of which two maps say something else, but for what the provisioner adds.
fn difference(
    field: &str,
    ours: &BTreeMap<String, String>,
    theirs: &BTreeMap<String, String>,
) -> Option<String> {
    let mut keys = ours.keys().chain(theirs.keys()).filter(|key| !parameters::is_foreign(key));
    let key = keys.find(|key| ours.get(*key) != theirs.get(*key))?;
    let shown = |map: &BTreeMap<String, String>| map.get(key).cloned().unwrap_or("nothing".into());
    Some(format!("`{field}.{key}` was `{}`, is `{}`", shown(ours), shown(theirs)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pairs: &[(&str, &str)]) -> Description {
        let parameters = pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
        Description { parameters, ..Description::default() }
    }

    #[test]
    fn what_is_kept_reads_back_and_garbage_says_nothing() {
        let source = Some(Source::Snapshot(Uuid::from_u128(7)));
        let description =
            Description { source, elsewhere: Some("sqlite:///x".into()), ..with(&[("cacheSize", "1Gi")]) };
        assert_eq!(Description::read(&description.text()), description);
        assert_eq!(Description::read("{\"later\":1}"), Description::default());
        assert_eq!(Description::read("?"), Description::default());
    }

    #[test]
    fn what_was_changed_comes_first() {
        let mutable = with(&[("inodes", "7"), ("compression", "zstd")]).parameters;
        let description = Description { mutable, ..with(&[("inodes", "5"), ("maxFileSize", "1Ki")]) };
        assert_eq!((description.inodes(), description.file_bytes()), (Some(7), Some(1024)));
        assert_eq!((description.compression(), description.block_size()), (Some(Compression::Zstd), None));
    }

    #[test]
    fn a_difference_names_the_key_and_what_the_provisioner_adds_is_none() {
        let one = with(&[("cacheSize", "1Gi"), ("csi.storage.k8s.io/pv/name", "pvc-1")]);
        assert_eq!(one.difference(&with(&[("cacheSize", "1Gi")])), None);
        let text = one.difference(&with(&[("cacheSize", "2Gi")])).expect("differs");
        assert!(text.contains("`parameters.cacheSize` was `1Gi`, is `2Gi`"), "{text}");
        let changed = Description { mutable: with(&[("maxLag", "1s")]).parameters, ..one.clone() };
        let text = one.difference(&changed).expect("differs");
        assert!(text.contains("`mutable_parameters.maxLag` was `nothing`, is `1s`"), "{text}");
        let other = Description { source: Some(Source::Volume(Uuid::nil())), ..one.clone() };
        assert!(one.difference(&other).expect("differs").contains("volume_content_source"));
    }
}
