//! Repository tasks: what the Makefile calls.

mod tidy;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "xtask", about = "Repository tasks of Palisade")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Check what the compiler does not: edges between crates, file sizes, unsafe, paths, licences.
    Tidy,
}

fn main() -> Result<ExitCode> {
    let root = root();
    match Arguments::parse().task {
        Task::Tidy => tidy::run(&root),
    }
}

/// The checkout's root.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().map(PathBuf::from).unwrap_or_default()
}
