//! What the CNI specification says about input and output, versions 0.3.1 to 1.1.0. Pure: knows no kernel, no files
//! and no agent.

mod config;
mod demand;
mod environment;
mod error;
mod result;
mod version;

pub use config::{NetworkConfig, ValidAttachment};
pub use demand::Demand;
pub use environment::{Command, Environment};
pub use error::{Code, Error};
pub use result::{CniResult, Interface, Ip, Route};
pub use version::{SpecVersion, version_output};
