//! The CNI plugin of Palisade, as a library: what the binary `palisade-cni` does, and the network code that others use.
//!
//! - [`link`]: network namespaces and netlink, the only place for either in the project
//! - [`spec`]: what the CNI specification says of input and output; pure
//! - [`ipam`]: which attachment has which addresses
//! - [`command`]: one file per verb

pub mod command;
pub mod ipam;
pub mod link;
mod lock;
pub mod spec;
