//! Why the agent ends, or could not start.

use palisade_protocol::SOCKET_NAME;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Why the agent ends, or could not start. What can pass (no bpffs yet, no API server) is no such error: the agent
/// says it in its status and tries again.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The run directory cannot be made or written.
    #[error("cannot use the run directory {path}: {error}; it must be writable by this user (--run-dir names another)")]
    RunDir {
        /// The path that was refused.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// Another agent holds the run directory.
    #[error("another palisade-agent runs on {0}; stop it first, or give this one another --run-dir and --pin-dir")]
    Running(PathBuf),
    /// The node socket cannot be made.
    #[error("cannot listen on {SOCKET_NAME} in {path}: {error}")]
    Socket {
        /// The run directory.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The metrics address cannot be listened on.
    #[error("cannot serve metrics on {address}: {error}; choose a free address (--metrics)")]
    Metrics {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        error: std::io::Error,
    },
    /// The configuration makes no sense.
    #[error("{0}")]
    Config(String),
    /// A part of the agent that should run for ever ended.
    #[error("the agent's {part} ended: {reason}; the agent cannot go on without it")]
    Ended {
        /// Which part.
        part: &'static str,
        /// Why.
        reason: String,
    },
}
