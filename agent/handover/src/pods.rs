//! The pods that a tenant was published for: a file in its mounter's state directory, a line each, `uid namespace name`.
//!
//! The agent writes it before a pod gets the volume; the mounter reads it when it tells who has done what. What a later release
//! adds stands behind these three words.

/// The file's name.
pub const FILE: &str = "pods";
/// Pods that came before so many others are forgotten.
const KEPT: usize = 256;

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its uid.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Pod {
    /// `None` where a word could not be told from its neighbours: what Kubernetes names has no blanks.
    #[must_use]
    pub fn new(uid: &str, namespace: &str, name: &str) -> Option<Self> {
        let is_word = |text: &&str| !text.is_empty() && !text.contains(char::is_whitespace);
        let pod = || Self { uid: uid.into(), namespace: namespace.into(), name: name.into() };
        [uid, namespace, name].iter().all(is_word).then(pod)
    }
}

/// The pods of a file, the last one last.
#[must_use]
pub fn read(text: &str) -> Vec<Pod> {
    let pod = |line: &str| {
        let mut words = line.split_whitespace();
        Pod::new(words.next()?, words.next()?, words.next()?)
    };
    text.lines().filter_map(pod).collect()
}

/// The file with one pod more; `None` where it has it already.
#[must_use]
pub fn with(text: &str, pod: &Pod) -> Option<String> {
    let mut pods = read(text);
    if pods.contains(pod) {
        return None;
    }
    pods.retain(|other| other.uid != pod.uid);
    pods.push(pod.clone());
    let surplus = pods.len().saturating_sub(KEPT);
    let line = |pod: &Pod| format!("{} {} {}\n", pod.uid, pod.namespace, pod.name);
    Some(pods[surplus..].iter().map(line).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, name: &str) -> Pod {
        Pod::new(uid, "team", name).expect("words")
    }

    #[test]
    fn pods_are_added_once_and_the_oldest_are_forgotten() {
        let mut text = String::new();
        for n in 0..KEPT + 10 {
            text = with(&text, &pod(&format!("uid-{n}"), "agent")).expect("it is new");
        }
        assert_eq!(read(&text).len(), KEPT);
        assert_eq!(read(&text)[0], pod("uid-10", "agent"));
        assert_eq!(with(&text, &pod("uid-20", "agent")), None);
    }

    #[test]
    fn what_a_later_release_adds_and_what_is_no_line_is_passed_over() {
        assert_eq!(read("u team agent-0 since=7\n\nhalf a-line\n"), [pod("u", "agent-0")]);
        for bad in [Pod::new("", "n", "p"), Pod::new("u", "n m", "p"), Pod::new("u", "n", "p\nq")] {
            assert_eq!(bad, None);
        }
    }
}
