//! Selector sets and the numbers they are interned to.
//!
//! A selector is anything that a policy can name. The signature of an address is the set of selectors that match
//! it. An identity is an interned signature: a number local to the node. This crate knows no policy and no kernel.
#![forbid(unsafe_code)]

mod interner;
mod labels;
mod protocol;
mod selector;

pub use interner::Interner;
pub use labels::{LabelSelector, Labels, Operator, Requirement};
pub use protocol::Protocol;
pub use selector::{NamespaceMatch, NodeMatch, Selector, ServiceAccount, Signature};
