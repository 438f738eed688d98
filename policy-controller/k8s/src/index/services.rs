//! Services, their endpoints, and where they are asked for.

use super::{Index, Record, differ};
use crate::convert::{Family, ServiceParts, SliceParts};
use crate::endpoints::{self, Astray};
use crate::problem::FieldError;
use ipnet::IpNet;
use palisade_policy::model::ObjectName;
use palisade_service::model::{Place, Service, ServiceKind, Services, Slice};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// The label of a Node that names its zone.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// What is known of services.
#[derive(Clone, Debug, Default)]
pub(super) struct ServiceRecords {
    services: BTreeMap<ObjectName, Record<ServiceParts>>,
    /// What is known of each EndpointSlice beside what the model holds of it.
    slices: BTreeMap<ObjectName, SliceRecord>,
    /// The services whose slices in the model are no objects, but were derived.
    derived: BTreeSet<ObjectName>,
    /// Cluster IPs of services that were given some here; kept as long as the service is known.
    assigned: BTreeMap<ObjectName, Vec<IpAddr>>,
    /// What is known now: kept with each change of the above, so that to ask for it costs nothing.
    model: Services,
}

#[derive(Clone, Debug, PartialEq)]
struct SliceRecord {
    uid: Option<String>,
    service: Option<ObjectName>,
    refused: Option<FieldError>,
}

impl Index {
    /// The services, their endpoints and this node, as far as they are known now. It shares what it has in common with those that were
    /// asked for before.
    pub fn services(&self) -> Services {
        self.services.model.clone()
    }

    /// Derives the EndpointSlices of each service that has a selector and of which no EndpointSlice is known, from the pods that are known
    /// now. For a source without a controller that makes them, after each change. Tells whether anything changed.
    ///
    /// A slice that comes later takes the place of those that were derived; when the last one of a service goes, the next call derives
    /// them again.
    pub fn derive_endpoints(&mut self) -> bool {
        let mut derived = BTreeMap::new();
        for (name, record) in self.without_slice_objects() {
            let slices = endpoints::derive(&name.name, &record.value, self.candidates(&name.namespace));
            if !slices.is_empty() {
                derived.insert(name.clone(), slices);
            }
        }
        self.services.set_derived(derived)
    }

    /// What of the services whose endpoints are derived leads to nobody.
    pub fn astray(&self) -> Vec<Astray> {
        let of =
            |(name, record): (&ObjectName, &Record<ServiceParts>)| endpoints::astray(name, &record.value, self.candidates(&name.namespace));
        self.without_slice_objects().flat_map(of).collect()
    }

    /// The services that have a selector, and no EndpointSlice that is known.
    fn without_slice_objects(&self) -> impl Iterator<Item = (&ObjectName, &Record<ServiceParts>)> {
        let services = self.services.services.iter();
        services.filter(|(name, record)| !record.value.selector.is_empty() && !self.services.has_slice_objects(name))
    }

    /// Gives each service that has cluster IPs by its kind one of `ranges` for each of its families of which its object names none. For
    /// a source without an API server that does so, after each change. Tells whether anything changed.
    ///
    /// What a service was given it keeps as long as it is known, wants the family and names no address of it, and the address is of
    /// `ranges` and neither written in another service nor a node's. The others are served by order of name: each gets the first free
    /// address, the ranges in their order and each from its beginning; those that mean a network are passed over. Where the ranges are
    /// used up, or there is none of a family, a service goes without.
    pub fn assign_cluster_ips(&mut self, ranges: &[IpNet]) -> bool {
        let written = self.services.services.values().flat_map(|record| {
            let service = &record.value.service;
            service.cluster_ips.iter().chain(&service.external)
        });
        let of_nodes = self.nodes.values().flat_map(|record| &record.value.addresses);
        let mut taken: BTreeSet<IpAddr> = written.chain(of_nodes).copied().collect();
        let usable = |address: &IpAddr| !taken.contains(address) && ranges.iter().any(|range| is_given_of(range, *address));
        let mut assigned = BTreeMap::new();
        for (name, record) in &self.services.services {
            let kept: Vec<IpAddr> = self.services.given(name, &record.value).filter(usable).collect();
            if !kept.is_empty() {
                assigned.insert(name.clone(), kept);
            }
        }
        taken.extend(assigned.values().flatten());
        let mut free_v4 = addresses_of(ranges, Family::V4).filter(|address| !taken.contains(address));
        let mut free_v6 = addresses_of(ranges, Family::V6).filter(|address| !taken.contains(address));
        for (name, record) in &self.services.services {
            for family in wanted(&record.value) {
                if assigned.get(name).is_some_and(|kept| kept.iter().any(|address| Family::of(*address) == family)) {
                    continue;
                }
                let free = match family {
                    Family::V4 => free_v4.next(),
                    Family::V6 => free_v6.next(),
                };
                if let Some(free) = free {
                    assigned.entry(name.clone()).or_default().push(free);
                }
            }
        }
        self.services.set_assigned(assigned)
    }

    pub(super) fn service_names(&self) -> impl Iterator<Item = &ObjectName> {
        self.services.services.keys()
    }

    pub(super) fn slice_names(&self) -> impl Iterator<Item = &ObjectName> {
        self.services.slices.keys()
    }

    /// What is wrong with services.
    pub(super) fn refused_services(&self) -> impl Iterator<Item = (&ObjectName, &Option<FieldError>)> {
        self.services.services.iter().map(|(name, record)| (name, &record.refused))
    }

    /// What is wrong with EndpointSlices.
    pub(super) fn refused_slices(&self) -> impl Iterator<Item = (&ObjectName, &Option<FieldError>)> {
        self.services.slices.iter().map(|(name, record)| (name, &record.refused))
    }

    pub(super) fn set_service(&mut self, name: ObjectName, record: Record<ServiceParts>) -> bool {
        let changed = self.services.services.get(&name) != Some(&record);
        if changed {
            self.services.services.insert(name.clone(), record);
            self.services.bring_up(&name);
        }
        changed
    }

    pub(super) fn delete_service(&mut self, name: &ObjectName, uid: Option<&str>) -> bool {
        let known = self.services.services.get(name).and_then(|record| record.value.service.uid.as_deref());
        !differ(known, uid) && self.remove_service(name)
    }

    /// Forgets a service. Its slices are objects of their own, and stay until they go.
    pub(super) fn remove_service(&mut self, name: &ObjectName) -> bool {
        let known = self.services.services.remove(name).is_some();
        self.services.assigned.remove(name);
        self.services.bring_up(name);
        self.services.drop_derived(name);
        known
    }

    /// Takes what an EndpointSlice says, beside what it says of the API server.
    pub(super) fn set_slice(&mut self, name: ObjectName, uid: Option<String>, converted: Record<SliceParts>) -> bool {
        let Record { value: SliceParts { service, slice }, refused } = converted;
        let record = SliceRecord { uid, service, refused };
        let before = self.services.slices.get(&name);
        let slice_before = record.service.as_ref().and_then(|service| self.services.slice(service, &name.name));
        if before == Some(&record) && (record.service.is_none() || slice_before == Some(&slice)) {
            return false;
        }
        let service_before = before.and_then(|before| before.service.clone());
        if let Some(left) = service_before.filter(|before| Some(before) != record.service.as_ref()) {
            self.services.take_slice(&left, &name.name);
        }
        if let Some(service) = &record.service {
            self.services.put_slice(service, &name.name, slice);
        }
        self.services.slices.insert(name, record);
        true
    }

    pub(super) fn delete_slice(&mut self, name: &ObjectName, uid: Option<&str>) -> bool {
        let known = self.services.slices.get(name).and_then(|record| record.uid.as_deref());
        !differ(known, uid) && self.remove_slice(name)
    }

    /// Forgets an EndpointSlice, also where it told of the API server.
    pub(super) fn remove_slice(&mut self, name: &ObjectName) -> bool {
        let of_api_server = self.set_api_servers(name.clone(), None);
        let Some(record) = self.services.slices.remove(name) else { return of_api_server };
        if let Some(service) = &record.service {
            self.services.take_slice(service, &name.name);
        }
        true
    }

    /// Brings the place where services are asked for up to what is known of this node.
    pub(super) fn bring_up_place(&mut self) {
        let host = &self.model.host;
        let node = self.model.nodes.get(host);
        let zone = node.and_then(|node| node.labels.get(ZONE_LABEL)).filter(|zone| !zone.is_empty());
        let addresses = node.iter().flat_map(|node| &node.addresses).copied().collect();
        self.services.model.place = Place { node: host.clone(), zone: zone.cloned(), addresses };
    }
}

impl ServiceRecords {
    /// Whether a service has EndpointSlices that somebody has told.
    fn has_slice_objects(&self, service: &ObjectName) -> bool {
        self.model.slices.contains_key(service) && !self.derived.contains(service)
    }

    fn slice(&self, service: &ObjectName, name: &str) -> Option<&Slice> {
        self.model.slices.get(service)?.get(name)
    }

    fn put_slice(&mut self, service: &ObjectName, name: &str, slice: Slice) {
        self.drop_derived(service);
        match self.model.slices.edit(service) {
            Some(slices) => drop(slices.insert(name.to_owned(), slice)),
            None => drop(self.model.slices.insert(service.clone(), BTreeMap::from([(name.to_owned(), slice)]))),
        }
    }

    fn take_slice(&mut self, service: &ObjectName, name: &str) {
        let Some(slices) = self.model.slices.edit(service) else { return };
        slices.remove(name);
        if slices.is_empty() {
            self.model.slices.remove(service);
        }
    }

    fn drop_derived(&mut self, service: &ObjectName) {
        if self.derived.remove(service) {
            self.model.slices.remove(service);
        }
    }

    fn set_derived(&mut self, derived: BTreeMap<ObjectName, BTreeMap<String, Slice>>) -> bool {
        let gone: Vec<ObjectName> = self.derived.iter().filter(|name| !derived.contains_key(*name)).cloned().collect();
        for name in &gone {
            self.drop_derived(name);
        }
        let mut changed = !gone.is_empty();
        for (name, slices) in derived {
            if self.model.slices.get(&name).is_none_or(|known| **known != slices) {
                self.model.slices.insert(name.clone(), slices);
                self.derived.insert(name);
                changed = true;
            }
        }
        changed
    }

    /// What a service was given here and still lacks otherwise.
    fn given(&self, name: &ObjectName, parts: &ServiceParts) -> impl Iterator<Item = IpAddr> {
        let families: Vec<Family> = wanted(parts).collect();
        let given = self.assigned.get(name).map(Vec::as_slice).unwrap_or_default();
        given.iter().copied().filter(move |address| families.contains(&Family::of(*address)))
    }

    fn set_assigned(&mut self, assigned: BTreeMap<ObjectName, Vec<IpAddr>>) -> bool {
        let before = std::mem::replace(&mut self.assigned, assigned);
        let names: BTreeSet<ObjectName> = before.keys().chain(self.assigned.keys()).cloned().collect();
        let different: Vec<ObjectName> = names.into_iter().filter(|name| before.get(name) != self.assigned.get(name)).collect();
        for name in &different {
            self.bring_up(name);
        }
        !different.is_empty()
    }

    /// Brings the model of a service up to what is known of it.
    fn bring_up(&mut self, name: &ObjectName) {
        let Some(parts) = self.services.get(name).map(|record| &record.value) else {
            self.model.services.remove(name);
            return;
        };
        let mut service: Service = parts.service.clone();
        service.cluster_ips.extend(self.given(name, parts));
        service.cluster_ips.sort_by_key(|address| parts.families.iter().position(|family| *family == Family::of(*address)));
        self.model.services.insert(name.clone(), Arc::new(service));
    }
}

/// The families of which a service is to have a cluster IP, and of which its object names none.
fn wanted(parts: &ServiceParts) -> impl Iterator<Item = Family> {
    let ServiceParts { service, families, .. } = parts;
    families.iter().copied().filter(move |family| {
        let has = service.cluster_ips.iter().any(|address| Family::of(*address) == *family);
        service.kind == ServiceKind::Addressed && !has
    })
}

/// The addresses of a family in `ranges` that mean no network and nobody in it at once.
fn addresses_of(ranges: &[IpNet], family: Family) -> impl Iterator<Item = IpAddr> {
    let of_family = move |range: &&IpNet| Family::of(range.addr()) == family;
    ranges.iter().filter(of_family).flat_map(|range| range.hosts().filter(move |address| is_given_of(range, *address)))
}

/// Whether an address of a range is given: one that means no network, and nobody in it at once.
fn is_given_of(range: &IpNet, address: IpAddr) -> bool {
    // In IPv6 the first one means the routers of the network; the last one is as good as any.
    let meant = range.prefix_len() + 1 < range.max_prefix_len();
    let means_all = range.addr().is_ipv4() && address == range.broadcast();
    range.contains(&address) && !(meant && (address == range.network() || means_all))
}
