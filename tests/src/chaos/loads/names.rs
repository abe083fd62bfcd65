//! Names, links, attributes and small contents against a model.

use std::path::Path;

use anyhow::Result;

use super::{Told, Work};
use crate::churn::Churn;

/// See the module.
pub(super) struct Names(Churn);

impl Names {
    pub(super) fn new(dir: &Path, seed: u64) -> Result<Self> {
        Churn::new(dir, seed).map(Self)
    }
}

impl Work for Names {
    fn step(&mut self, _told: &Told) -> Result<u64> {
        let before = self.0.calls;
        self.0.once()?;
        Ok(self.0.calls - before)
    }

    fn close(&mut self) {}

    fn verify(&mut self) -> Result<()> {
        self.0.verify_all()
    }
}
