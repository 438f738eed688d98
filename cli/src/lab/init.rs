//! The first process inside a lab: makes it a place of its own, then runs it.

use super::outside;
use super::paths::{self, Places};
use super::{LabOptions, session};
use crate::error::CliError;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;
use std::io::Read;
use std::path::Path;

/// Runs the lab that `options` describe, in the namespaces that `palisade lab` made for this process.
pub fn run(options: &str) -> Result<(), CliError> {
    if std::process::id() != 1 {
        return Err(CliError::Input("lab-init is started by `palisade lab`, in namespaces of its own; start that".into()));
    }
    let options: LabOptions = serde_json::from_str(options).map_err(|error| CliError::Input(format!("lab-init: {error}")))?;
    // With the thread that started us: nothing of a lab outlives its command, not even after SIGKILL.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(|errno| CliError::Environment(format!("cannot tie the lab to its command: {errno}")))?;
    mounts()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| CliError::Environment(format!("cannot start the lab: {error}")))?;
    let result = runtime.block_on(session::run(&options, told_to_stop()));
    runtime.shutdown_background();
    result
}

/// Ends when the command that started the lab closes its line, or is gone.
async fn told_to_stop() {
    let (tell, told) = tokio::sync::oneshot::channel();
    let watching = std::thread::Builder::new().name("line".into()).spawn(move || {
        let mut byte = [0];
        while matches!(std::io::stdin().read(&mut byte), Ok(1..)) {}
        let _ = tell.send(());
    });
    // Without the thread the line is closed at once; the death signal still ends the lab with its command.
    if watching.is_err() || told.await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// File systems that nobody else sees, and that end with the lab.
fn mounts() -> Result<(), CliError> {
    let attempt = |what: &str, source: &str, target: &Path, kind: &str, flags: MsFlags, data: Option<&str>| {
        mount(Some(source), target, Some(kind).filter(|kind| !kind.is_empty()), flags, data).map_err(|errno| {
            CliError::Environment(match (errno, kind) {
                (Errno::ENODEV, "bpf") => "this kernel has no BPF file system (CONFIG_BPF_SYSCALL): Palisade cannot run here".into(),
                (Errno::EPERM, _) => {
                    format!("no permission to mount {what}: run it as root with CAP_SYS_ADMIN (a container needs --privileged)")
                }
                _ => format!("cannot mount {what}: {errno}"),
            })
        })
    };
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    attempt("the lab's own tree", "none", Path::new("/"), "", private, None)?;
    let strict = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    attempt("the lab's file system", "palisade-lab", Path::new(paths::ROOT), "tmpfs", strict, Some("mode=0700"))?;
    attempt("the lab's /proc", "proc", Path::new("/proc"), "proc", strict, None)?;
    let Places { run, state, .. } = Places::of(outside::NODE);
    for directory in [run, state, paths::bpffs(), paths::namespaces()] {
        std::fs::create_dir(&directory).map_err(|error| CliError::Environment(format!("cannot make {}: {error}", directory.display())))?;
    }
    attempt("the lab's BPF file system", "bpf", &paths::bpffs(), "bpf", strict, Some("mode=0700"))
}
