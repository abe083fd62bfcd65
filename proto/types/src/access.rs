//! Who may use a volume at the same time.

/// How a volume may be used, with CSI's number. Source: CSI "VolumeCapability.AccessMode".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i16)]
pub enum AccessMode {
    /// One node, for reading and writing (ReadWriteOnce).
    SingleNodeWriter = 1,
    /// One node, for reading.
    SingleNodeReaderOnly = 2,
    /// Many nodes, for reading (ReadOnlyMany).
    MultiNodeReaderOnly = 3,
    /// Many nodes, of which one writes.
    MultiNodeSingleWriter = 4,
    /// Many nodes, for reading and writing (ReadWriteMany).
    MultiNodeMultiWriter = 5,
    /// One place on one node (ReadWriteOncePod).
    SingleNodeSingleWriter = 6,
    /// Many places on one node.
    SingleNodeMultiWriter = 7,
}

impl AccessMode {
    /// All there are, by their numbers.
    pub const ALL: [Self; 7] = [
        Self::SingleNodeWriter,
        Self::SingleNodeReaderOnly,
        Self::MultiNodeReaderOnly,
        Self::MultiNodeSingleWriter,
        Self::MultiNodeMultiWriter,
        Self::SingleNodeSingleWriter,
        Self::SingleNodeMultiWriter,
    ];

    /// The mode of CSI's number, 1 to 7.
    #[must_use]
    pub fn of_number(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| i32::from(mode.number()) == number)
    }

    /// CSI's number.
    #[must_use]
    pub fn number(self) -> i16 {
        self as i16
    }

    /// As CSI spells it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SingleNodeWriter => "SINGLE_NODE_WRITER",
            Self::SingleNodeReaderOnly => "SINGLE_NODE_READER_ONLY",
            Self::MultiNodeReaderOnly => "MULTI_NODE_READER_ONLY",
            Self::MultiNodeSingleWriter => "MULTI_NODE_SINGLE_WRITER",
            Self::MultiNodeMultiWriter => "MULTI_NODE_MULTI_WRITER",
            Self::SingleNodeSingleWriter => "SINGLE_NODE_SINGLE_WRITER",
            Self::SingleNodeMultiWriter => "SINGLE_NODE_MULTI_WRITER",
        }
    }

    /// Whether it is for reading only.
    #[must_use]
    pub fn only_reads(self) -> bool {
        matches!(self, Self::SingleNodeReaderOnly | Self::MultiNodeReaderOnly)
    }

    /// Whether several nodes may use the volume at the same time.
    #[must_use]
    pub fn is_for_many_nodes(self) -> bool {
        matches!(self, Self::MultiNodeReaderOnly | Self::MultiNodeSingleWriter | Self::MultiNodeMultiWriter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_csi() {
        for (number, mode) in (1..).zip(AccessMode::ALL) {
            assert_eq!((AccessMode::of_number(number), i32::from(mode.number())), (Some(mode), number));
        }
        assert_eq!(AccessMode::of_number(3), Some(AccessMode::MultiNodeReaderOnly));
        assert_eq!(AccessMode::of_number(6), Some(AccessMode::SingleNodeSingleWriter));
        for none in [-1, 0, 8] {
            assert_eq!(AccessMode::of_number(none), None, "{none}");
        }
    }
}
