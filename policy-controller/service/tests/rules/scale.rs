//! What grows with what.

use crate::judge::world::{World, here, ready, service, slice};
use palisade_policy::model::ObjectName;
use palisade_service::model::{Service, ServicePort, Services, Slice};
use palisade_service::{Compiled, Numbers, Planner, Step};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

fn pod(number: u32) -> IpAddr {
    Ipv4Addr::from(0x0a00_0000 + number).into()
}

/// Services of three endpoints, one in ten of them with a node port, over a hundred namespaces.
fn cluster(count: u32) -> Services {
    let mut services = World::of(service(&[]), []).services;
    services.services.clear();
    services.slices.clear();
    for index in 0..count {
        let name = ObjectName::new(format!("team-{}", index % 100), format!("service-{index}"));
        let ports =
            vec![ServicePort { node_port: (index % 10 == 0).then(|| 30_000 + (index / 10) as u16), ..service(&[]).ports[0].clone() }];
        let cluster_ips = vec![Ipv4Addr::from(0x0a60_0000 + index).into()];
        services.services.insert(name.clone(), Arc::new(Service { cluster_ips, ports, ..service(&[]) }));
        let endpoint = |number| palisade_service::model::Endpoint { address: pod(3 * index + number), ..ready("10.0.0.1") };
        services.slices.insert(name, Arc::new(BTreeMap::from([("slice".to_owned(), slice((0..3).map(endpoint)))])));
    }
    services
}

#[test]
fn a_change_of_one_service_writes_what_it_touches_and_not_the_cluster() {
    let mut services = cluster(10_000);
    let (mut planner, mut numbers) = (Planner::new(), Numbers::default());
    let started = Instant::now();
    let first = planner.plan(&Compiled::default(), &services, &mut numbers);
    println!("10 000 services of 3 endpoints: {} writes, {:?}", first.steps.len(), started.elapsed());
    let mut old = first.next;
    for round in 0..5_u32 {
        // None of those with a node port, which have rows of their own for it.
        let index = 4_242 + 990 * round;
        let name = ObjectName::new(format!("team-{}", index % 100), format!("service-{index}"));
        let slices: &mut BTreeMap<String, Slice> = services.slices.edit(&name).expect("the service's slices");
        slices.values_mut().for_each(|slice| slice.endpoints[1].address = pod(0x00f0_0000 + round));
        let started = Instant::now();
        let plan = planner.plan(&old, &services, &mut numbers);
        println!("one EndpointSlice changed: {} writes, {:?}", plan.steps.len(), started.elapsed());
        let frontends = plan.steps.iter().filter(|step| matches!(step, Step::WriteFrontend(..))).count();
        assert_eq!(frontends, 1);
        // The number, a backend, a part of a table, the frontend; the wait; a part and a backend that go.
        assert_eq!(plan.steps.len(), 7, "{:?}", plan.steps);
        old = plan.next;
    }
    let started = Instant::now();
    assert_eq!(planner.plan(&old, &services, &mut numbers).steps, []);
    println!("nothing changed: {:?}", started.elapsed());
    let (read, mut numbers) = (
        Compiled::read(
            old.frontends.iter().map(|(frontend, entry)| (*frontend, *entry)),
            old.backends.iter().map(|(number, backend)| (number.0, *backend)),
            old.chunks(),
        ),
        Numbers::after(numbers.highest()),
    );
    let started = Instant::now();
    assert_eq!(Planner::new().plan(&read, &services, &mut numbers).steps, []);
    println!("an agent that starts again: {:?}", started.elapsed());
}

#[test]
fn a_service_of_many_endpoints_changes_its_table_and_one_backend() {
    let endpoints = |first: u32| {
        (first..first + 1_000).map(|number| here(palisade_service::model::Endpoint { address: pod(number), ..ready("10.0.0.1") }))
    };
    let [before, after] = [0, 1].map(|first| World::of(service(&["10.96.0.1"]), [slice(endpoints(first))]).services);
    let (mut planner, mut numbers) = (Planner::new(), Numbers::default());
    let first = planner.plan(&Compiled::default(), &before, &mut numbers);
    let started = Instant::now();
    let plan = planner.plan(&first.next, &after, &mut numbers);
    println!("one of 1 000 endpoints of a service changed: {} writes, {:?}", plan.steps.len(), started.elapsed());
    let backends = plan.steps.iter().filter(|step| matches!(step, Step::WriteBackend(..) | Step::RemoveBackend(_)));
    assert_eq!(backends.count(), 2);
}
