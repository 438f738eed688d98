//! Services, put into the kernel.

use super::{Kernel, KernelError};
use palisade_datapath_core::abi::map;
use palisade_identity::Protocol;
use palisade_loader::{FrontendKey, Room};
use palisade_service::{Compiled, Frontend, Numbers, Plan, Planner, Step};
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
}

impl Served {
    /// The rows of services; none where the last change was cut short.
    pub(super) fn rows(&self) -> Option<Arc<Compiled>> {
        self.applied.clone()
    }
}

impl Kernel {
    /// Puts the services that are known now into the kernel.
    ///
    /// A write that fails ends the change: each service has what stood behind it before or what stands behind it now.
    ///
    /// # Errors
    /// The datapath is not open, a map has no room, or a write failed.
    pub fn serve(&mut self) -> Result<(), KernelError> {
        self.mend()?;
        let services = self.state.index().services();
        let old = match self.served.applied.take() {
            Some(applied) => applied,
            None => Arc::new(self.read_services()?),
        };
        let mut numbers = match self.served.numbers.take() {
            Some(numbers) => numbers,
            None => Numbers::after(self.datapath()?.service_number()?),
        };
        let Plan { steps, next } = self.served.planner.plan(&old, &services, &mut numbers);
        self.served.numbers = Some(numbers);
        if let Err(error) = self.room_for(&old, &steps) {
            self.served.applied = Some(old);
            return Err(error);
        }
        let mut is_first = false;
        for step in &steps {
            is_first |= matches!(step, Step::WriteFrontend(frontend, _) if !old.frontends.contains_key(frontend));
            self.make_service(step)?;
        }
        if is_first {
            // Flows that went there before there was a service are judged again, and go to a backend.
            self.datapath()?.bump_epoch()?;
        }
        let known = old.problems().collect::<Vec<_>>();
        for problem in next.problems().filter(|problem| !known.contains(problem)) {
            tracing::warn!(service = %problem.service, problem = %problem.what, "the service is not served as it is written");
        }
        self.served.applied = Some(next);
        if !steps.is_empty() {
            tracing::debug!(writes = steps.len(), "the services are in the kernel");
        }
        let published = self.state.published();
        if !steps.is_empty() || published.services != services {
            self.publish_services(services)?;
        }
        Ok(())
    }

    /// Forgets what is known of the rows: they are read back at the next change.
    pub(super) fn forget_services(&mut self) {
        self.served = Served::default();
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

    /// Makes room for what a change writes, before what it removes is gone.
    fn room_for(&mut self, old: &Compiled, steps: &[Step]) -> Result<(), KernelError> {
        let of_v4 = old.frontends.keys().filter(|frontend| frontend.address.is_ipv4()).count();
        let mut rows = BTreeMap::from([
            (map::SERVICES_V4, of_v4),
            (map::SERVICES_V6, old.frontends.len() - of_v4),
            (map::BACKENDS, old.backends.len()),
            (map::CHUNKS, old.chunks().count()),
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
        for Room { map, rows: room, limit } in self.datapath()?.room() {
            let Some(rows) = rows.get(map).copied() else { continue };
            if rows > limit as usize {
                return Err(KernelError::TooLarge { map, rows, limit });
            }
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

fn key(frontend: &Frontend) -> FrontendKey {
    (frontend.address, frontend.port, frontend.protocol.number())
}
