//! Building the product: the three static binaries, together in one folder.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The binaries of the product.
pub const BINARIES: &[&str] = &["palisade", "palisade-agent", "palisade-cni"];

/// Names the profile of cargo that the product is built with; the tests set it.
pub const PROFILE: &str = "PALISADE_PROFILE";

/// How the product is built.
#[derive(clap::Args)]
pub struct Profile {
    /// The profile of cargo: `dev` is that of the tests, which is compiled sooner and checks more.
    #[arg(id = "profile", long = "profile", env = PROFILE, default_value = "release")]
    name: String,
}

impl Profile {
    /// What is built so is told apart by this, at the end of its name: what is released has none.
    pub fn ending(&self) -> String {
        if self.name == "release" { String::new() } else { format!("-{}", self.name) }
    }
}

/// Builds the binaries and returns the folder that holds them, `target/bin` where they are those that are released.
pub fn build(root: &Path, profile: &Profile) -> Result<PathBuf> {
    let bin = root.join(format!("target/bin{}", profile.ending()));
    if !bin.join(BINARIES[0]).exists() {
        eprintln!("building Palisade: several minutes the first time, seconds later");
    }
    std::fs::create_dir_all(&bin)?;
    let mut placed = 0;
    // The plugin by itself: built beside the agent, it would be given the agent's part of the loader.
    for packages in [&BINARIES[..2], &BINARIES[2..]] {
        for executable in executables(root, &profile.name, packages)? {
            let Some(name) = executable.file_name().filter(|name| packages.iter().any(|package| name == package)) else { continue };
            place(&executable, &bin.join(name))?;
            placed += 1;
        }
    }
    if placed != BINARIES.len() {
        bail!("cargo reported {placed} of {} executables", BINARIES.len());
    }
    Ok(bin)
}

/// Builds packages; the programs that they have.
pub fn executables(root: &Path, profile: &str, packages: &[&str]) -> Result<Vec<PathBuf>> {
    // JSON messages name where each executable landed, whatever the target and its folder are.
    let output = builder()
        .args(["build", "--profile", profile, "--locked", "--message-format", "json-render-diagnostics"])
        .args(packages.iter().flat_map(|name| ["--package", name]))
        .current_dir(root)
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("starting cargo")?;
    if !output.status.success() {
        bail!("the build failed; what the compiler says stands above");
    }
    let messages = String::from_utf8(output.stdout)?;
    let messages = messages.lines().map(serde_json::from_str).collect::<Result<Vec<serde_json::Value>, _>>()?;
    Ok(messages.iter().filter_map(|message| message["executable"].as_str().map(PathBuf::from)).collect())
}

/// Writes the definitions of our own Kubernetes objects: the test that compares them does it when it is told to.
pub fn definitions(root: &Path) -> Result<ExitCode> {
    let status = builder()
        .args(["test", "--locked", "--package", "palisade-k8s", "--test", "rules", "definition::"])
        .env("PALISADE_GENERATE", "1")
        .current_dir(root)
        .status()
        .context("starting cargo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Puts a link to the executable in place in one step, so that a running program keeps the file it was started from.
fn place(executable: &Path, at: &Path) -> Result<()> {
    let fresh = at.with_extension("new");
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    std::fs::hard_link(executable, &fresh).or_else(|_| std::fs::copy(executable, &fresh).map(|_| ()))?;
    std::fs::rename(&fresh, at).with_context(|| format!("placing {}", at.display()))?;
    // Renaming one link of a file over another link of the same file does nothing: then the fresh one stays.
    if fresh.exists() {
        std::fs::remove_file(&fresh)?;
    }
    Ok(())
}

/// That cargo, for builds. It is not told of this package, as tasks are: crates whose build scripts look at such variables (ring) would be built again,
/// with all that depends on them, whenever who builds is not a task.
pub fn builder() -> Command {
    let mut command = Command::new(cargo());
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|of_package| name.starts_with(of_package))) {
            command.env_remove(name);
        }
    }
    command
}

/// The cargo that runs this task.
pub fn cargo() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}
