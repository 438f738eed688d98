//! Policy: the model, its compiler, its oracle.
//!
//! Pure: no Kubernetes types, no runtime, no BPF. Output depends only on the model, never on the order in which
//! it came to be.
#![forbid(unsafe_code)]

pub mod compile;
mod entries;
pub mod explain;
pub mod generate;
mod layer;
pub mod model;
mod narrower;
pub mod numbers;
pub mod oracle;
mod order;
pub mod plan;
pub mod ports;
pub mod reason;
pub mod rules;
mod universe;

pub use compile::{Compiled, compile};
pub use explain::{Answer, End, ExplainError, Question, SideAnswer, evaluate};
pub use numbers::{Numbers, Used};
pub use plan::{Plan, Step, plan};
pub use reason::Reason;
