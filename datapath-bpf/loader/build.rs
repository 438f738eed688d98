//! Compiles the BPF programs and hands their object to the crate as the file `PALISADE_BPF_OBJECT`.
//!
//! The programs are for another target and need `core` built for it, so a second cargo compiles them, in a target
//! directory of its own that all builds of the workspace share.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

const PACKAGE: &str = "palisade-datapath-programs";

/// An object that the crate carries.
struct Object {
    /// The binary of the package.
    binary: &'static str,
    /// The variable that tells the crate where it is.
    variable: &'static str,
}

const OBJECTS: [Object; 2] = [
    Object { binary: "palisade-tc", variable: "PALISADE_BPF_OBJECT" },
    Object { binary: "palisade-redirect", variable: "PALISADE_REDIRECT_OBJECT" },
];

fn main() {
    let manifest = path("CARGO_MANIFEST_DIR");
    for watched in [
        "build.rs",
        "../core/Cargo.toml",
        "../core/src",
        "../programs/Cargo.toml",
        "../programs/build.rs",
        "../programs/src",
        "../../Cargo.toml",
    ] {
        println!("cargo:rerun-if-changed={}", manifest.join(watched).display());
    }
    // The CNI plugin only attaches what is pinned; it carries no object and needs none of the tools.
    if env::var_os("CARGO_FEATURE_LOAD").is_none() {
        return;
    }
    for object in &OBJECTS {
        match build(&manifest, object.binary) {
            Ok(path) => println!("cargo:rustc-env={}={}", object.variable, path.display()),
            Err(reason) => {
                eprintln!("error: the BPF programs were not built: {reason}");
                std::process::exit(1);
            }
        }
    }
}

fn build(manifest: &Path, binary: &str) -> Result<PathBuf, String> {
    let workspace = manifest.join("../..").canonicalize().map_err(|error| format!("no workspace above {}: {error}", manifest.display()))?;
    let out = path("OUT_DIR");
    let target = if variable("CARGO_CFG_TARGET_ENDIAN") == "big" { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };
    let directory = target_directory(&out).join("bpf");

    let mut cargo = Toolchain::with_sources()?.cargo();
    cargo
        .current_dir(&workspace)
        .args(["build", "--package", PACKAGE, "--bin", binary, "--profile", "bpf", "--target", target, "-Z", "build-std=core"])
        .arg("--target-dir")
        .arg(&directory)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("PATH", path_with_linker()?)
        .env("CARGO_ENCODED_RUSTFLAGS", flags())
        // What the outer cargo was told is not meant for this target; clippy as a wrapper would compile nothing.
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("CARGO_BUILD_TARGET")
        .env_remove("CARGO_TARGET_DIR");
    let status = cargo.status().map_err(|error| format!("{cargo:?} did not start: {error}"))?;
    if !status.success() {
        return Err(format!("{cargo:?} ended with {status}"));
    }

    let built = directory.join(target).join("bpf").join(binary);
    let object = out.join(format!("{binary}.o"));
    if !strip(&built, &object) {
        std::fs::copy(&built, &object).map_err(|error| format!("{} was not copied: {error}", built.display()))?;
    }
    Ok(object)
}

/// Flags of the compiler: type information for the maps and the functions, which bpf-linker makes of the debug information.
fn flags() -> String {
    let arch = variable("CARGO_CFG_TARGET_ARCH");
    ["-C", "debuginfo=2", "-C", "link-arg=--btf", "--cfg", &format!("bpf_target_arch=\"{arch}\"")].join("\x1f")
}

/// Drops the debug information, which is most of the object; what the kernel reads stays. Without the tool the object is only larger.
fn strip(from: &Path, to: &Path) -> bool {
    let names = ["llvm-objcopy", "llvm-objcopy-22", "llvm-objcopy-21", "llvm-objcopy-20", "llvm-objcopy-19"];
    names.iter().any(|name| {
        let status = Command::new(name).arg("--strip-debug").arg(from).arg(to).status();
        status.is_ok_and(|status| status.success())
    })
}

/// A compiler that brings the sources of `core`.
enum Toolchain {
    /// The cargo of this build, with this compiler.
    Compiler(PathBuf),
    /// A toolchain of rustup.
    Rustup(&'static str),
}

impl Toolchain {
    fn with_sources() -> Result<Self, String> {
        for compiler in [path("RUSTC"), PathBuf::from("/usr/bin/rustc")] {
            if has_sources(Command::new(&compiler)) {
                return Ok(Self::Compiler(compiler));
            }
        }
        let mut nightly = Command::new("rustup");
        nightly.args(["run", "nightly", "rustc"]);
        if has_sources(nightly) {
            return Ok(Self::Rustup("nightly"));
        }
        Err("no compiler here has the sources of Rust's core library. Debian: apt-get install rustc-web rust-web-src; \
             elsewhere: rustup toolchain install nightly --component rust-src"
            .into())
    }

    fn cargo(&self) -> Command {
        match self {
            Self::Compiler(compiler) => {
                let mut cargo = Command::new(path("CARGO"));
                cargo.env("RUSTC", compiler);
                cargo
            }
            Self::Rustup(toolchain) => {
                let mut cargo = Command::new("rustup");
                cargo.args(["run", toolchain, "cargo"]).env_remove("RUSTC").env_remove("CARGO");
                cargo
            }
        }
    }
}

fn has_sources(mut compiler: Command) -> bool {
    let Ok(output) = compiler.args(["--print", "sysroot"]).env_remove("RUSTUP_TOOLCHAIN").output() else { return false };
    let sysroot = String::from_utf8_lossy(&output.stdout);
    output.status.success() && Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/src/lib.rs").exists()
}

/// The search path, with the directory where cargo installs programs behind it: bpf-linker is there.
fn path_with_linker() -> Result<std::ffi::OsString, String> {
    let mut directories: Vec<PathBuf> = env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default();
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    directories.extend(home.map(|home| home.join("bin")));
    if !directories.iter().any(|directory| directory.join("bpf-linker").exists()) {
        return Err("bpf-linker is not installed: LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker \
                    --no-default-features --features llvm-22 (needs llvm-22-dev, libpolly-22-dev, zlib1g-dev, libzstd-dev)"
            .into());
    }
    env::join_paths(directories).map_err(|error| format!("PATH cannot be extended: {error}"))
}

/// The target directory of the build at hand: cargo marks it.
fn target_directory(out: &Path) -> PathBuf {
    out.ancestors().find(|directory| directory.join("CACHEDIR.TAG").exists()).unwrap_or(out).into()
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name} for build scripts")))
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts"))
}
