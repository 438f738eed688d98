//! The CNI plugin of Palisade, as a library: what the binary `palisade-cni` does, and the network code that others use.
//!
//! - [`link`]: network namespaces, links, addresses and routes, for the whole project
//! - [`spec`]: what the CNI specification says of input and output; pure
//! - [`ipam`]: which attachment has which addresses
//! - [`command`]: one file per verb

pub mod command;
pub mod ipam;
pub mod link;
mod lock;
pub mod spec;
