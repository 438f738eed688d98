//! Which attachment has which addresses: a file that no crash can tear, behind a lock.
//!
//! Addresses come from the node's pod ranges, one per family. The first address of a range is left to the node, and so
//! are, for IPv4, the network's and the broadcast address. An address that was given back rests before it is given
//! out again, so that whoever still has the old holder in mind does not meet the new one; one that was never used need not.

mod range;
mod records;
mod store;
#[cfg(test)]
mod tests;

pub use store::{IpamError, Store};

use palisade_protocol::Attachment;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long an address rests after it was given back.
pub const COOL_DOWN: Duration = Duration::from_secs(30);

/// Who has addresses: an attachment to one network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Owner {
    /// Name of the network.
    pub network: String,
    /// The attachment.
    #[serde(flatten)]
    pub attachment: Attachment,
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of container {} in network {}", self.attachment.interface, self.attachment.container_id, self.network)
    }
}
