//! Volumes that a pod's own specification asks for, and that live as long as the pod. Pure.
//!
//! Their attributes are written by whoever may make pods: only what harms nobody else is read, and anything else is refused.

use std::collections::{BTreeMap, HashMap};

use tarbox_types::ByteSize;

use super::{
    parameters::{self, DATABASE_URL, Parameters},
    request::RequestError,
};

/// What the kubelet says of such a volume.
const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";
/// How many bytes it may hold.
const SIZE: &str = "size";
/// All that a pod may say.
const ALLOWED: [&str; 4] = ["auditLevel", "cacheSize", SIZE, "syncMode"];
/// The least a volume can be asked to hold.
const LEAST: ByteSize = ByteSize::mib(1);

/// What a pod asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inline {
    /// Capacity; `None` = not said.
    pub bytes: Option<u64>,
    /// What the mounter is told.
    pub parameters: Parameters,
    /// What the kubelet says of the pod, by its keys.
    pub pod: BTreeMap<String, String>,
}

/// Whether a volume's context speaks of a volume of this kind.
#[must_use]
pub fn is_inline(context: &HashMap<String, String>) -> bool {
    context.get(EPHEMERAL).is_some_and(|value| value == "true")
}

/// Reads what a pod asks for.
///
/// # Errors
/// Every key that a pod may not use, and every value that is not allowed: the first of them, by key.
pub fn read(
    context: &HashMap<String, String>,
    secrets: &HashMap<String, String>,
) -> Result<Inline, RequestError> {
    // Where the data lies is the driver's to say: a pod could have another tenant's database mounted.
    if secrets.contains_key(DATABASE_URL) {
        return Err(RequestError::UnknownKey {
            field: "secrets",
            key: DATABASE_URL.to_owned(),
            allowed: "those of the pod's own use: a volume of a pod lies in the driver's database".to_owned(),
        });
    }
    let sorted: BTreeMap<_, _> = context.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    let (pod, asked): (BTreeMap<_, _>, BTreeMap<_, _>) =
        sorted.into_iter().partition(|(key, _)| parameters::is_foreign(key));
    if let Some(key) = asked.keys().find(|key| !ALLOWED.contains(&key.as_str())) {
        return Err(RequestError::UnknownKey {
            field: parameters::CONTEXT,
            key: key.clone(),
            allowed: format!("{} (of a volume that a pod asks for itself)", ALLOWED.join(", ")),
        });
    }
    let bytes = asked.get(SIZE).map(|text| size(text)).transpose()?;
    let options: HashMap<_, _> = asked.into_iter().filter(|(key, _)| key != SIZE).collect();
    Ok(Inline { bytes, parameters: parameters::read(&options, &HashMap::new())?, pod })
}

fn size(text: &str) -> Result<u64, RequestError> {
    let size = text.parse::<ByteSize>().ok().filter(|size| *size >= LEAST);
    let bad = || RequestError::value("volume_context.size", text, format!("a size of {LEAST} or more"));
    size.map(ByteSize::bytes).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn a_pod_says_how_much_and_how_and_no_more() {
        let context = map(&[
            (EPHEMERAL, "true"),
            ("csi.storage.k8s.io/pod.name", "p"),
            ("size", "2Gi"),
            ("cacheSize", "64Mi"),
            ("syncMode", "writethrough"),
            ("auditLevel", "full"),
        ]);
        assert!(is_inline(&context));
        let read = read(&context, &map(&[("other", "x")])).expect("allowed");
        assert_eq!((read.bytes, read.parameters.cache_bytes), (Some(2 << 30), Some(64 << 20)));
        assert_eq!(read.pod["csi.storage.k8s.io/pod.name"], "p");
        for other in [map(&[]), map(&[(EPHEMERAL, "false")])] {
            assert!(!is_inline(&other));
        }
    }

    #[test]
    fn what_would_reach_beyond_the_pod_is_refused_by_name() {
        for key in
            ["nativeMounts", "databaseURL", "namespace", "tenant_id", "journalSize", "onDatabaseOutage"]
        {
            let text = read(&map(&[(key, "x")]), &map(&[])).expect_err(key).to_string();
            assert!(
                text.contains(&format!("`{key}`")) && text.contains("auditLevel, cacheSize, size"),
                "{text}"
            );
        }
        let text =
            read(&map(&[]), &map(&[(DATABASE_URL, "sqlite:///etc")])).expect_err("a database").to_string();
        assert!(text.contains("secrets") && text.contains(DATABASE_URL) && !text.contains("etc"), "{text}");
        for (key, value) in [("size", "much"), ("size", "1Ki"), ("cacheSize", "1"), ("syncMode", "never")] {
            let text = read(&map(&[(key, value)]), &map(&[])).expect_err(key).to_string();
            assert!(text.contains(&format!("`volume_context.{key}` = `{value}`")), "{text}");
        }
    }
}
