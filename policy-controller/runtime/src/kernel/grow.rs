//! Maps that are full are replaced by larger ones.

use super::{Kernel, KernelError, chain};
use crate::problem::Part;
use palisade_loader::{Datapath, LoaderError};

impl Kernel {
    /// Makes room in maps, each for so many rows, before the first of them is written.
    ///
    /// # Errors
    /// A map could not be replaced: all is as before. Where that is not so, the datapath is closed until [`mend`](Self::mend) has opened it anew.
    pub(super) fn grow(&mut self, needs: &[(&'static str, usize)]) -> Result<(), KernelError> {
        if needs.is_empty() {
            return Ok(());
        }
        match self.datapath()?.grow(needs) {
            Ok(grown) => {
                grown.iter().for_each(|grown| self.state.metrics.map_grown(grown.map));
                if !grown.is_empty() {
                    self.mend_node_services();
                }
                Ok(())
            }
            Err(error) => {
                if matches!(error, LoaderError::Torn { .. }) {
                    // Rows that were written by this handle might not be those that packets meet.
                    self.datapath = None;
                    self.torn = true;
                    self.state.problems.set(Part::Datapath, chain(&error));
                }
                Err(error.into())
            }
        }
    }

    /// Writes rows that no plan has counted, as often as it takes: a map that is full is replaced by a larger one.
    ///
    /// # Errors
    /// A map is full and may not grow, or cannot; any other error of a write.
    pub(super) fn write_growing(&mut self, write: impl Fn(&mut Datapath) -> Result<(), LoaderError>) -> Result<(), KernelError> {
        loop {
            let datapath = self.datapath()?;
            let (map, rows) = match write(datapath) {
                Err(LoaderError::TableFull { map, max_entries, .. }) => (map, max_entries as usize + 1),
                written => return Ok(written?),
            };
            if let Some(room) = datapath.room().iter().find(|room| room.map == map && rows > room.limit as usize) {
                return Err(KernelError::TooLarge { map, rows, limit: room.limit });
            }
            self.grow(&[(map, rows)])?;
        }
    }

    /// Opens the datapath anew where maps were replaced only in part.
    ///
    /// # Errors
    /// It cannot be opened; what is pinned goes on enforcing.
    pub(super) fn mend(&mut self) -> Result<(), KernelError> {
        if self.torn {
            // The ring that it gives is the one that is read already.
            drop(self.open()?);
            self.torn = false;
            self.state.problems.clear(Part::Datapath);
        }
        Ok(())
    }
}
