//! `palisade-agent install-cni`: makes a node ready for its agent, as the chart's init container runs it.
//!
//! The order is the point: the CNI configuration comes last, since a container runtime calls the plugin as soon as it
//! sees that file.

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use palisade_runtime::DEFAULT_STATE_DIR;
use palisade_runtime::protocol::DEFAULT_RUN_DIR;
use std::fs::{File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Name of the plugin's binary; `type` in the configuration says the same.
const PLUGIN: &str = "palisade-cni";
/// Name of the configuration file: runtimes take the first by name.
const CONFIGURATION: &str = "10-palisade.conflist";

/// What to install, and where.
#[derive(Args, Clone, Debug)]
pub struct Install {
    /// Directory of CNI plugins, as this process sees it.
    #[arg(long, default_value = "/opt/cni/bin")]
    pub bin_dir: PathBuf,
    /// Directory of CNI configurations, as this process sees it.
    #[arg(long, default_value = "/etc/cni/net.d")]
    pub conf_dir: PathBuf,
    /// The plugin's binary; default: the one beside this program.
    #[arg(long)]
    pub plugin: Option<PathBuf>,
    /// Where the node's bpf file system is, or is to be mounted.
    #[arg(long, default_value = "/sys/fs/bpf")]
    pub bpf_dir: PathBuf,
    /// The agent's run directory on the node.
    #[arg(long, default_value = DEFAULT_RUN_DIR)]
    pub run_dir: PathBuf,
    /// The directory of address records on the node.
    #[arg(long, default_value = DEFAULT_STATE_DIR)]
    pub state_dir: PathBuf,
    /// How long the plugin waits for the agent, in seconds.
    #[arg(long, default_value_t = 10)]
    pub agent_timeout: u32,
}

/// Makes the node ready: bpf file system, forwarding, plugin, and last the configuration.
pub fn run(install: &Install) -> Result<()> {
    // The agent runs without CAP_SYS_ADMIN and could not try it: it would be ready on a node that can wire no pod.
    let kind = palisade_runtime::probe_attach_kind().context("this node cannot run Palisade")?;
    tracing::info!("the kernel attaches programs by {kind}");
    mount_bpf(&install.bpf_dir)?;
    palisade_runtime::enable_forwarding().context("forwarding of packets between pods and nodes")?;
    place(install)
}

/// Mounts a bpf file system unless there is one.
fn mount_bpf(at: &Path) -> Result<()> {
    let found = statfs(at).with_context(|| format!("{}: does this kernel have the bpf file system?", at.display()))?;
    if found.filesystem_type() == BPF_FS_MAGIC {
        return Ok(());
    }
    mount(Some("bpf"), at, Some("bpf"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC, Some("mode=700"))
        .with_context(|| format!("mounting a bpf file system at {}: the container must be privileged", at.display()))?;
    tracing::info!("mounted a bpf file system at {}", at.display());
    Ok(())
}

/// Puts the plugin and then its configuration in place, each in one step.
fn place(install: &Install) -> Result<()> {
    let plugin = match &install.plugin {
        Some(path) => path.clone(),
        None => std::env::current_exe().context("finding this program")?.with_file_name(PLUGIN),
    };
    let binary = std::fs::read(&plugin).with_context(|| format!("reading {}", plugin.display()))?;
    let placed = replace(&install.bin_dir.join(PLUGIN), &binary, 0o755)?;
    report(placed, &install.bin_dir, PLUGIN);

    let placed = replace(&install.conf_dir.join(CONFIGURATION), configuration(install).as_bytes(), 0o644)?;
    report(placed, &install.conf_dir, CONFIGURATION);
    for other in earlier(&install.conf_dir)? {
        tracing::warn!("{other} comes before {CONFIGURATION}: the container runtime uses that one; remove it to use Palisade");
    }
    Ok(())
}

fn report(placed: bool, directory: &Path, name: &str) {
    let what = if placed { "placed" } else { "unchanged" };
    tracing::info!("{what}: {}", directory.join(name).display());
}

/// The CNI configuration. Runtimes that know `cniVersions` take the highest they speak; older ones take `cniVersion`.
fn configuration(install: &Install) -> String {
    let configuration = serde_json::json!({
        "cniVersion": "1.0.0",
        "cniVersions": ["1.0.0", "1.1.0"],
        "name": "palisade",
        "plugins": [{
            "type": PLUGIN,
            // Host ports are the agent's: no other plugin of the list is to make them, too. Limits are refused: not asked, nobody would keep them, nor tell.
            "capabilities": { "portMappings": true, "bandwidth": true },
            "runDir": install.run_dir,
            "stateDir": install.state_dir,
            "agentTimeoutSeconds": install.agent_timeout,
        }],
    });
    format!("{configuration:#}\n")
}

/// Writes a file in one step, so that a reader finds the old content or the new one and a running program keeps its
/// file. Returns whether anything changed.
fn replace(path: &Path, content: &[u8], mode: u32) -> Result<bool> {
    let same_mode = std::fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o7777 == mode);
    if same_mode && std::fs::read(path).is_ok_and(|found| found == content) {
        return Ok(false);
    }
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { bail!("{}: not a file's path", path.display()) };
    std::fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    // A dot in front: runtimes read only names that end in .conf, .conflist or .json, and none that is half written.
    let fresh = directory.join(format!(".{}.new", name.to_string_lossy()));
    write(&fresh, content, mode).with_context(|| format!("writing {}: is the directory writable, and is there space?", fresh.display()))?;
    std::fs::rename(&fresh, path).with_context(|| format!("placing {}", path.display()))?;
    // The rename itself must survive a power cut.
    File::open(directory).and_then(|directory| directory.sync_all()).with_context(|| format!("flushing {}", directory.display()))?;
    Ok(true)
}

fn write(path: &Path, content: &[u8], mode: u32) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()
}

/// Names of other configurations that a runtime would take before ours.
fn earlier(directory: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let read = [".conf", ".conflist", ".json"].iter().any(|ending| name.ends_with(ending));
        if read && !name.starts_with('.') && name.as_str() < CONFIGURATION {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn install_into(directory: &Path) -> Install {
        let plugin = directory.join("image/palisade-cni");
        std::fs::create_dir_all(directory.join("image")).unwrap();
        std::fs::write(&plugin, b"plugin").unwrap();
        Install {
            bin_dir: directory.join("bin"),
            conf_dir: directory.join("conf"),
            plugin: Some(plugin),
            bpf_dir: directory.join("bpf"),
            run_dir: PathBuf::from("/run/other"),
            state_dir: PathBuf::from("/var/lib/other"),
            agent_timeout: 7,
        }
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn plugin_and_configuration_are_placed_and_nothing_else_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let install = install_into(directory.path());
        place(&install).unwrap();
        assert_eq!(names(&install.bin_dir), ["palisade-cni"]);
        assert_eq!(names(&install.conf_dir), ["10-palisade.conflist"]);
        let mode = std::fs::metadata(install.bin_dir.join(PLUGIN)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        let text = std::fs::read(install.conf_dir.join(CONFIGURATION)).unwrap();
        let configuration: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(configuration["plugins"][0]["type"], "palisade-cni");
        assert_eq!(configuration["plugins"][0]["runDir"], "/run/other");
        assert_eq!(configuration["plugins"][0]["stateDir"], "/var/lib/other");
        assert_eq!(configuration["plugins"][0]["agentTimeoutSeconds"], 7);
    }

    #[test]
    fn a_second_installation_changes_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let install = install_into(directory.path());
        place(&install).unwrap();
        let before = std::fs::metadata(install.bin_dir.join(PLUGIN)).unwrap();
        place(&install).unwrap();
        let after = std::fs::metadata(install.bin_dir.join(PLUGIN)).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::ino(&before), std::os::unix::fs::MetadataExt::ino(&after));
    }

    #[test]
    fn without_a_plugin_the_configuration_is_not_written() {
        let directory = tempfile::tempdir().unwrap();
        let install = Install { plugin: Some(directory.path().join("absent")), ..install_into(directory.path()) };
        let error = place(&install).unwrap_err().to_string();
        assert!(error.contains("absent"), "{error}");
        assert!(!install.conf_dir.exists());
    }

    #[test]
    fn a_configuration_that_a_runtime_takes_first_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let install = install_into(directory.path());
        std::fs::create_dir_all(&install.conf_dir).unwrap();
        for name in ["05-other.conflist", "00-note.txt", "20-later.conf"] {
            std::fs::write(install.conf_dir.join(name), b"{}").unwrap();
        }
        assert_eq!(earlier(&install.conf_dir).unwrap(), ["05-other.conflist"]);
    }
}
