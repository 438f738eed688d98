//! The agent as a process.

mod address;
mod atomic;
mod host_port;
mod masquerade;
mod mtu;
mod node;
mod node_service;
mod outside;
mod overlay;
mod ranges;
mod raw;
mod restart;
mod server;
mod service;
mod service_flip;
mod timeout;
mod trouble;
