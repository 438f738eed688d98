//! `palisade endpoint`.

use crate::agent;
use crate::arguments::Asking;
use crate::error::CliError;
use crate::print;
use crate::table::{Paint, Table, Tone};
use palisade_protocol::{Call, EndpointStatus, Reply};

/// Asks the agent for its endpoints and prints them, by pod.
pub fn list(arguments: &Asking) -> Result<(), CliError> {
    let mut endpoints = match agent::connect(&arguments.agent)?.call(Call::Endpoints)? {
        Reply::Endpoints(endpoints) => endpoints,
        other => return Err(agent::unexpected(&other)),
    };
    endpoints.sort_by(|a, b| key(a).cmp(&key(b)));
    print::answer(arguments.output, &endpoints, |paint| rendered(&endpoints, paint))
}

fn key(endpoint: &EndpointStatus) -> (&str, &str, &palisade_protocol::Attachment) {
    (&endpoint.spec.namespace, &endpoint.spec.pod, &endpoint.spec.attachment)
}

fn rendered(endpoints: &[EndpointStatus], paint: Paint) -> String {
    let mut table = Table::new(["POD", "ADDRESSES", "HOST PORTS", "INTERFACE", "SUBJECT", "INGRESS ISOLATED BY", "EGRESS ISOLATED BY"]);
    for endpoint in endpoints {
        let spec = &endpoint.spec;
        table.row([
            format!("{}/{}", spec.namespace, spec.pod).into(),
            listed(&spec.addresses, " ").into(),
            listed(&spec.host_ports, ", ").into(),
            format!("{} ({})", spec.host_interface, spec.host_index).into(),
            endpoint.subject.to_string().into(),
            listed(&endpoint.ingress_isolated_by, ", ").into(),
            listed(&endpoint.egress_isolated_by, ", ").into(),
        ]);
    }
    let mut text = table.render(paint);
    for problem in endpoints.iter().flat_map(|endpoint| &endpoint.problems) {
        text.push_str(&format!("{}\n", paint.text(Tone::Bad, problem)));
    }
    text
}

fn listed<T: ToString>(items: &[T], between: &str) -> String {
    if items.is_empty() { "-".into() } else { items.iter().map(ToString::to_string).collect::<Vec<_>>().join(between) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_protocol::{Attachment, EndpointSpec, HostPort, Transport};

    #[test]
    fn an_endpoint_is_one_row_with_both_addresses_its_host_ports_and_who_isolates_it() {
        let endpoint = EndpointStatus {
            spec: EndpointSpec {
                attachment: Attachment { container_id: "c1".into(), interface: "eth0".into() },
                namespace: "backend".into(),
                pod: "api".into(),
                uid: None,
                host_interface: "pal1".into(),
                host_index: 4,
                pod_mac: "02:00:00:00:00:01".into(),
                host_mac: "02:00:00:00:00:02".into(),
                addresses: vec!["10.244.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
                host_ports: vec![HostPort {
                    host_port: 8080.try_into().unwrap(),
                    container_port: 80.try_into().unwrap(),
                    protocol: Transport::Tcp,
                    host_ip: None,
                }],
            },
            subject: 3,
            ingress_isolated_by: vec!["backend/a".into(), "backend/b".into()],
            egress_isolated_by: vec![],
            problems: vec!["pod backend/api is not reached at 192.0.2.1:8080/TCP".into()],
        };
        let text = rendered(&[endpoint], Paint::none());
        assert_eq!(
            text.lines().nth(1).unwrap().split_whitespace().collect::<Vec<_>>(),
            ["backend/api", "10.244.0.2", "fd00::2", "8080/TCP", "to", "80", "pal1", "(4)", "3", "backend/a,", "backend/b", "-"]
        );
        assert_eq!(text.lines().nth(2), Some("pod backend/api is not reached at 192.0.2.1:8080/TCP"));
    }
}
