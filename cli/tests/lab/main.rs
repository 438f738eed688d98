//! `palisade` as a user runs it: the real binaries, real namespaces, real packets.

mod input;
mod lifecycle;
mod nodes;
mod runner;
mod truth;
mod watch;
