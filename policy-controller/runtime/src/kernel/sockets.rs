//! Services for the node's own processes, by programs at their sockets.

use super::{Kernel, KernelError, chain};
use crate::state::NodeServices;
use palisade_datapath_core::abi::backend_flag;
use palisade_loader::{Cgroup, LoaderError};
use palisade_service::Compiled;
use std::collections::BTreeSet;
use std::path::Path;

/// Where file systems are mounted.
const MOUNTS: &str = "/proc/self/mounts";

impl Kernel {
    /// Attaches the programs of sockets, or takes them away, as the configuration says. That it cannot be done keeps nobody from being
    /// ready: what pods send does not need them.
    pub(super) fn serve_node(&mut self) {
        let result = match self.state.config.serves_node() {
            true => self.attach_to_sockets().map(|()| NodeServices::Served),
            false => self.detach_from_sockets().map(|()| NodeServices::Off),
        };
        let now = result.unwrap_or_else(|error| NodeServices::Failed(chain(&error)));
        if now != self.node_services {
            match &now {
                NodeServices::Served => tracing::info!("services are served to the node's own processes"),
                NodeServices::Off => {}
                NodeServices::Failed(reason) => tracing::warn!(reason, "services are not served to the node's own processes"),
            }
            self.node_services = now;
        }
    }

    /// Tries again where it failed, what was missing may be there now; and where programs were lost since, as one that could not be replaced
    /// when maps grew. True: it was tried.
    pub(super) fn mend_node_services(&mut self) -> bool {
        let Some(datapath) = &self.datapath else { return false };
        let lacking = match &self.node_services {
            NodeServices::Off => false,
            NodeServices::Failed(_) => true,
            NodeServices::Served => datapath.serves_sockets().map_or_else(
                |error| {
                    tracing::warn!(error = chain(&error), "it is not known whether the node's own processes are served");
                    true
                },
                |all| !all,
            ),
        };
        if lacking {
            self.serve_node();
        }
        lacking
    }

    /// Ends what the node's processes have connected for datagrams to backends that serve no more: they would go on sending there.
    /// Connections are left alone, as those of pods are.
    pub(super) fn end_datagrams(&mut self, before: &Compiled, now: &Compiled) -> Result<(), KernelError> {
        let serves =
            |compiled: &Compiled, number| compiled.backends.get(number).is_some_and(|backend| backend.flags & backend_flag::SERVING != 0);
        let gone: BTreeSet<u32> =
            before.backends.keys().filter(|number| serves(before, number) && !serves(now, number)).map(|number| number.0).collect();
        if gone.is_empty() || self.node_services != NodeServices::Served {
            return Ok(());
        }
        match self.datapath()?.end_datagrams(&gone) {
            Ok(0) => {}
            Ok(ended) => tracing::info!(ended, "sockets of the node were connected to backends that are gone: they are ended"),
            Err(error) => tracing::warn!(error = chain(&error), "sockets of the node may go on sending to backends that are gone"),
        }
        Ok(())
    }

    fn attach_to_sockets(&mut self) -> Result<(), KernelError> {
        let cgroup = match &self.state.config.cgroup {
            Some(path) => Cgroup::open(path)?,
            None => mounted()?,
        };
        Ok(self.datapath()?.serve_sockets(&cgroup)?)
    }

    fn detach_from_sockets(&mut self) -> Result<(), KernelError> {
        Ok(self.datapath()?.release_sockets()?)
    }
}

/// The root of the file system of cgroups.
fn mounted() -> Result<Cgroup, LoaderError> {
    let point = std::fs::read_to_string(MOUNTS).ok().and_then(|mounts| Cgroup::mount_of(&mounts));
    Cgroup::open(point.as_deref().unwrap_or(Path::new("/sys/fs/cgroup")))
}
