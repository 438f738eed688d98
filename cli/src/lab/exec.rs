//! `palisade lab exec`.

use super::flow::Party;
use super::outside::{self, Nodes};
use super::{paths, registry};
use crate::arguments::ExecArguments;
use crate::error::CliError;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use palisade_cni::link::Namespace;
use palisade_policy::model::ObjectName;
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

/// What stands before the name of one of several nodes.
const NODE_PREFIX: &str = "node:";

/// Runs a command in the network of a pod of a running lab; its exit code becomes ours.
pub fn run(arguments: &ExecArguments) -> Result<(), CliError> {
    let party = party(&arguments.target)?;
    if !nix::unistd::geteuid().is_root() {
        return Err(CliError::Environment("entering a lab needs root: sudo palisade lab exec ...".into()));
    }
    let lab = registry::find(arguments.lab.as_deref())?;
    let own = |kind: &str| PathBuf::from(format!("/proc/{}/ns/{kind}", lab.first));
    let network = match &party {
        Party::Node(name) if name == outside::NODE => match lab.nodes() {
            Nodes::One => own("net"),
            Nodes::Several => {
                let names = lab.node(Some("")).err().map(|error| error.to_string()).unwrap_or_default();
                return Err(CliError::Input(format!("node: write node:NAME; {names}")));
            }
        },
        other => lab.inside(&paths::namespace(other)),
    };
    let network = Namespace::open(&network).map_err(|_| {
        CliError::Input(format!("no {} in the lab of {}: its pods are {}", arguments.target, lab.directory.display(), pods(&lab)))
    })?;
    let open = |kind: &str| File::open(own(kind)).map_err(|error| CliError::Environment(format!("the lab ended: {error}")));
    let (processes, files) = (open("pid")?, open("mnt")?);
    let here = std::env::current_dir();
    let status = network
        .enter(|| {
            entered(&processes, &files)?;
            // The tree is the same, except for the lab's own file systems.
            if let Ok(here) = &here {
                let _ = std::env::set_current_dir(here);
            }
            let (program, rest) = arguments.command.split_first().ok_or_else(|| CliError::Input("no command after --".into()))?;
            Command::new(program).args(rest).status().map_err(|error| CliError::Input(format!("cannot run {program}: {error}")))
        })
        .map_err(|error| CliError::Failed(error.to_string()))??;
    match code(status) {
        0 => Ok(()),
        code => Err(CliError::Code(code)),
    }
}

fn party(text: &str) -> Result<Party, CliError> {
    match (text, text.split_once('/')) {
        ("node", _) => Ok(Party::Node(outside::NODE.to_owned())),
        ("outside", _) => Ok(Party::Outside),
        (node, None) if node.len() > NODE_PREFIX.len() && node.starts_with(NODE_PREFIX) => {
            Ok(Party::Node(node[NODE_PREFIX.len()..].to_owned()))
        }
        (_, Some((namespace, name))) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(Party::Pod(ObjectName::new(namespace, name)))
        }
        _ => Err(CliError::Input(format!("{text}: write namespace/pod, node (node:NAME of several) or outside"))),
    }
}

/// Joins the lab's processes and files, and gives the command a `/sys` of the network that it is in.
fn entered(processes: &File, files: &File) -> Result<(), CliError> {
    let failed =
        |what: &'static str| move |errno: nix::errno::Errno| CliError::Environment(format!("cannot enter the lab's {what}: {errno}"));
    // The thread gets a root and a working directory of its own, without which it may not change its mounts.
    unshare(CloneFlags::CLONE_FS).map_err(failed("files"))?;
    setns(processes, CloneFlags::CLONE_NEWPID).map_err(failed("processes"))?;
    setns(files, CloneFlags::CLONE_NEWNS).map_err(failed("files"))?;
    unshare(CloneFlags::CLONE_NEWNS).map_err(failed("files"))?;
    mount(Some("none"), "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).map_err(failed("files"))?;
    // Without it the command sees the interfaces of the host there, which is a matter of taste only.
    let _ = mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), None::<&str>);
    Ok(())
}

fn pods(lab: &registry::Lab) -> String {
    let names = std::fs::read_dir(lab.inside(Path::new(&paths::namespaces()))).into_iter().flatten().flatten();
    let mut names: Vec<String> = names.map(|file| file.file_name().to_string_lossy().replacen('_', "/", 1)).collect();
    names.retain(|name| name.contains('/'));
    names.sort();
    if names.is_empty() { "not there yet".into() } else { names.join(", ") }
}

/// As a shell reports it: 128 and the signal's number for a command that a signal ended.
fn code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_pod_the_node_or_outside() {
        assert_eq!(party("a/b").unwrap(), Party::Pod(ObjectName::new("a", "b")));
        assert_eq!(party("node").unwrap(), Party::Node("node".to_owned()));
        assert_eq!(party("node:left").unwrap(), Party::Node("left".to_owned()));
        for wrong in ["a", "node:", "/b", "a/", "a/b/c", "../x/y"] {
            assert!(party(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_command_that_a_signal_ended_counts_as_in_a_shell() {
        assert_eq!(code(ExitStatus::from_raw(9)), 137);
        assert_eq!(code(ExitStatus::from_raw(3 << 8)), 3);
    }
}
