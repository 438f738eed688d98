//! Repository tasks: what the Makefile calls.

mod image;
mod plugin;
mod product;
mod suite;
mod tidy;
mod vm;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "xtask", about = "Repository tasks of Palisade")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the three static binaries into target/bin; with another profile than that of releases, into target/bin-PROFILE.
    Build {
        #[command(flatten)]
        profile: product::Profile,
    },
    /// Build the binaries and pack them as a container image into target/image/palisade.tar; with another profile, into palisade-PROFILE.tar.
    Image {
        #[command(flatten)]
        profile: product::Profile,
    },
    /// Run the test suites; all of them where none is named.
    Test {
        /// Names of suites.
        suites: Vec<String>,
    },
    /// Run the suites that need a kernel, on other kernels, in QEMU; on all of them where none is named.
    Vm {
        /// A kernel: 5.10, 6.1, 6.12 or newest. May be given several times.
        #[arg(long)]
        kernel: Vec<String>,
        /// Names of suites, or of programs of them: packet/attaching.
        suites: Vec<String>,
    },
    /// Build the plugin as it is installed and check what it is: static, stripped, small.
    Plugin,
    /// Write the definitions of our own Kubernetes objects, in charts/palisade/crds, as the Rust types say.
    Generate,
    /// Check what the compiler does not: edges between crates, file sizes, unsafe, paths, licences.
    Tidy,
}

fn main() -> ExitCode {
    run(Arguments::parse().task, &root()).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(task: Task, root: &Path) -> Result<ExitCode> {
    match task {
        Task::Build { profile } => product::build(root, &profile).map(|_| ExitCode::SUCCESS),
        Task::Image { profile } => image::write(root, &profile).map(|_| ExitCode::SUCCESS),
        Task::Test { suites } => suite::run(root, &suites),
        Task::Vm { kernel, suites } => vm::run(root, &kernel, &suites),
        Task::Plugin => plugin::run(root).map(|()| ExitCode::SUCCESS),
        Task::Generate => product::definitions(root),
        Task::Tidy => tidy::run(root),
    }
}

/// The checkout's root.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().map(PathBuf::from).unwrap_or_default()
}
