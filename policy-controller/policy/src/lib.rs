//! Policy: the model, its compiler, its oracle.
//!
//! Pure: no Kubernetes types, no runtime, no BPF. Output depends only on the model, never on the order in which
//! it came to be.
#![forbid(unsafe_code)]

/// What the compiler does here, and what it would do with a deliberate fault. Only `tests/faults` builds the sources with the
/// faults in them, to show that the comparison with the oracle catches each.
macro_rules! faulty {
    ($sound:expr, $fault:ident => $faulty:expr) => {
        $sound
    };
}

mod classes;
pub mod compile;
mod compiler;
pub mod consider;
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
mod rows;
pub mod rules;
pub mod selected;
pub mod shared;
mod signatures;
mod universe;

pub use compile::{Compiled, compile};
pub use consider::{Considered, Fate};
pub use explain::{Answer, End, ExplainError, Question, Settled, SideAnswer, Unjudged, evaluate, foretell, is_link};
pub use numbers::{Numbers, Used};
pub use plan::{Plan, Planner, Step, plan};
pub use reason::Reason;
