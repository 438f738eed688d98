//! The real binary and the link code against the real kernel, each test on a host of its own.

mod attachment;
mod binary;
mod failure;
mod input;
mod link;
mod node;
