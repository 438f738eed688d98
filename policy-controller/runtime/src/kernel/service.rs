//! Services, put into the kernel.

use super::sockets::serves;
use super::{Kernel, KernelError, pod_name};
use crate::news::Told;
use crate::state::Realised;
use palisade_datapath_core::abi::map;
use palisade_identity::Protocol;
use palisade_loader::{FrontendKey, Room};
use palisade_policy::shared::SharedMap;
use palisade_protocol::{Attachment, EndpointSpec, Transport};
use palisade_service::model::{HostPort, HostPorts, PodInterface, Services};
use palisade_service::{Compiled, Frontend, Leads, Number, Numbers, Plan, Planner, Problem, Step, Trouble};
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

    /// Makes the writes from what the maps hold to what services want, as far as they fit, and then what follows from them. Returns them.
    fn change_services(&mut self, services: &Services) -> Result<Vec<Step>, KernelError> {
        let applied = self.served.applied.take();
        // Nobody knows what has not followed from the change before, which this agent or another has not brought to its end.
        let is_known = applied.is_some();
        let old = match applied {
            Some(applied) => applied,
            None => Arc::new(self.read_services()?),
        };
        let mut numbers = match self.served.numbers.take() {
            Some(numbers) => numbers,
            None => Numbers::after(self.datapath()?.service_number()?),
        };
        let limits = self.datapath()?.room().into_iter().map(|room| (room.map, room.limit)).collect();
        let plan = self.served.planner.plan_within(&old, services, &mut numbers, &limits);
        self.served.numbers = Some(numbers);
        if let Err(error) = self.room_for(&old, &plan.steps) {
            self.served.applied = Some(old).filter(|_| is_known);
            return Err(error);
        }
        let made = self.make_services(&old, &plan.steps);
        self.tell_of_frontends(&old, &plan);
        made?;
        let Plan { steps, next, .. } = plan;
        let went = |number: &Number| serves(&old, number) && !serves(&next, number);
        if !is_known || old.backends.differences(&next.backends).iter().any(|backend| went(backend.key)) {
            self.end_datagrams(&next);
        }
        self.served.applied = Some(next);
        Ok(steps)
    }

    /// Makes writes one by one. Where frontends pass on, from nobody, to nobody or to another service, flows that go there are judged again: they go to a
    /// backend of who has it now. So also where a write fails, or the agent is killed in between, when the next one finds the epoch as that of a change
    /// under way.
    fn make_services(&mut self, old: &Compiled, steps: &[Step]) -> Result<(), KernelError> {
        let passes_on = |step: &Step| match step {
            Step::WriteFrontend(frontend, entry) => old.frontends.get(frontend).is_none_or(|before| before.service != entry.service),
            Step::RemoveFrontend(_) => true,
            _ => false,
        };
        let some_pass_on = steps.iter().any(passes_on);
        if some_pass_on {
            self.datapath()?.unsettle_epoch()?;
        }
        let made = steps.iter().try_for_each(|step| self.make_service(step));
        if some_pass_on {
            let datapath = self.datapath()?;
            // Whoever has read an old row has written by then what it has made of it.
            datapath.await_programs();
            datapath.bump_epoch()?;
        }
        made
    }

    /// Logs and counts the frontends that have become another's, and those that are nobody's though who had them is there.
    fn tell_of_frontends(&self, old: &Compiled, Plan { steps, given_up, .. }: &Plan) {
        for step in steps {
            if let Step::WriteFrontend(frontend, entry) = step
                && old.frontends.get(frontend).is_some_and(|before| before.service != entry.service)
            {
                tracing::info!(%frontend, "one service's is another's now: flows of the old one end");
                self.state.metrics.frontend_passed_on();
            }
        }
        for frontend in given_up {
            tracing::info!(%frontend, "its service goes on without it: flows by it end");
            self.state.metrics.frontend_given_up();
        }
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
                Step::WriteBackend(number, _) if !old.backends.contains_key(&Number(*number)) => map::BACKENDS,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AgentConfig, Source, Switch};
    use crate::lock::RunLock;
    use crate::state::{NodeServices, State};
    use k8s_openapi::api::core::v1::Service;
    use k8s_openapi::api::discovery::v1::EndpointSlice;
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    use palisade_cni::link::{MacAddress, Netlink, Veth};
    use palisade_datapath_core::abi::ServiceEntry;
    use palisade_datapath_core::epoch;
    use palisade_loader::{Limits, Sizes};
    use palisade_test_support::{private_host, skipped};
    use serde_json::json;
    use std::io::ErrorKind;
    use std::net::{SocketAddr, UdpSocket};
    use std::time::Duration;

    const NODE: &str = "192.0.2.77";

    fn service(name: &str, address: &str) -> Service {
        let ports = json!([{ "port": 53, "targetPort": 5353, "protocol": "UDP" }]);
        let object = json!({ "metadata": { "namespace": "shop", "name": name }, "spec": { "clusterIP": address, "ports": ports } });
        serde_json::from_value(object).unwrap()
    }

    /// The endpoints of a service: this node, at a port.
    fn slice(of: &str, port: u16) -> EndpointSlice {
        let metadata = json!({ "namespace": "shop", "name": of, "labels": { "kubernetes.io/service-name": of } });
        let endpoints = json!([{ "addresses": [NODE] }]);
        let ports = json!([{ "port": port, "protocol": "UDP" }]);
        serde_json::from_value(json!({ "metadata": metadata, "addressType": "IPv4", "ports": ports, "endpoints": endpoints })).unwrap()
    }

    /// Runs a test with the state of an agent that serves the node's own processes, in a network namespace of its own. Needs root.
    fn with_state(sizes: Sizes, test: impl FnOnce(&Arc<State>) + Send) {
        private_host(|host| {
            let cgroup = host.directory().join("cgroup");
            std::fs::create_dir(&cgroup).unwrap();
            mount(None::<&str>, &cgroup, Some("cgroup2"), MsFlags::empty(), None::<&str>).unwrap();
            let netlink = Netlink::open().unwrap();
            let (mac, peer_mac) = (MacAddress::local(1), MacAddress::local(2));
            let veth = Veth { name: "uplink", mac, peer_name: "beyond", peer_mac, peer_namespace: None, mtu: 1500 };
            let link = netlink.create_veth(&veth).unwrap().index;
            netlink.add_address(link, format!("{NODE}/24").parse().unwrap()).unwrap();
            netlink.set_up(link).unwrap();
            let mut config = AgentConfig::new("node", Source::Directory("/nowhere".into()));
            (config.pin_dir, config.run_dir) = (host.bpffs().join("palisade"), host.run_dir());
            (config.node_services, config.cgroup, config.sizes) = (Switch::On, Some(cgroup.clone()), sizes);
            test(&Arc::new(State::new(config)));
            netlink.delete_link(link).unwrap();
            std::fs::remove_dir_all(host.bpffs().join("palisade")).unwrap();
            let _ = std::fs::remove_file(host.run_dir().join("agent.lock"));
            umount2(&cgroup, MntFlags::MNT_DETACH).unwrap();
            std::fs::remove_dir(&cgroup).unwrap();
        });
    }

    /// The next agent, with what is pinned.
    fn kernel(state: &Arc<State>) -> Kernel {
        let mut kernel = Kernel::new(Arc::clone(state), RunLock::take(&state.config.run_dir).unwrap()).unwrap();
        let _ring = kernel.open().unwrap();
        kernel
    }

    fn connected(to: &str) -> UdpSocket {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        socket.connect(to.parse::<SocketAddr>().unwrap()).unwrap();
        socket
    }

    #[test]
    fn sockets_of_backends_that_an_agent_has_removed_before_it_was_killed_are_ended_by_the_next() {
        with_state(Sizes::default(), |state| {
            let backends = [5353, 5354].map(|port| UdpSocket::bind((NODE, port)).unwrap());
            let gone = slice("gone", 5353);
            state.change(|index| {
                index.upsert(&service("gone", "10.96.0.10"))
                    | index.upsert(&service("stays", "10.96.0.11"))
                    | index.upsert(&gone)
                    | index.upsert(&slice("stays", 5354))
            });
            let mut first = kernel(state);
            if first.node_services != NodeServices::Served {
                return skipped("this kernel does not tell the cookie of a network namespace");
            }
            first.serve().unwrap();
            let sockets = ["10.96.0.10:53", "10.96.0.11:53"].map(connected);
            for (socket, backend) in sockets.iter().zip(&backends) {
                socket.send(b"x").unwrap();
                assert_eq!(backend.recv(&mut [0; 4]).unwrap(), 1);
            }
            // All that the agent writes, and nothing after it.
            state.change(|index| index.delete(&gone));
            let services = state.index().services();
            let (old, mut numbers) = (first.served.applied.take().unwrap(), first.served.numbers.take().unwrap());
            let Plan { steps, .. } = first.served.planner.plan(&old, &services, &mut numbers);
            assert!(steps.iter().any(|step| matches!(step, Step::RemoveBackend(_))), "{steps:?}");
            first.make_services(&old, &steps).unwrap();
            drop(first);
            sockets[0].send(b"x").expect("it goes on sending there");

            let mut next = kernel(state);
            next.serve().unwrap();
            assert_eq!(sockets[0].take_error().unwrap().map(|error| error.kind()), Some(ErrorKind::ConnectionAborted));
            sockets[0].send(b"x").expect_err("it is connected to nobody");
            sockets[1].send(b"x").expect("its backend serves");
        });
    }

    #[test]
    fn flows_to_a_frontend_that_a_change_has_written_before_it_failed_are_judged_again() {
        with_state(Sizes { services: 2, limits: Limits { services: 2, ..Limits::DEFAULT }, ..Sizes::default() }, |state| {
            let mut kernel = kernel(state);
            kernel.serve().unwrap();
            let before = kernel.datapath().unwrap().epoch().unwrap();
            // Somebody else's row is in the way of the second of two.
            let foreign = (("198.51.100.1".parse().unwrap(), 1, 17), ServiceEntry::default());
            kernel.datapath().unwrap().services.insert(foreign.0, &foreign.1).unwrap();
            state.change(|index| index.upsert(&service("a", "10.96.0.10")) | index.upsert(&service("b", "10.96.0.11")));
            kernel.serve().unwrap_err();
            let written = kernel.datapath().unwrap().services.rows().unwrap();
            assert!(written.contains_key(&("10.96.0.10".parse().unwrap(), 53, 17)), "{written:?}");
            assert_eq!(kernel.datapath().unwrap().epoch().unwrap(), epoch::next(before));
            // It is read back then, and what is nobody's goes.
            kernel.serve().unwrap();
            let settled = kernel.datapath().unwrap().epoch().unwrap();
            assert_eq!(
                settled,
                epoch::next(epoch::next(epoch::next(before))),
                "once for what goes, and once for the second one that has its room"
            );
            kernel.serve().unwrap();
            assert_eq!(kernel.datapath().unwrap().epoch().unwrap(), settled);
        });
    }
}
