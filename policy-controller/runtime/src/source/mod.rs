//! Where the objects come from. Both sources feed one index.

pub mod directory;
pub mod kubernetes;

mod access;
mod fault;
mod order;
