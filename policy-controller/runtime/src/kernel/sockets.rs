//! Services for the node's own processes, by programs at their sockets.

use super::{Kernel, KernelError, chain};
use crate::state::NodeServices;
use palisade_datapath_core::abi::backend_flag;
use palisade_loader::{Cgroup, LoaderError};
use palisade_service::{Compiled, Number};
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
            // Meanwhile backends may have gone to which sockets are connected from before.
            if let Some(rows) = self.served.rows() {
                self.end_datagrams(&rows);
            }
        }
        lacking
    }

    /// Ends what the node's processes have connected for datagrams to backends that serve no more: they would go on sending there.
    /// Connections are left alone, as those of pods are.
    ///
    /// Every socket is compared with the backends that there are: which backends went is not known of a change that another agent, or a failure,
    /// has cut short.
    pub(super) fn end_datagrams(&self, now: &Compiled) {
        let Some(datapath) = self.datapath.as_ref().filter(|_| self.node_services == NodeServices::Served) else { return };
        match datapath.end_datagrams(|number| serves(now, &Number(number))) {
            Ok(0) => {}
            Ok(ended) => tracing::info!(ended, "sockets of the node were connected to backends that are gone: they are ended"),
            Err(error) => tracing::warn!(error = chain(&error), "sockets of the node may go on sending to backends that are gone"),
        }
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

/// Whether a backend serves those that it serves already.
pub(super) fn serves(compiled: &Compiled, number: &Number) -> bool {
    compiled.backends.get(number).is_some_and(|backend| backend.flags & backend_flag::SERVING != 0)
}

/// The root of the file system of cgroups.
fn mounted() -> Result<Cgroup, LoaderError> {
    let point = std::fs::read_to_string(MOUNTS).ok().and_then(|mounts| Cgroup::mount_of(&mounts));
    Cgroup::open(point.as_deref().unwrap_or(Path::new("/sys/fs/cgroup")))
}
