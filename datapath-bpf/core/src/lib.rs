//! The decision of the datapath, written once: compiled into the BPF programs and into `cargo test`.
//!
//! This crate knows nothing of loading, attaching or Kubernetes. It has no `unsafe`, no allocation and no
//! dependency on aya.
#![no_std]
#![forbid(unsafe_code)]

pub mod abi;
pub mod epoch;
pub mod outside;
pub mod overlay;
pub mod packet;
pub mod service;
pub mod verdict;
