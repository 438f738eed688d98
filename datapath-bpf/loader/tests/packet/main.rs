//! Packets through the loaded programs, with BPF_PROG_TEST_RUN: what becomes of each, the one counter that it moves,
//! the event that tells of it, and its bytes afterwards.

#[path = "../stage/mod.rs"]
mod stage;

mod atomic;
mod audit;
mod behind_one_address;
mod error;
mod flood;
mod flood_outside;
mod forward;
mod fragment;
mod generated;
mod hairpin;
mod headers;
mod host;
mod link;
mod outer;
mod outside;
mod outside_entry;
mod overlay;
mod policy;
mod rows;
mod sctp;
mod seen;
mod service;
mod service_entry;
mod shape;
mod state;
mod timeout;
mod upgrade;
mod world;
