//! The real binary and the link code against the real kernel, each test on a host of its own.

mod attachment;
mod binary;
mod chain;
mod cnitool;
mod delegate;
mod failure;
mod input;
mod libcni;
mod link;
mod node;
mod reconcile;
mod runtime;
