//! Packets through the loaded programs, with BPF_PROG_TEST_RUN: what becomes of each, the one counter that it moves,
//! the event that tells of it, and its bytes afterwards.

#[path = "../stage/mod.rs"]
mod stage;

mod atomic;
mod audit;
mod error;
mod flood;
mod fragment;
mod generated;
mod host;
mod link;
mod policy;
mod service;
mod service_entry;
mod shape;
mod state;
mod world;
