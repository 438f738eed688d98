//! Services: the model, its compiler and its oracle.
//!
//! Pure: no Kubernetes types, no runtime, no BPF. Which backends a frontend has depends only on the model; which numbers they
//! carry, on what the kernel holds already.
#![forbid(unsafe_code)]

mod choice;
mod claims;
pub mod compile;
mod compiler;
mod fit;
pub mod frontend;
pub mod generate;
pub mod leads;
mod maglev;
pub mod model;
pub mod numbers;
pub mod oracle;
pub mod plan;
pub mod problem;
mod views;

pub use compile::{Compiled, compile};
pub use fit::Limits;
pub use frontend::Frontend;
pub use leads::Leads;
pub use numbers::{Number, Numbers};
pub use plan::{Plan, Planner, Step, plan};
pub use problem::{Problem, Trouble};
