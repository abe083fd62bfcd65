//! What is written into a command. Pure.

use serde::Deserialize;
use tarbox_checkpoints::CheckpointError;

use crate::failure::Failure;

/// The longest command: a checkpoint's name and a hundred tags.
const LONGEST: usize = 16 << 10;

/// A checkpoint to be made.
#[derive(Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(super) struct New {
    pub(super) name: String,
    #[serde(default)]
    pub(super) tags: Vec<String>,
}

/// A checkpoint that is meant.
#[derive(Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(super) struct Named {
    /// Name, tag or id.
    pub(super) name: String,
}

fn bad(value: &str, allowed: &'static str) -> Failure {
    CheckpointError::Name { what: "value", value: value.to_owned(), allowed }.into()
}

fn text(data: &[u8]) -> Result<&str, Failure> {
    if data.len() > LONGEST {
        return Err(bad("(long)", "at most 16 KiB"));
    }
    let text = std::str::from_utf8(data).map_err(|_| bad("(bytes)", "UTF-8"))?;
    let text = text.trim_ascii();
    if text.is_empty() { Err(bad(text, "a name or a JSON object")) } else { Ok(text) }
}

impl New {
    /// A name, or an object with `name` and `tags`.
    ///
    /// # Errors
    /// What is wrong with it; whether the names are free is not known here.
    pub(super) fn parse(data: &[u8]) -> Result<Self, Failure> {
        let text = text(data)?;
        let new = match text.starts_with('{') {
            true => serde_json::from_str(text)
                .map_err(|_| bad(text, "{\"name\": \"…\", \"tags\": [\"…\"]}; `tags` may be left out"))?,
            false => Self { name: text.to_owned(), tags: Vec::new() },
        };
        tarbox_checkpoints::check_name("name", &new.name)?;
        for (at, tag) in new.tags.iter().enumerate() {
            tarbox_checkpoints::check_name("tag", tag)?;
            if *tag == new.name || new.tags[..at].contains(tag) {
                return Err(bad(tag, "tags that differ from the name and from each other"));
            }
        }
        Ok(new)
    }
}

impl Named {
    /// A name, or an object with `name`.
    ///
    /// # Errors
    /// What is wrong with it; whether there is such a checkpoint is not known here.
    pub(super) fn parse(data: &[u8]) -> Result<Self, Failure> {
        let text = text(data)?;
        match text.starts_with('{') {
            true => serde_json::from_str(text).map_err(|_| bad(text, "{\"name\": \"…\"}")),
            false if text.contains(['/', '\n']) => Err(bad(text, "one name, tag or id of a checkpoint")),
            false => Ok(Self { name: text.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use tarbox_types::ErrorKind;

    use super::*;

    #[test]
    fn a_name_and_an_object_say_the_same() {
        let new = |name: &str, tags: &[&str]| New {
            name: name.to_owned(),
            tags: tags.iter().map(ToString::to_string).collect(),
        };
        assert_eq!(New::parse(b"before\n").expect("a name"), new("before", &[]));
        assert_eq!(New::parse(b"{\"name\":\"before\"}").expect("an object"), new("before", &[]));
        let tagged = New::parse(b" {\"name\": \"x\", \"tags\": [\"a\", \"b\"]}\n").expect("an object");
        assert_eq!(tagged, new("x", &["a", "b"]));
        assert_eq!(Named::parse(b"x\n").expect("a name"), Named { name: "x".into() });
        assert_eq!(Named::parse(b"{\"name\":\"x\"}").expect("an object"), Named { name: "x".into() });
    }

    #[test]
    fn what_is_wrong_is_an_invalid_argument() {
        let long = vec![b'x'; LONGEST + 1];
        let bad: [&[u8]; 13] = [
            b"",
            b"\n",
            b"a b",
            b"-x",
            b"head",
            b"\xff",
            &long,
            b"{",
            b"{\"nam\":\"x\"}",
            b"{\"name\":7}",
            b"{\"name\":\"x\",\"tags\":[\"a/b\"]}",
            b"{\"name\":\"x\",\"tags\":[\"x\"]}",
            b"{\"name\":\"x\",\"tags\":[\"a\",\"a\"]}",
        ];
        for data in bad {
            let failure = New::parse(data).expect_err("refused");
            assert_eq!(failure.kind(), ErrorKind::InvalidArgument, "{data:?}");
        }
        for data in [&b""[..], b"{}", b"{\"name\":\"x\",\"tags\":[]}", b"a\nb", b"a/b"] {
            let failure = Named::parse(data).expect_err("refused");
            assert_eq!(failure.kind(), ErrorKind::InvalidArgument, "{data:?}");
        }
    }
}
