//! The CNI plugin of Palisade, as a library: what the binary `palisade-cni` does, and the network code that others use.

pub mod link;
