//! The name of a tenant, from the claim that it is made for: a DNS label. Pure.

use std::collections::BTreeMap;

/// A DNS label has at most so many bytes.
const MOST: usize = 63;
/// Hexadecimal digits of a hash that tell names apart.
const DIGITS: usize = 8;
/// The claim's name, as the provisioner gives it.
const CLAIM: &str = "csi.storage.k8s.io/pvc/name";
/// Its namespace.
const NAMESPACE: &str = "csi.storage.k8s.io/pvc/namespace";
/// What stands in for the namespace, by the volume's parameters.
const OWN_NAMESPACE: &str = "namespace";

/// Names to be tried, in this order: `{namespace}-{claim}` where that is a label as it stands, then with a hash of both (`a-b` + `c`
/// and `a` + `b-c` are two tenants), then with one of the request as well (a claim made again while the old tenant is kept).
pub(crate) fn candidates(parameters: &BTreeMap<String, String>, request: &str) -> Vec<String> {
    let namespace = namespace(parameters);
    let Some(claim) = parameters.get(CLAIM) else {
        let plain = namespace.map_or(request.to_owned(), |namespace| format!("{namespace}-{request}"));
        return of(&plain, &[&hash(&[&plain])]);
    };
    let namespace = namespace.unwrap_or_default();
    let plain = if namespace.is_empty() { claim.clone() } else { format!("{namespace}-{claim}") };
    of(&plain, &[&hash(&[namespace, claim]), &hash(&[namespace, claim, request])])
}

/// The namespace that a volume belongs to: the claim's, unless its parameters say another.
pub(crate) fn namespace(parameters: &BTreeMap<String, String>) -> Option<&str> {
    parameters.get(OWN_NAMESPACE).or_else(|| parameters.get(NAMESPACE)).map(String::as_str)
}

fn of(plain: &str, hashes: &[&str]) -> Vec<String> {
    let label = label(plain);
    let mut names = Vec::new();
    // What was changed to become a label could be what another name becomes: only the hash tells them apart.
    if label == plain && label.len() <= MOST {
        names.push(label.clone());
    }
    let kept = label.get(..MOST - DIGITS - 1).unwrap_or(&label).trim_end_matches('-');
    names.extend(hashes.iter().map(|hash| format!("{kept}-{hash}")));
    names
}

/// Lower case, and `-` for what no label has.
fn label(text: &str) -> String {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let label: String =
        text.to_lowercase().chars().map(|c| if allowed(c) { c } else { '-' }).collect::<String>();
    let label = label.trim_matches('-');
    if label.is_empty() { "volume".to_owned() } else { label.to_owned() }
}

/// Each part counts by itself, wherever it ends.
fn hash(parts: &[&str]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    hasher.finalize().to_hex()[..DIGITS].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(namespace: &str, claim: &str) -> Vec<String> {
        let pairs = [(NAMESPACE, namespace), (CLAIM, claim)];
        let parameters = pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        candidates(&parameters, "pvc-1")
    }

    fn is_label(name: &str) -> bool {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        (1..=63).contains(&name.len())
            && name.bytes().all(inner)
            && !name.starts_with('-')
            && !name.ends_with('-')
    }

    #[test]
    fn a_plain_claim_gives_its_name() {
        assert_eq!(names("default", "data")[0], "default-data");
        let parameters = [(OWN_NAMESPACE, "team"), (NAMESPACE, "default"), (CLAIM, "data")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(candidates(&parameters.into(), "pvc-1")[0], "team-data");
        assert_eq!(candidates(&BTreeMap::new(), "pvc-1")[0], "pvc-1");
    }

    #[test]
    fn every_name_is_a_label_whatever_the_claim_is_called() {
        let long = "x".repeat(63);
        for claim in ["data", "my.data", "Data", "-", "ü", &long, "a.b.c-"] {
            let found = names("default", claim);
            assert!(found.iter().all(|name| is_label(name)), "{found:?}");
            let again: std::collections::HashSet<_> = found.iter().collect();
            assert_eq!(again.len(), found.len(), "each try is another name");
        }
        let found = candidates(&BTreeMap::new(), &"Ünïcode ".repeat(16));
        assert!(found.iter().all(|name| is_label(name)), "{found:?}");
    }

    #[test]
    fn two_claims_never_share_a_last_name_and_a_changed_one_gets_a_hash_at_once() {
        let (one, two) = (names("a-b", "c"), names("a", "b-c"));
        assert_eq!(one[0], two[0]);
        assert_ne!(one[1], two[1]);
        assert_ne!(names("default", "my.data")[0], names("default", "my-data")[0]);
        assert_ne!(names("default", &"x".repeat(60))[0], names("default", &"x".repeat(61))[0]);
    }
}
