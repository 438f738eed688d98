//! `palisade lab`: pods from manifests in network namespaces of their own, the real datapath, real packets.
//!
//! The command starts itself again as the first process of a new PID namespace, with a network and a mount
//! namespace of its own. All that a lab makes lives in these three, or in network namespaces that are pinned in the second: when its first
//! process ends, for whatever reason, the kernel removes everything.

mod cni;
mod control;
mod exec;
mod expect;
mod flow;
mod init;
mod listener;
mod manifests;
mod node;
pub mod outside;
mod packet;
pub mod paths;
mod probe;
mod progress;
mod questions;
mod record;
pub mod registry;
mod service;
mod session;
mod several;
mod socket;
mod topology;
mod truth_table;
mod watch;
mod witness;
mod world;

use crate::arguments::{LabArguments, LabCommand, LabRun, NodeCommand, Output, RoutingMode};
use crate::error::CliError;
use cni::Cni;
use control::Order;
use expect::Expectations;
use nix::sched::{CloneFlags, unshare};
use registry::Lab;
use serde::{Deserialize, Serialize};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

pub use init::run as init;

/// How long the lab's first process may take to end by itself.
const FAREWELL: Duration = Duration::from_secs(2);

/// What the first process inside the lab is told.
#[derive(Debug, Serialize, Deserialize)]
struct LabOptions {
    /// The directory of manifests, absolute.
    directory: PathBuf,
    /// The same as the user wrote it, which is how messages name its files.
    named: PathBuf,
    expect: Option<PathBuf>,
    mode: RoutingMode,
    output: Output,
    watch: bool,
    keep: bool,
    cni: PathBuf,
}

/// Runs a lab, or a command in one that runs.
pub fn run(arguments: LabArguments) -> Result<(), CliError> {
    match arguments.command {
        Some(LabCommand::Exec(arguments)) => exec::run(&arguments),
        Some(LabCommand::Node { command }) => order(command),
        None => start(arguments.run),
    }
}

/// Gives a running lab an order about one of its nodes.
fn order(command: NodeCommand) -> Result<(), CliError> {
    let (lab, order) = match command {
        NodeCommand::Stop(arguments) => (arguments.lab, Order::Stop(arguments.name)),
        NodeCommand::Start(arguments) => (arguments.lab, Order::Start(arguments.name)),
    };
    if !nix::unistd::geteuid().is_root() {
        return Err(CliError::Environment("a lab takes orders from root alone: sudo palisade lab node ...".into()));
    }
    control::give(&registry::find(lab.as_deref())?, &order)
}

fn start(arguments: LabRun) -> Result<(), CliError> {
    let options = checked(arguments)?;
    if !nix::unistd::geteuid().is_root() {
        return Err(CliError::Environment(
            "a lab makes network namespaces and loads BPF programs: run it as root (sudo palisade lab ...)".into(),
        ));
    }
    registry::prepare()?;
    // Sweeps what earlier labs left that were killed.
    registry::running();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::Environment(format!("cannot watch for signals: {error}")))?;
    runtime.block_on(supervise(options))
}

/// Refuses what cannot work before anything is made; none of it needs root.
fn checked(arguments: LabRun) -> Result<LabOptions, CliError> {
    let named = arguments.directory.unwrap_or_default();
    let directory = std::fs::canonicalize(&named).map_err(|error| CliError::Input(format!("cannot read {}: {error}", named.display())))?;
    manifests::read(&named, arguments.expect.as_deref(), None)?;
    if let Some(file) = &arguments.expect {
        Expectations::read(file)?;
    }
    let cni = Cni::find(arguments.cni.as_deref()).map_err(|error| CliError::Environment(error.to_string()))?;
    Ok(LabOptions {
        directory,
        named,
        expect: arguments.expect,
        mode: arguments.mode,
        output: arguments.output,
        watch: arguments.watch,
        keep: arguments.keep,
        cni: cni.binary().to_owned(),
    })
}

/// Starts the first process of the lab and waits for its end, or for the user's.
async fn supervise(options: LabOptions) -> Result<(), CliError> {
    let mut stop = Box::pin(signalled()?);
    let First { pid: first, line, mut ended } = first_process(&options).await?;
    // A lab that cannot be entered is one that nobody finds; it ends with this command all the same.
    let entry = registry::enter(&Lab { pid: nix::unistd::getpid().as_raw(), first, directory: options.directory })?;
    let status = tokio::select! {
        status = &mut ended => status,
        () = &mut stop => {
            // The end of the line tells it to stop.
            drop(line);
            match tokio::time::timeout(FAREWELL, &mut ended).await {
                Ok(status) => status,
                Err(_) => {
                    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(first), nix::sys::signal::Signal::SIGKILL);
                    ended.await
                }
            }
        }
    };
    drop(entry);
    outcome(status.unwrap_or_else(|_| Err(std::io::ErrorKind::Other.into())))
}

/// Listens for the signals that ask for an end, from now on.
fn signalled() -> Result<impl Future<Output = ()>, CliError> {
    let listen = |kind| signal(kind).map_err(|error| CliError::Environment(format!("cannot watch for signals: {error}")));
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hangup = listen(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}

fn outcome(status: std::io::Result<ExitStatus>) -> Result<(), CliError> {
    let status = status.map_err(|error| CliError::Failed(format!("the lab's first process cannot be waited for: {error}")))?;
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => Err(CliError::Code(u8::try_from(code).unwrap_or(u8::MAX))),
        (None, signal) => Err(CliError::Failed(format!(
            "the lab's first process was ended by signal {}; everything it made is gone",
            signal.unwrap_or_default()
        ))),
    }
}

/// The first process of a lab.
struct First {
    pid: i32,
    /// It stops when this is closed, by us or by our end.
    line: ChildStdin,
    ended: oneshot::Receiver<std::io::Result<ExitStatus>>,
}

/// Starts this executable again as the first process of new namespaces.
async fn first_process(options: &LabOptions) -> Result<First, CliError> {
    let options = serde_json::to_string(options).map_err(|error| CliError::Failed(format!("cannot pass the options on: {error}")))?;
    let (started, start) = oneshot::channel();
    let (tell_end, ended) = oneshot::channel();
    // A thread of its own: its namespaces for children change, and the child dies with the thread that started it.
    std::thread::Builder::new()
        .name("lab".into())
        .spawn(move || {
            let spawned = spawn(&options);
            match spawned {
                Err(error) => drop(started.send(Err(error))),
                Ok((mut child, line)) => {
                    let pid = i32::try_from(child.id()).unwrap_or_default();
                    drop(started.send(Ok((pid, line))));
                    let _ = tell_end.send(child.wait());
                }
            }
        })
        .map_err(|error| CliError::Environment(format!("cannot start a thread: {error}")))?;
    let (pid, line) = start.await.map_err(|_| CliError::Failed("the thread of the lab ended early".into()))??;
    Ok(First { pid, line, ended })
}

fn spawn(options: &str) -> Result<(Child, ChildStdin), CliError> {
    unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).map_err(|errno| {
        CliError::Environment(match errno {
            nix::errno::Errno::EPERM => {
                "no permission to make namespaces: run it as root with CAP_SYS_ADMIN (a container needs --privileged)".into()
            }
            nix::errno::Errno::EINVAL => "this kernel lacks PID, mount or network namespaces (CONFIG_PID_NS, CONFIG_NET_NS)".into(),
            nix::errno::Errno::ENOSPC => "no more namespaces are allowed here: see /proc/sys/user/max_*_namespaces".into(),
            other => format!("cannot make namespaces: {other}"),
        })
    })?;
    let mut child = Command::new("/proc/self/exe")
        .arg0("palisade")
        .args(["lab-init", options])
        .stdin(Stdio::piped())
        // Ctrl-C is for us; we tell it.
        .process_group(0)
        .spawn()
        .map_err(|error| CliError::Environment(format!("cannot start the lab's first process: {error}")))?;
    match child.stdin.take() {
        Some(line) => Ok((child, line)),
        None => Err(CliError::Failed("the lab's first process has no line to us".into())),
    }
}
