//! What services mean, and that every way to the rows keeps it.

mod choice;
mod compile_against_oracle;
mod fit;
mod frontends;
mod host_ports;
mod judge;
mod order;
mod outside;
mod scale;
