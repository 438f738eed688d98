//! The agent as its asynchronous parts see it.

use crate::kernel::KernelHandle;
use crate::source::kubernetes::Reader;
use crate::state::State;
use crate::tell::Listed;
use std::sync::Arc;
use tokio::sync::OnceCell;

/// The agent as its asynchronous parts see it.
#[derive(Debug)]
pub struct Agent {
    /// What all parts share.
    pub state: Arc<State>,
    /// The way to the maps.
    pub kernel: KernelHandle,
    /// Reads single objects afresh from the API server; empty with a directory, and until the client is made.
    pub reader: OnceCell<Reader>,
    /// What the agents of other nodes report.
    pub listed: Listed,
}
