//! The agent as a process.

mod atomic;
mod node;
mod restart;
mod server;
mod service;
mod trouble;
