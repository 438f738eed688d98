//! What tests share: hosts and pods of their own in namespaces, a check that nothing is left behind, packets.

mod leak;
mod namespace;
pub mod packet;
mod requirement;
mod wiring;

pub use leak::Snapshot;
pub use namespace::{Host, private_host};
pub use requirement::{requires_root, skipped};
pub use wiring::container_id;
