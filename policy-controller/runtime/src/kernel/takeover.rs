//! What an agent does with what an earlier one has left: keep what belongs to a pod, remove what belongs to none.

use super::{Kernel, KernelError, pod_name};
use crate::problem::Part;
use crate::state::{Realised, since};
use palisade_cni::link::{Link, Netlink};
use palisade_datapath_core::abi::SUBJECT_NONE;
use palisade_loader::{Role, detach_endpoint, pinned_links};
use palisade_policy::Planner;
use palisade_protocol::EndpointSpec;
use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

impl Kernel {
    /// Reads the numbering and the endpoint records, compares them with the interfaces and rows of the kernel, and removes
    /// what belongs to no pod: rows of endpoints without a record or whose interface is gone, such records, and pins of
    /// interfaces that are gone. No other row is touched: pods keep their policy until the model is there.
    ///
    /// A pin of an interface that exists stays though no record names it: `palisade-cni` may just be wiring it, and
    /// without an endpoint row it is closed.
    pub(super) fn take_over(&mut self) -> Result<(), KernelError> {
        self.numbering.load()?;
        self.last_good.load()?;
        // It knows the numbers that were in memory, which may be ahead of those that were written down.
        self.planner = Planner::new();
        self.applied = None;
        self.forget_services();
        self.incomplete = true;
        self.endpoints.clear();
        let found = self.records.load()?;
        // Asked after the records: an interface of a record that is not there now is gone.
        let links = links()?;
        let (alive, dead): (Vec<_>, Vec<_>) = found.specs.into_iter().partition(|spec| is_there(spec, &links));
        for spec in &dead {
            tracing::info!(pod = %pod_name(spec), interface = spec.host_interface, "the endpoint's interface is gone: forgotten");
            self.records.remove(&spec.host_interface)?;
        }
        for spec in alive {
            let row = self.datapath()?.endpoints.get(&spec.host_index)?;
            let (subject, audit) = row.map_or((SUBJECT_NONE, SUBJECT_NONE), |row| (row.subject, row.audit));
            self.tell_addresses(&spec);
            self.tell_closed_ports(&spec);
            let since = since(found.written.get(&spec.attachment).copied().unwrap_or_else(SystemTime::now));
            self.endpoints.insert(spec.attachment.clone(), Realised { spec, subject, audit, since });
        }
        if found.unreadable.is_empty() {
            self.state.problems.clear(Part::Records);
            self.sweep_rows()?;
        } else {
            // A row of an endpoint whose record cannot be read would be swept, and its pod cut off before anything is known.
            let files = found.unreadable.join("; ");
            self.state.problems.set(
                Part::Records,
                format!("cannot be read: {files}; their pods are closed as soon as policy is compiled: delete those pods, and the files"),
            );
        }
        self.sweep_pins()
    }

    /// Removes endpoint and local rows that belong to no known endpoint.
    fn sweep_rows(&mut self) -> Result<(), KernelError> {
        let known: BTreeMap<u32, EndpointSpec> =
            self.endpoints.values().map(|endpoint| (endpoint.spec.host_index, endpoint.spec.clone())).collect();
        let datapath = self.datapath()?;
        let mut swept = 0;
        for index in datapath.endpoints.rows()?.into_keys().filter(|index| !known.contains_key(index)) {
            datapath.endpoints.remove(&index)?;
            swept += 1;
        }
        for (address, row) in datapath.local.rows()? {
            if known.get(&row.ifindex).is_none_or(|spec| !spec.addresses.contains(&address)) {
                datapath.local.remove(&address)?;
                swept += 1;
            }
        }
        datapath.settle_epoch(swept > 0)?;
        if swept > 0 {
            tracing::info!(swept, "removed rows that belong to no pod");
        }
        Ok(())
    }

    /// Removes pins of interfaces that are gone. One that cannot be removed keeps no other waiting.
    ///
    /// # Errors
    /// The pins or the interfaces cannot be listed, or a pin cannot be removed; of several errors, the first.
    pub(super) fn sweep_pins(&mut self) -> Result<(), KernelError> {
        // In this order: a pin that is there before an interface is looked for is no pin of a later one. An index that is given
        // anew in between shows when its endpoint is realised, which waits for this and looks for its programs.
        let pinned = pinned_links(&self.pin, Role::Endpoint)?;
        if pinned.is_empty() {
            return Ok(());
        }
        let links = links()?;
        let mut failed = Ok(());
        for index in pinned.iter().filter(|index| !links.contains_key(index)) {
            match detach_endpoint(&self.pin, *index) {
                Ok(()) => tracing::info!(index, "removed the pins of an interface that is gone"),
                Err(error) => failed = failed.and(Err(error.into())),
            }
        }
        failed
    }

    /// Indices of the interfaces of endpoints that have vanished without a DEL.
    pub(super) fn vanished(&self) -> Result<BTreeSet<u32>, KernelError> {
        let links = links()?;
        let gone = self.endpoints.values().filter(|endpoint| !is_there(&endpoint.spec, &links));
        Ok(gone.map(|endpoint| endpoint.spec.host_index).collect())
    }
}

/// The interfaces of the node, by index.
pub(super) fn links() -> Result<BTreeMap<u32, Link>, KernelError> {
    Ok(Netlink::open()?.links()?.into_iter().map(|link| (link.index, link)).collect())
}

/// Whether the interface of an endpoint exists: its index, name and hardware address are those that were realised.
pub(super) fn is_there(spec: &EndpointSpec, links: &BTreeMap<u32, Link>) -> bool {
    links.get(&spec.host_index).is_some_and(|link| {
        link.name == spec.host_interface && link.mac.is_some_and(|mac| mac.to_string().eq_ignore_ascii_case(&spec.host_mac))
    })
}
