//! CHECK of the agent, where something else has changed what the kernel holds for an endpoint.

mod node;

use node::{Node, POLICY, SHOP, SIZES, node};
use palisade_datapath_core::abi::{Backend, Direction, Endpoint, IDENTITY_ANY, LocalPod, PolicyEntry, PolicyKey, ServiceEntry};
use palisade_loader::{Datapath, PinDir};
use palisade_protocol::{Call, ClientError, EndpointSpec, EndpointStatus, ErrorKind, HostPort, Reply, Transport};

/// A node with `shop/web`, to which TCP 8080 of the node leads: what the agent knows of it, and the tables.
fn with_web(test: impl FnOnce(&Node<'_>, &EndpointStatus, &mut Datapath) + Send) {
    node(&[("shop.yaml", SHOP), ("policy.yaml", POLICY)], |node| {
        node.start();
        node.add("shop", "web");
        let endpoint = || match node.call(Call::Endpoints) {
            Ok(Reply::Endpoints(mut endpoints)) => endpoints.remove(0),
            other => panic!("no endpoints: {other:?}"),
        };
        let port = |number: u16| number.try_into().unwrap();
        let host_port = HostPort { host_port: port(8080), container_port: port(80), protocol: Transport::Tcp, host_ip: None };
        let spec = EndpointSpec { host_ports: vec![host_port], ..endpoint().spec };
        assert!(matches!(node.call(Call::Realise(spec)), Ok(Reply::Done)));
        node.wait("the host port is served", |status| status.counts.frontends == 1);
        // The programs are loaded once more, over the tables that the agent writes.
        let mut datapath = Datapath::open(&PinDir::new(node.pin_dir()), &SIZES).unwrap();
        finds_nothing(node, &endpoint());
        test(node, &endpoint(), &mut datapath);
        finds_nothing(node, &endpoint());
        node.remove("shop", "web");
    });
}

fn check(node: &Node<'_>, endpoint: &EndpointStatus) -> Result<Reply, ClientError> {
    node.call(Call::Check(endpoint.spec.attachment.clone()))
}

fn finds_nothing(node: &Node<'_>, endpoint: &EndpointStatus) {
    let checked = check(node, endpoint);
    assert!(matches!(checked, Ok(Reply::Done)), "{checked:?}");
}

fn finds(node: &Node<'_>, endpoint: &EndpointStatus, said: &str) {
    match check(node, endpoint) {
        Err(ClientError::Refused(failure)) => {
            assert!(failure.kind == ErrorKind::Differs && failure.message.contains(said), "{said}: {failure}");
        }
        other => panic!("{said}: {other:?}"),
    }
}

#[test]
fn check_names_an_endpoint_s_own_row_that_is_another_or_gone() {
    with_web(|node, endpoint, datapath| {
        let index = endpoint.spec.host_index;
        let row = datapath.endpoints.get(&index).unwrap().unwrap();
        let altered = [
            Endpoint { subject: row.subject + 1, ..row },
            Endpoint { audit: row.audit + 1, ..row },
            Endpoint { pod_mac: [2; 6], ..row },
            Endpoint { host_mac: [2; 6], ..row },
            Endpoint { ipv4: [192, 0, 2, 9], ..row },
            Endpoint { ipv6: [0xfd; 16], ..row },
        ];
        for row in altered {
            datapath.endpoints.insert(&index, &row).unwrap();
            finds(node, endpoint, "the endpoint's row");
        }
        datapath.endpoints.remove(&index).unwrap();
        finds(node, endpoint, "the endpoint's row");
        datapath.endpoints.insert(&index, &row).unwrap();
    });
}

#[test]
fn check_names_the_row_and_the_identity_of_an_address_that_are_others_or_gone() {
    with_web(|node, endpoint, datapath| {
        assert_eq!(endpoint.spec.addresses.len(), 2);
        for address in &endpoint.spec.addresses {
            let (row, identity) = (datapath.local.get(address).unwrap().unwrap(), datapath.addresses.get(address).unwrap().unwrap());
            let said = format!("the local row of {address}");
            for row in [LocalPod { ifindex: row.ifindex + 1, ..row }, LocalPod { pod_mac: [2; 6], ..row }] {
                datapath.local.insert(address, &row).unwrap();
                finds(node, endpoint, &said);
            }
            datapath.local.remove(address).unwrap();
            finds(node, endpoint, &said);
            datapath.local.insert(address, &row).unwrap();

            let said = format!("the identity of {address}");
            datapath.addresses.insert(address, &(identity + 1)).unwrap();
            finds(node, endpoint, &said);
            datapath.addresses.remove(address).unwrap();
            finds(node, endpoint, &said);
            datapath.addresses.insert(address, &identity).unwrap();
        }
    });
}

#[test]
fn check_names_the_rows_of_a_policy_that_are_others_or_gone() {
    with_web(|node, endpoint, datapath| {
        for (direction, name) in [(Direction::Ingress, "ingress"), (Direction::Egress, "egress")] {
            let key = PolicyKey::new(endpoint.subject, direction, IDENTITY_ANY);
            let row = datapath.policy.get(&key).unwrap().unwrap();
            let said = format!("the {name} rows of its policy");
            datapath.policy.insert(&key, &PolicyEntry { reason: row.reason + 1, ..row }).unwrap();
            finds(node, endpoint, &said);
            datapath.policy.remove(&key).unwrap();
            finds(node, endpoint, &said);
            datapath.policy.insert(&key, &row).unwrap();
        }
    });
}

#[test]
fn check_names_the_rows_of_a_host_port_that_are_others_or_gone() {
    with_web(|node, endpoint, datapath| {
        let frontend = ("192.0.2.1".parse().unwrap(), 8080, 6);
        let row = datapath.services.get(frontend).unwrap().unwrap();
        datapath.services.insert(frontend, &ServiceEntry { affinity: 7, ..row }).unwrap();
        finds(node, endpoint, "the row of the host port at 192.0.2.1:8080/TCP");
        datapath.services.remove(frontend).unwrap();
        finds(node, endpoint, "the row of the host port at 192.0.2.1:8080/TCP");
        datapath.services.insert(frontend, &row).unwrap();

        let said = "what stands behind the host port at 192.0.2.1:8080/TCP";
        let (backends, chunks) = (datapath.backends.rows().unwrap(), datapath.chunks.rows().unwrap());
        assert!(!backends.is_empty() && !chunks.is_empty());
        for (number, row) in &backends {
            datapath.backends.insert(number, &Backend { port: [0, 81], ..*row }).unwrap();
            finds(node, endpoint, said);
            datapath.backends.remove(number).unwrap();
            finds(node, endpoint, said);
            datapath.backends.insert(number, row).unwrap();
        }
        for (key, slots) in &chunks {
            datapath.chunks.remove(key).unwrap();
            finds(node, endpoint, said);
            datapath.chunks.insert(key, slots).unwrap();
        }
    });
}
