//! What ControllerPublishVolume tells the node that a volume may be mounted on. Pure.

use std::collections::HashMap;

use super::request::RequestError;

const NODE: &str = "publishedNode";
const READ_ONLY: &str = "publishedReadOnly";
/// Where a node finds it.
const CONTEXT: &str = "publish_context";

/// That a volume may be mounted on a node. Other keys belong to later releases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The node.
    pub node: String,
    /// For reading only.
    pub read_only: bool,
}

impl Attachment {
    /// As a node is told.
    #[must_use]
    pub fn context(&self) -> HashMap<String, String> {
        [(NODE, self.node.clone()), (READ_ONLY, self.read_only.to_string())]
            .map(|(key, value)| (key.to_owned(), value))
            .into()
    }

    /// As a node reads it; `None` where nobody attaches volumes.
    ///
    /// # Errors
    /// What no controller of ours says.
    pub fn read(context: &HashMap<String, String>) -> Result<Option<Self>, RequestError> {
        let Some(node) = context.get(NODE) else { return Ok(None) };
        let read_only = match context.get(READ_ONLY).map(String::as_str) {
            None | Some("false") => false,
            Some("true") => true,
            Some(value) => {
                return Err(RequestError::value(format!("{CONTEXT}.{READ_ONLY}"), value, "true or false"));
            }
        };
        Ok(Some(Self { node: node.clone(), read_only }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_controller_says_is_what_the_node_reads() {
        for read_only in [false, true] {
            let said = Attachment { node: "n".into(), read_only };
            assert_eq!(Attachment::read(&said.context()), Ok(Some(said)));
        }
        assert_eq!(Attachment::read(&HashMap::new()), Ok(None));
        let bad = [(NODE, "n"), (READ_ONLY, "yes")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        let error = Attachment::read(&bad.into()).expect_err("yes").to_string();
        assert!(error.contains("publishedReadOnly` = `yes`") && error.contains("true or false"), "{error}");
    }
}
