//! `palisade endpoint`.

use crate::agent;
use crate::arguments::Asking;
use crate::error::CliError;
use crate::print;
use crate::table::{Paint, Table};
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
    let mut table = Table::new(["POD", "ADDRESSES", "INTERFACE", "SUBJECT", "INGRESS ISOLATED BY", "EGRESS ISOLATED BY"]);
    for endpoint in endpoints {
        let spec = &endpoint.spec;
        table.row([
            format!("{}/{}", spec.namespace, spec.pod).into(),
            spec.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ").into(),
            format!("{} ({})", spec.host_interface, spec.host_index).into(),
            endpoint.subject.to_string().into(),
            policies(&endpoint.ingress_isolated_by).into(),
            policies(&endpoint.egress_isolated_by).into(),
        ]);
    }
    table.render(paint)
}

fn policies(names: &[String]) -> String {
    if names.is_empty() { "-".into() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_protocol::{Attachment, EndpointSpec};

    #[test]
    fn an_endpoint_is_one_row_with_both_addresses_and_who_isolates_it() {
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
            },
            subject: 3,
            ingress_isolated_by: vec!["backend/a".into(), "backend/b".into()],
            egress_isolated_by: vec![],
        };
        let text = rendered(&[endpoint], Paint::none());
        assert_eq!(
            text.lines().nth(1).unwrap().split_whitespace().collect::<Vec<_>>(),
            ["backend/api", "10.244.0.2", "fd00::2", "pal1", "(4)", "3", "backend/a,", "backend/b", "-"]
        );
    }
}
