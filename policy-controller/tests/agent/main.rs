//! The agent as a process.

mod node;
mod restart;
mod server;
mod trouble;
