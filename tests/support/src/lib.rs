//! What tests share: hosts and pods of their own in namespaces, a check that nothing is left behind, packets, programs
//! that other users run, plugins that others wrote.

pub mod debian;
mod leak;
mod namespace;
pub mod packet;
mod port;
mod program;
mod prompt;
mod requirement;
mod wiring;

pub use leak::Snapshot;
pub use namespace::{Host, private_host};
pub use port::bound;
pub use program::for_every_user;
pub use prompt::at_once;
pub use requirement::{requires_root, skipped};
pub use wiring::{CniCall, container_id};
