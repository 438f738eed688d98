//! Policy: the model, its compiler, its oracle.
//!
//! Pure: no Kubernetes types, no runtime, no BPF. Output depends only on the model, never on the order in which
//! it came to be.
#![forbid(unsafe_code)]

pub mod model;
