//! Endpoints: realised, released, compared.

use super::takeover::{is_there, links};
use super::{Kernel, KernelError, chain, pod_name};
use crate::metrics::Owner;
use crate::services::closed_outside;
use crate::state::{Realised, since};
use palisade_cni::link::MacAddress;
use palisade_datapath_core::abi::{Direction, Endpoint, IDENTITY_ANY, LocalPod, PolicyKey, SUBJECT_NONE};
use palisade_datapath_core::epoch;
use palisade_loader::endpoint_attached;
use palisade_protocol::{Attachment, EndpointSpec};
use std::net::IpAddr;
use std::time::SystemTime;

impl Kernel {
    /// Puts everything that polices an endpoint into the kernel: the rows of its policy first, the endpoint's own row
    /// last. Returns when all of it is there; undone when a part fails. A further call for the same attachment is fine.
    ///
    /// # Errors
    /// The interface is not as said or has no programs; not everything was read yet; a write failed.
    pub fn realise(&mut self, spec: EndpointSpec) -> Result<(), KernelError> {
        self.datapath()?;
        let rows = Rows::of(&spec)?;
        self.check_wiring(&spec)?;
        self.make_room(&spec)?;
        // The record before the rows: what a killed agent leaves behind is known to the next, which sweeps it or finishes it.
        self.records.write(&spec)?;
        let attachment = spec.attachment.clone();
        let before = self.endpoints.get(&attachment).map(|endpoint| (endpoint.since.clone(), endpoint.spec.host_ports.clone()));
        let (since, ports_before) = before.unwrap_or_else(|| (since(SystemTime::now()), Vec::new()));
        self.endpoints.insert(attachment.clone(), Realised { spec: spec.clone(), subject: SUBJECT_NONE, audit: SUBJECT_NONE, since });
        self.tell_addresses(&spec);
        if spec.host_ports != ports_before {
            self.tell_closed_ports(&spec);
            self.state.change(|_| true);
        }
        let written = self.reconcile().and_then(|()| self.write_rows(&spec, &rows));
        if let Err(error) = written {
            if let Err(undo) = self.release(&attachment, &spec.host_interface) {
                tracing::warn!(error = chain(&undo), pod = %pod_name(&spec), "an endpoint that failed could not be undone at once");
            }
            return Err(error);
        }
        self.publish()
    }

    /// Makes sure that the rows of every endpoint are there: those that an agent was killed before are written now. One that
    /// cannot be completed keeps no other waiting.
    ///
    /// # Errors
    /// A write failed; of several errors, the first.
    pub(super) fn complete_endpoints(&mut self) -> Result<(), KernelError> {
        let mut unknown = false;
        let mut failed = Ok(());
        for spec in self.endpoints.values().map(|endpoint| endpoint.spec.clone()).collect::<Vec<_>>() {
            match self.complete(&spec) {
                Ok(()) => {}
                // A pod that the source does not know (any more, or yet), or whose address is another's, has no subject: its row, if it has one, is closed.
                Err(KernelError::PodGone(_) | KernelError::Taken { .. }) => unknown = true,
                Err(error) => {
                    tracing::warn!(error = chain(&error), pod = %pod_name(&spec), "an endpoint could not be completed");
                    failed = failed.and(Err(error));
                }
            }
        }
        self.incomplete = unknown || failed.is_err();
        failed
    }

    fn complete(&mut self, spec: &EndpointSpec) -> Result<(), KernelError> {
        let rows = Rows::of(spec)?;
        let differences = self.differences(spec, &rows)?;
        if !differences.is_empty() {
            tracing::info!(pod = %pod_name(spec), differences = differences.join(", "), "completing an endpoint");
            self.write_rows(spec, &rows)?;
        }
        Ok(())
    }

    /// Forgets an endpoint: closed first, then its addresses, then its record. Fine when it is unknown; one of the attachment with another
    /// host-side interface is another network's, and stays.
    ///
    /// # Errors
    /// A row or the record could not be removed. What is left is swept when the agent starts again.
    pub fn release(&mut self, attachment: &Attachment, host_interface: &str) -> Result<(), KernelError> {
        let Some(endpoint) = self.endpoints.get(attachment).filter(|endpoint| endpoint.spec.host_interface == host_interface) else {
            self.records.remove(host_interface)?;
            return Ok(());
        };
        let spec = endpoint.spec.clone();
        if let Some(datapath) = &mut self.datapath {
            datapath.endpoints.remove(&spec.host_index)?;
            for address in &spec.addresses {
                // A late DEL: the address may be another pod's by now.
                if datapath.local.get(address)?.is_some_and(|row| row.ifindex == spec.host_index) {
                    datapath.local.remove(address)?;
                }
            }
            datapath.bump_epoch()?;
        }
        self.endpoints.remove(attachment);
        self.records.remove(host_interface)?;
        tracing::info!(container = attachment.container_id, "endpoint released");
        let pod = pod_name(&spec);
        let other = self.endpoints.values().find(|endpoint| pod_name(&endpoint.spec) == pod).map(|endpoint| endpoint.spec.clone());
        match other {
            Some(other) => self.tell_addresses(&other),
            None => self.state.change(|index| {
                index.clear_local_addresses(&pod, spec.uid.as_deref());
                // One subject less, whether or not an address changed.
                true
            }),
        }
        self.publish()
    }

    /// Compares what the kernel holds for an endpoint with what should be there.
    ///
    /// # Errors
    /// [`KernelError::Unknown`], [`KernelError::Differs`] with every difference.
    pub fn check(&mut self, attachment: &Attachment) -> Result<(), KernelError> {
        let Some(endpoint) = self.endpoints.get(attachment) else { return Err(KernelError::Unknown(attachment.clone())) };
        let spec = endpoint.spec.clone();
        self.check_wiring(&spec).map_err(|error| KernelError::Differs(error.to_string()))?;
        let mut differences = self.differences(&spec, &Rows::of(&spec)?)?;
        differences.extend(self.host_port_differences(&spec)?);
        if differences.is_empty() { Ok(()) } else { Err(KernelError::Differs(differences.join("; "))) }
    }

    /// Releases endpoints whose interfaces vanished without a DEL, so that nothing stays open for an index that is given anew. One that cannot be
    /// released keeps no other waiting.
    ///
    /// # Errors
    /// The interfaces cannot be listed, or a row or record cannot be removed; of several errors, the first.
    pub fn release_vanished(&mut self) -> Result<(), KernelError> {
        let vanished = self.vanished()?;
        let specs = self.endpoints.values().map(|endpoint| &endpoint.spec);
        let gone: Vec<EndpointSpec> = specs.filter(|spec| vanished.contains(&spec.host_index)).cloned().collect();
        let mut failed = Ok(());
        for spec in gone {
            tracing::info!(container = spec.attachment.container_id, "the endpoint's interface is gone");
            failed = failed.and(self.release(&spec.attachment, &spec.host_interface));
        }
        failed
    }

    /// Logs host ports that are not reached from outside, since nothing is.
    pub(super) fn tell_closed_ports(&self, spec: &EndpointSpec) {
        if let Some(problem) = closed_outside(spec).filter(|_| !self.state.config.serves_outside()) {
            tracing::warn!("{problem}");
        }
    }

    /// Tells the index the addresses of an endpoint.
    pub(super) fn tell_addresses(&self, spec: &EndpointSpec) {
        self.state.change(|index| index.set_local_addresses(&pod_name(spec), spec.uid.as_deref(), spec.addresses.clone()));
    }

    /// Whether the interface is the one that was said, and every packet of it meets the programs.
    fn check_wiring(&self, spec: &EndpointSpec) -> Result<(), KernelError> {
        let links = links()?;
        if !is_there(spec, &links) {
            let found = links.get(&spec.host_index).map_or_else(
                || "there is none of this index".to_owned(),
                |link| {
                    format!("it is {} with {}", link.name, link.mac.map_or_else(|| "no hardware address".to_owned(), |mac| mac.to_string()))
                },
            );
            return Err(KernelError::Invalid(format!(
                "interface {} with index {} and hardware address {} is not on this node: {found}",
                spec.host_interface, spec.host_index, spec.host_mac
            )));
        }
        if !endpoint_attached(&self.pin, &spec.host_interface, spec.host_index)? {
            return Err(KernelError::Invalid(format!("interface {} does not have the programs attached", spec.host_interface)));
        }
        Ok(())
    }

    /// Refuses an index or address that another endpoint has, unless that one's interface is gone.
    fn make_room(&mut self, spec: &EndpointSpec) -> Result<(), KernelError> {
        self.refuse_addresses_of_nodes(spec)?;
        if let Some(taken) = self.taken(spec) {
            tracing::warn!(pod = %pod_name(spec), error = %taken, "a pod is refused: its address is a pod's of another node");
            self.state.metrics.address_refused(Owner::Pod);
            return Err(taken);
        }
        let in_the_way = |endpoint: &&Realised| {
            let other = &endpoint.spec;
            other.attachment != spec.attachment
                && (other.host_index == spec.host_index || other.addresses.iter().any(|address| spec.addresses.contains(address)))
        };
        if self.endpoints.values().any(|endpoint| in_the_way(&endpoint)) {
            self.release_vanished()?;
        }
        if let Some(other) = self.endpoints.values().find(in_the_way) {
            return Err(KernelError::Invalid(format!(
                "an address or the interface is already that of pod {} (container {}): DEL that one first",
                pod_name(&other.spec),
                other.spec.attachment.container_id
            )));
        }
        let known = self.endpoints.get(&spec.attachment).map(|known| known.spec.clone());
        let Some(known) = known.filter(|known| known != spec) else { return Ok(()) };
        if known.host_interface != spec.host_interface && is_there(&known, &links()?) {
            return Err(KernelError::Invalid(format!(
                "{} of container {} is attached to another network by {}: DEL that attachment first",
                spec.attachment.interface, spec.attachment.container_id, known.host_interface
            )));
        }
        // The same attachment anew, with another index or other addresses: the old rows must not stay.
        self.release(&known.attachment, &known.host_interface)
    }

    /// Refuses an address that a node has: rules about nodes would hold for the pod, and what is for the node would go to the pod. A node that
    /// claims an address which a pod may have refuses nobody: the model does not have such claims, but for this node's own.
    fn refuse_addresses_of_nodes(&self, spec: &EndpointSpec) -> Result<(), KernelError> {
        let nodes = self.state.index().model().nodes;
        let owner = |address: &IpAddr| nodes.iter().find(|(_, node)| node.addresses.contains(address)).map(|(name, _)| name);
        match spec.addresses.iter().find_map(|address| Some((address, owner(address)?))) {
            Some((address, node)) => {
                tracing::warn!(pod = %pod_name(spec), %address, node, "a pod is refused: its address is a node's");
                self.state.metrics.address_refused(Owner::Node);
                Err(KernelError::Invalid(format!("{address} is an address of node {node}: give nodes and pods ranges of their own")))
            }
            None => Ok(()),
        }
    }

    /// The subject of an endpoint's pod, once its rows and its addresses' are in the kernel.
    fn subject(&self, spec: &EndpointSpec) -> Result<u32, KernelError> {
        if let Some(reason) = self.reason_to_close(spec) {
            return Err(reason);
        }
        let pod = pod_name(spec);
        let applied = self.applied.as_ref();
        let subject = applied.and_then(|applied| applied.subjects.get(&pod)).copied();
        let owns = |address: &IpAddr| {
            self.good.as_ref().and_then(|good| good.model.pods.get(&pod)).is_some_and(|pod| pod.addresses.contains(address))
        };
        match subject {
            Some(subject) if subject != SUBJECT_NONE && spec.addresses.iter().all(owns) => Ok(subject),
            _ => Err(KernelError::PodGone(pod)),
        }
    }

    /// Writes where the endpoint is reached, begins an epoch, and writes the endpoint's own row, which opens it.
    ///
    /// Of an address whose pod has a row here nothing is judged before the endpoint's own row is there. So no entry of the
    /// new epoch, or of a later one, is another pod's, and older ones are not the endpoint's.
    fn write_rows(&mut self, spec: &EndpointSpec, rows: &Rows) -> Result<(), KernelError> {
        let (subject, audit) = (self.subject(spec)?, self.audit(spec));
        let datapath = self.datapath()?;
        let next = epoch::next(datapath.epoch()?);
        // An endpoint that an earlier agent made keeps its flows.
        let since = datapath.endpoints.get(&spec.host_index)?.filter(|row| rows.are(row)).map_or(next, |row| row.since);
        self.write_growing(|datapath| {
            spec.addresses.iter().try_for_each(|address| datapath.local.insert(address, &LocalPod { since, ..rows.local }))
        })?;
        self.datapath()?.bump_epoch()?;
        self.write_growing(|datapath| datapath.endpoints.insert(&spec.host_index, &Endpoint { subject, audit, since, ..rows.endpoint }))?;
        if let Some(endpoint) = self.endpoints.get_mut(&spec.attachment) {
            (endpoint.subject, endpoint.audit) = (subject, audit);
        }
        Ok(())
    }

    /// What policies in audit mode would make of an endpoint's pod.
    fn audit(&self, spec: &EndpointSpec) -> u32 {
        let audits = self.applied.as_ref().map(|applied| &applied.audits);
        audits.and_then(|audits| audits.get(&pod_name(spec))).copied().unwrap_or(SUBJECT_NONE)
    }

    /// What of an endpoint the kernel does not hold as it should, in words.
    fn differences(&mut self, spec: &EndpointSpec, rows: &Rows) -> Result<Vec<String>, KernelError> {
        let (subject, audit) = (self.subject(spec)?, self.audit(spec));
        let identities: Vec<_> = {
            let applied = self.applied.as_ref();
            spec.addresses.iter().map(|address| (*address, applied.and_then(|applied| applied.addresses.get(address)).copied())).collect()
        };
        let policy = [Direction::Ingress, Direction::Egress].map(|direction| {
            let key = PolicyKey::new(subject, direction, IDENTITY_ANY);
            (direction, key, self.applied.as_ref().and_then(|applied| applied.policy.get(&key)).copied())
        });
        let datapath = self.datapath()?;
        let mut differences = Vec::new();
        let mut compare = |what: String, same: bool| {
            if !same {
                differences.push(what);
            }
        };
        let found = datapath.endpoints.get(&spec.host_index)?;
        let since = found.map(|row| row.since).unwrap_or_default();
        compare("the endpoint's row".to_owned(), found == Some(Endpoint { subject, audit, since, ..rows.endpoint }));
        for (address, identity) in identities {
            compare(format!("the local row of {address}"), datapath.local.get(&address)? == Some(LocalPod { since, ..rows.local }));
            compare(format!("the identity of {address}"), datapath.addresses.get(&address)? == identity && identity.is_some());
        }
        for (direction, key, entry) in policy {
            let same = datapath.policy.get(&key)? == entry && entry.is_some();
            compare(format!("the {} rows of its policy", palisade_policy::reason::direction_name(direction)), same);
        }
        Ok(differences)
    }
}

/// The rows of an endpoint, but for its subject and since when it is there.
struct Rows {
    endpoint: Endpoint,
    local: LocalPod,
}

impl Rows {
    fn of(spec: &EndpointSpec) -> Result<Self, KernelError> {
        let mac = |text: &str| -> Result<[u8; 6], KernelError> {
            text.parse::<MacAddress>().map(|mac| mac.0).map_err(|error| KernelError::Invalid(error.to_string()))
        };
        let (pod_mac, host_mac) = (mac(&spec.pod_mac)?, mac(&spec.host_mac)?);
        let mut endpoint = Endpoint { ifindex: spec.host_index, pod_mac, host_mac, ..Endpoint::default() };
        for address in &spec.addresses {
            match address {
                IpAddr::V4(address) => endpoint.ipv4 = address.octets(),
                IpAddr::V6(address) => endpoint.ipv6 = address.octets(),
            }
        }
        Ok(Self { endpoint, local: LocalPod { ifindex: spec.host_index, pod_mac, host_mac, since: 0 } })
    }

    /// Whether a row is that of this endpoint.
    fn are(&self, row: &Endpoint) -> bool {
        let Endpoint { subject, audit, since, .. } = *row;
        *row == Endpoint { subject, audit, since, ..self.endpoint }
    }
}
