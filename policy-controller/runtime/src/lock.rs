//! One agent per run directory.

use crate::error::AgentError;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Held by the one agent that uses a run directory; ends with the process, however that ends.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

impl RunLock {
    /// Makes the run directory where it is missing, and takes it.
    ///
    /// # Errors
    /// [`AgentError::Running`] when another agent has it, [`AgentError::RunDir`] when it cannot be used.
    pub fn take(run_dir: &Path) -> Result<Self, AgentError> {
        let failed = |error| AgentError::RunDir { path: run_dir.to_owned(), error };
        DirBuilder::new().recursive(true).mode(0o700).create(run_dir).map_err(failed)?;
        let path = run_dir.join("agent.lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(AgentError::Running(run_dir.to_owned())),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_agent_has_a_run_directory_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let run = directory.path().join("run");
        let lock = RunLock::take(&run).unwrap();
        assert!(matches!(RunLock::take(&run), Err(AgentError::Running(_))));
        drop(lock);
        RunLock::take(&run).unwrap();
    }
}
