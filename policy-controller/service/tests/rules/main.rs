//! What services mean, and that every way to the rows keeps it.

mod choice;
mod compile_against_oracle;
mod frontends;
mod judge;
mod order;
mod scale;
