use crate::leak::Snapshot;
use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use palisade_cni::link::{Namespace, Netlink};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

/// A node of a test's own: network and mount namespace, bpffs, run and state directory. See [`private_host`].
#[derive(Debug)]
pub struct Host {
    directory: PathBuf,
}

impl Host {
    /// The directory below which all files of this host are; a tmpfs that ends with it.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The run directory, where the agent's socket belongs.
    pub fn run_dir(&self) -> PathBuf {
        self.directory.join("run")
    }

    /// The state directory of the CNI plugin.
    pub fn state_dir(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// A bpffs of this host's own.
    pub fn bpffs(&self) -> PathBuf {
        self.directory.join("bpf")
    }

    /// Where [`Host::create_pod`] pins a namespace.
    pub fn pod_path(&self, name: &str) -> PathBuf {
        self.directory.join("netns").join(name)
    }

    /// Makes the network namespace of a pod, as a container runtime does, with `lo` up.
    pub fn create_pod(&self, name: &str) -> Result<Namespace> {
        let namespace = Namespace::create_at(&self.pod_path(name))?;
        Netlink::open_in(&namespace)?.set_up(LOOPBACK)?;
        Ok(namespace)
    }

    /// Removes the namespace of a pod, and with it all that is in it.
    pub fn remove_pod(&self, name: &str) -> Result<()> {
        if !Namespace::unpin(&self.pod_path(name))? {
            bail!("there is no pod {name}");
        }
        Ok(())
    }

    /// What there is on this host, for a comparison.
    pub fn snapshot(&self) -> Result<Snapshot> {
        Snapshot::take(&self.directory)
    }

    fn set_up(directory: &Path) -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).context("unshare the mount and network namespace")?;
        // What is mounted below must not spread to the machine.
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).context("make / private")?;
        mount(Some("palisade-test"), directory, Some("tmpfs"), MsFlags::empty(), Some("size=64m,mode=755")).context("mount a tmpfs")?;
        for name in ["run", "state", "bpf", "netns"] {
            std::fs::create_dir(directory.join(name))?;
        }
        mount(Some("bpf"), &directory.join("bpf"), Some("bpf"), MsFlags::empty(), None::<&str>).context("mount a bpffs")?;
        Netlink::open()?.set_up(LOOPBACK)?;
        Ok(Self { directory: directory.to_owned() })
    }
}

/// `lo` is the first interface of every namespace.
const LOOPBACK: u32 = 1;

/// Runs a test on a host of its own, in a thread that is in its namespaces; so are the threads and the processes that
/// it starts. Nothing of it outlives the test, even one that is killed.
///
/// When the test is done, the host is compared with what it was before: links, addresses, routes, neighbours, pins,
/// mounts, files. The test fails when something is left.
///
/// Without root the test is skipped, visibly (see [`requires_root`](crate::requires_root)).
pub fn private_host(test: impl FnOnce(&Host) + Send) {
    if !crate::requires_root() {
        return;
    }
    let directory = tempfile::Builder::new().prefix("palisade-test-").tempdir().expect("a temporary directory");
    let name = std::thread::current().name().unwrap_or("host").to_owned();
    let outcome = std::thread::scope(|scope| {
        let run = || {
            let host = Host::set_up(directory.path()).expect("a private host");
            let before = host.snapshot().expect("a snapshot before");
            // A failing test explains more than what it left behind.
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| test(&host))) {
                resume_unwind(panic);
            }
            let after = host.snapshot().expect("a snapshot after");
            assert!(before == after, "the test left something behind or took something away:\n{}", before.difference(&after));
        };
        std::thread::Builder::new().name(name).spawn_scoped(scope, run).expect("a thread").join()
    });
    if let Err(panic) = outcome {
        resume_unwind(panic);
    }
}
