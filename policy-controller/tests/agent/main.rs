//! The agent as a process.

mod atomic;
mod mtu;
mod node;
mod node_service;
mod ranges;
mod restart;
mod server;
mod service;
mod service_flip;
mod trouble;
