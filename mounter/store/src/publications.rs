//! Where volumes may be mounted, as whoever attaches them has said, and which nodes there are.

use async_trait::async_trait;
use tarbox_types::{AccessMode, TenantId};

use crate::error::{Result, StoreError};

/// A volume that may be mounted on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// The volume.
    pub tenant: TenantId,
    /// The node's name, as CSI knows it.
    pub node: String,
    /// Who else may use it at the same time.
    pub mode: AccessMode,
    /// This node only reads.
    pub read_only: bool,
}

impl Publication {
    fn writes(&self) -> bool {
        !self.read_only && !self.mode.only_reads()
    }

    /// Whether both may be, on two nodes.
    fn goes_with(&self, other: &Self) -> bool {
        let is_single_writer = |one: &Self| one.mode == AccessMode::MultiNodeSingleWriter;
        self.mode.is_for_many_nodes()
            && other.mode.is_for_many_nodes()
            && !(self.writes() && other.writes() && (is_single_writer(self) || is_single_writer(other)))
    }

    /// Whether this one is to be noted beside those of the same volume; `false`: it is there. Pure.
    pub(crate) fn is_new_among(&self, there: &[Self]) -> Result<bool> {
        if let Some(same) = there.iter().find(|other| other.node == self.node) {
            return if same == self { Ok(false) } else { Err(StoreError::Published(same.clone())) };
        }
        match there.iter().find(|other| !self.goes_with(other)) {
            Some(other) => Err(StoreError::PublishedElsewhere(other.clone())),
            None => Ok(true),
        }
    }
}

/// What one database knows of them.
#[async_trait]
pub trait Publications: Send + Sync {
    /// Notes that a volume may be mounted on a node. Not an error where the same is noted already.
    ///
    /// # Errors
    /// [`StoreError::NoTenant`], [`StoreError::Deleted`]; [`StoreError::PublishedElsewhere`] where the access modes forbid it;
    /// [`StoreError::Published`] where the same node has it otherwise.
    async fn publish(&self, new: &Publication) -> Result<()>;

    /// Takes that back, of one node or of all. Not an error where nothing is noted.
    async fn unpublish(&self, tenant: TenantId, node: Option<&str>) -> Result<()>;

    /// Publications of the volumes whose ids lie between these two, both included, in the order of their ids and nodes.
    async fn publications(&self, from: TenantId, upto: TenantId) -> Result<Vec<Publication>>;

    /// Says that a node is there. One of which nothing was heard for 30 days is forgotten.
    async fn note_node(&self, node: &str) -> Result<()>;

    /// Whether there is such a node, as far as is known: where none has said that it is there, any may be.
    async fn may_be_node(&self, node: &str) -> Result<bool>;
}

/// A node of which nothing was heard for so long is forgotten.
pub(crate) const FORGOTTEN_AFTER_DAYS: i32 = 30;

#[cfg(test)]
mod tests {
    use super::*;

    fn on(node: &str, mode: AccessMode, read_only: bool) -> Publication {
        Publication { tenant: TenantId(uuid::Uuid::nil()), node: node.to_owned(), mode, read_only }
    }

    #[test]
    fn only_modes_of_many_nodes_go_together_and_a_single_writer_is_alone_in_writing() {
        for one in AccessMode::ALL {
            for other in AccessMode::ALL {
                let there = [on("a", one, false)];
                let new = on("b", other, false).is_new_among(&there);
                let many = one.is_for_many_nodes() && other.is_for_many_nodes();
                let is_single = |mode| mode == AccessMode::MultiNodeSingleWriter;
                let two_writers = !one.only_reads() && !other.only_reads();
                let expected = many && !(two_writers && (is_single(one) || is_single(other)));
                assert_eq!(new.is_ok(), expected, "{one:?} {other:?}");
                if let Err(error) = new {
                    assert!(error.to_string().contains("node `a`"), "{error}");
                    assert!(matches!(error, StoreError::PublishedElsewhere(_)));
                }
            }
        }
        let writer = [on("a", AccessMode::MultiNodeSingleWriter, false)];
        assert!(on("b", AccessMode::MultiNodeSingleWriter, true).is_new_among(&writer).is_ok());
    }

    #[test]
    fn the_same_again_is_nothing_new_and_anything_else_on_the_same_node_is_refused() {
        let there = [on("a", AccessMode::SingleNodeWriter, false)];
        assert!(!there[0].is_new_among(&there).expect("the same"));
        for other in
            [on("a", AccessMode::SingleNodeWriter, true), on("a", AccessMode::SingleNodeSingleWriter, false)]
        {
            let error = other.is_new_among(&there).expect_err("otherwise");
            assert!(matches!(error, StoreError::Published(_)), "{error}");
        }
    }
}
