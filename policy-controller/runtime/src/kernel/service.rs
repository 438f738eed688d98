//! Services, put into the kernel.

use super::{Kernel, KernelError, pod_name};
use crate::news::Told;
use crate::state::Realised;
use palisade_datapath_core::abi::map;
use palisade_identity::Protocol;
use palisade_loader::{FrontendKey, Room};
use palisade_policy::shared::SharedMap;
use palisade_protocol::{Attachment, EndpointSpec, Transport};
use palisade_service::model::{HostPort, HostPorts, PodInterface, Services};
use palisade_service::{Compiled, Frontend, Leads, Numbers, Plan, Planner, Problem, Step, Trouble};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the agent knows of the rows of services.
#[derive(Debug, Default)]
pub(super) struct Served {
    planner: Planner,
    /// What gives numbers; `None` until the highest one that was given is read back.
    numbers: Option<Numbers>,
    /// What the maps hold; `None` when it must be read back first.
    applied: Option<Arc<Compiled>>,
    /// What is wrong and was logged.
    told: Told<Problem>,
}

impl Served {
    /// The rows of services; none where the last change was cut short.
    pub(super) fn rows(&self) -> Option<Arc<Compiled>> {
        self.applied.clone()
    }
}

impl Kernel {
    /// Puts the services that are known now into the kernel. One that does not fit goes on with those of its backends that are there, or without, and
    /// [`Trouble::NoRoom`](palisade_service::Trouble::NoRoom) tells of it; the others go on.
    ///
    /// A write that fails ends the change: each service has what stood behind it before or what stands behind it now.
    ///
    /// # Errors
    /// The datapath is not open, a map cannot grow, or a write failed.
    pub fn serve(&mut self) -> Result<(), KernelError> {
        self.mend()?;
        let mut services = self.state.index().services();
        services.host_ports = self.host_ports();
        let mut writes = 0;
        loop {
            let steps = self.change_services(&services)?;
            writes += steps.len();
            let removes = |step: &Step| matches!(step, Step::RemoveFrontend(_) | Step::RemoveChunk(_) | Step::RemoveBackend(_));
            if !self.holds_services_back() || !steps.iter().any(removes) {
                break;
            }
            // What was removed may make room for what was held back.
        }
        self.tell_service_problems();
        if writes > 0 {
            tracing::debug!(writes, "the services are in the kernel");
        }
        if writes > 0 || self.state.published().services != services {
            self.publish_services(services)?;
        }
        Ok(())
    }

    /// Makes the writes from what the maps hold to what services want, as far as they fit. Returns them.
    fn change_services(&mut self, services: &Services) -> Result<Vec<Step>, KernelError> {
        let old = match self.served.applied.take() {
            Some(applied) => applied,
            None => Arc::new(self.read_services()?),
        };
        let mut numbers = match self.served.numbers.take() {
            Some(numbers) => numbers,
            None => Numbers::after(self.datapath()?.service_number()?),
        };
        let limits = self.datapath()?.room().into_iter().map(|room| (room.map, room.limit)).collect();
        let Plan { steps, next } = self.served.planner.plan_within(&old, services, &mut numbers, &limits);
        self.served.numbers = Some(numbers);
        if let Err(error) = self.room_for(&old, &steps) {
            self.served.applied = Some(old);
            return Err(error);
        }
        let mut passes_on = false;
        for step in &steps {
            passes_on |= match step {
                Step::WriteFrontend(frontend, entry) => old.frontends.get(frontend).is_none_or(|before| before.service != entry.service),
                Step::RemoveFrontend(_) => true,
                _ => false,
            };
            self.make_service(step)?;
        }
        if passes_on {
            // Flows that went there before are judged again: where there was nobody they go to a backend, and where there was another service they leave
            // that of it. Whoever has read the old row has written by then what it has made of it.
            let datapath = self.datapath()?;
            datapath.await_programs();
            datapath.bump_epoch()?;
        }
        self.end_datagrams(&old, &next)?;
        self.served.applied = Some(next);
        Ok(steps)
    }

    fn holds_services_back(&self) -> bool {
        self.served.applied.iter().flat_map(|served| served.problems()).any(|problem| matches!(problem.what, Trouble::NoRoom { .. }))
    }

    /// Logs what is wrong with services and host ports, each problem once as long as it is there.
    fn tell_service_problems(&mut self) {
        let now = self.served.applied.iter().flat_map(|served| served.problems()).collect();
        let is_still = |now: &Problem, told: &Problem| now.owner == told.owner && now.what.is_still(&told.what);
        for problem in self.served.told.news(now, is_still) {
            tracing::warn!(of = %problem.owner, problem = %problem.what, "a service or host port is not served as it is written");
        }
    }

    /// The ports of the node that lead to its pods.
    fn host_ports(&self) -> SharedMap<PodInterface, Arc<HostPorts>> {
        let with_ports = self.endpoints.values().filter(|endpoint| !endpoint.spec.host_ports.is_empty());
        with_ports.map(|endpoint| (interface(&endpoint.spec), Arc::new(host_ports(endpoint)))).collect()
    }

    /// What of the rows of an endpoint's host ports the kernel does not hold as it should, in words. Of those that do not lead to it, since another
    /// has them or there is no room, its status tells.
    pub(super) fn host_port_differences(&mut self, spec: &EndpointSpec) -> Result<Vec<String>, KernelError> {
        let Some(rows) = self.served.rows().filter(|_| !spec.host_ports.is_empty()) else { return Ok(Vec::new()) };
        let place = self.state.published().services.place.addresses.clone();
        let datapath = self.datapath()?;
        let mut differences = Vec::new();
        for (address, port) in place.iter().flat_map(|address| spec.host_ports.iter().map(move |port| (*address, port))) {
            let frontend = Frontend { address, protocol: protocol(port.protocol), port: port.host_port.get() };
            let (Some(Leads::Backends(led)), Some(entry)) = (rows.leads(&frontend), rows.frontends.get(&frontend)) else { continue };
            if !spec.addresses.iter().any(|own| led.contains(&(*own, port.container_port.get()))) {
                continue;
            }
            if datapath.services.get(key(&frontend))? != Some(*entry) {
                differences.push(format!("the row of the host port at {frontend}"));
            }
            let mut whole = true;
            for (key, slots) in rows.chunks().filter(|(key, _)| [entry.table, entry.outside_table].contains(&key.table)) {
                whole &= datapath.chunks.get(&key)? == Some(slots);
            }
            for (number, backend) in rows.backends.iter().filter(|(_, backend)| backend.service == entry.service) {
                whole &= datapath.backends.get(&number.0)? == Some(*backend);
            }
            if !whole {
                differences.push(format!("what stands behind the host port at {frontend}"));
            }
        }
        Ok(differences)
    }

    /// Forgets what is known of the rows: they are read back at the next change.
    pub(super) fn forget_services(&mut self) {
        self.served = Served { told: std::mem::take(&mut self.served.told), ..Served::default() };
    }

    /// What the maps hold.
    fn read_services(&mut self) -> Result<Compiled, KernelError> {
        let datapath = self.datapath()?;
        let frontends = datapath.services.rows()?.into_iter().filter_map(|((address, port, protocol), entry)| {
            let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|known| known.number() == protocol)?;
            Some((Frontend { address, protocol, port }, entry))
        });
        Ok(Compiled::read(frontends, datapath.backends.rows()?, datapath.chunks.rows()?))
    }

    /// Makes room for what a change writes, before what it removes is gone. The plan is within the limits.
    fn room_for(&mut self, old: &Compiled, steps: &[Step]) -> Result<(), KernelError> {
        let of_v4 = old.frontends.keys().filter(|frontend| frontend.address.is_ipv4()).count();
        let mut rows = BTreeMap::from([
            (map::SERVICES_V4, of_v4),
            (map::SERVICES_V6, old.frontends.len() - of_v4),
            (map::BACKENDS, old.backends.len()),
            (map::CHUNKS, old.chunks().count() + old.remnants.len()),
        ]);
        for step in steps {
            let map = match step {
                Step::WriteFrontend(frontend, _) if !old.frontends.contains_key(frontend) => {
                    if frontend.address.is_ipv4() {
                        map::SERVICES_V4
                    } else {
                        map::SERVICES_V6
                    }
                }
                Step::WriteBackend(number, _) if !old.backends.contains_key(&palisade_service::Number(*number)) => map::BACKENDS,
                Step::WriteChunk(..) => map::CHUNKS,
                _ => continue,
            };
            rows.entry(map).and_modify(|rows| *rows += 1);
        }
        let mut needs = Vec::new();
        for Room { map, rows: room, .. } in self.datapath()?.room() {
            let Some(rows) = rows.get(map).copied() else { continue };
            if rows > room as usize {
                needs.push((map, rows));
            }
        }
        self.grow(&needs)
    }

    /// Makes one write.
    fn make_service(&mut self, step: &Step) -> Result<(), KernelError> {
        let datapath = self.datapath()?;
        match step {
            Step::RaiseNumber(highest) => datapath.raise_service_number(*highest)?,
            Step::WriteBackend(number, backend) => datapath.backends.insert(number, backend)?,
            Step::WriteChunk(key, slots) => datapath.chunks.insert(key, slots)?,
            Step::WriteFrontend(frontend, entry) => datapath.services.insert(key(frontend), entry)?,
            Step::RemoveFrontend(frontend) => drop(datapath.services.remove(key(frontend))?),
            Step::AwaitPrograms => datapath.await_programs(),
            Step::RemoveChunk(key) => drop(datapath.chunks.remove(key)?),
            Step::RemoveBackend(number) => drop(datapath.backends.remove(number)?),
        }
        Ok(())
    }
}

/// The interface of an endpoint, as services know it.
pub fn interface(spec: &EndpointSpec) -> PodInterface {
    let Attachment { container_id, interface } = &spec.attachment;
    PodInterface { pod: pod_name(spec), interface: format!("{container_id}/{interface}") }
}

fn host_ports(endpoint: &Realised) -> HostPorts {
    let port = |port: &palisade_protocol::HostPort| HostPort {
        address: port.host_ip,
        protocol: protocol(port.protocol),
        port: port.host_port.get(),
        target: port.container_port.get(),
    };
    HostPorts {
        created: Some(endpoint.since.clone()),
        addresses: endpoint.spec.addresses.iter().copied().collect(),
        ports: endpoint.spec.host_ports.iter().map(port).collect(),
    }
}

const fn protocol(transport: Transport) -> Protocol {
    match transport {
        Transport::Tcp => Protocol::Tcp,
        Transport::Udp => Protocol::Udp,
        Transport::Sctp => Protocol::Sctp,
    }
}

fn key(frontend: &Frontend) -> FrontendKey {
    (frontend.address, frontend.port, frontend.protocol.number())
}
