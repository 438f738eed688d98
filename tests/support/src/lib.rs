//! What tests share: hosts and pods of their own in namespaces, a check that nothing is left behind, packets, programs
//! that other users run.

mod leak;
mod namespace;
pub mod packet;
mod program;
mod requirement;
mod wiring;

pub use leak::Snapshot;
pub use namespace::{Host, private_host};
pub use program::for_every_user;
pub use requirement::{requires_root, skipped};
pub use wiring::container_id;
