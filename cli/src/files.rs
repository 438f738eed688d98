//! Manifests in place of an agent: compiled here, with no cluster and no privileges.

use crate::error::CliError;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use palisade_k8s::index::Index;
use palisade_k8s::manifest::{self, Manifest, Note};
use palisade_policy::model::{Model, Node};
use palisade_policy::{Compiled, Numbers, compile};
use palisade_protocol::{Explained, Failure, FlowQuery};
use palisade_runtime::View;
use palisade_service::model::Services;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

/// Where pods of files get made-up addresses: ranges for benchmarks (RFC 2544, RFC 5180), which hardly any policy names.
const PODS_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
const PODS_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0);
/// Addresses of the node that all of them are on.
const NODE_V4: Ipv4Addr = Ipv4Addr::new(198, 19, 255, 254);
const NODE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 2, 0, 0xffff, 0, 0, 0, 1);
const NODE: &str = "node";

/// A directory of manifests, compiled for a node that all of its pods are on. Its Node objects are other nodes, as policy may mean them.
pub struct Files {
    model: Model,
    compiled: Compiled,
    numbers: Numbers,
    services: Services,
    served: palisade_service::Compiled,
    notes: Vec<String>,
}

/// A sentence for each object that is there and has no effect, or another one than in a cluster, and for what of services leads to nobody.
/// A sub-directory is worth no word when it is the one where the expectations lie.
pub fn notes(manifest: &Manifest, index: &Index, expect: Option<&Path>) -> Vec<String> {
    let expected = |note: &&Note| expect.is_some_and(|file| note.kind == "directory" && file.parent() == Some(&note.place.file));
    let ignored = manifest.ignored.iter().filter(|note| !expected(note)).map(|note| format!("Ignored: {note}"));
    let declared = manifest.declared_pods();
    let on_node = declared.iter().filter(|pod| pod.host_network);
    let unwired = on_node.map(|pod| {
        let place = manifest.place("Pod", &pod.name);
        format!("Not wired: {place}: pod {} is on the node's network, where no policy of a pod holds", pod.name)
    });
    let astray =
        index.astray().into_iter().map(|astray| format!("Leads to nobody: {}: {astray}", manifest.place("Service", astray.service())));
    ignored.chain(unwired).chain(astray).collect()
}

impl Files {
    /// Reads and compiles a directory; the error names file, line and field of everything that is wrong.
    pub fn read(directory: &Path) -> Result<Self, CliError> {
        let manifest = manifest::read(directory).map_err(|errors| CliError::Input(errors.to_string()))?;
        let mut index = Index::new();
        manifest.feed(&mut index);
        index.set_host(NODE, &[]);
        let ranges = [Ipv4Net::new(PODS_V4, 16).map(IpNet::from).ok(), Ipv6Net::new(PODS_V6, 64).map(IpNet::from).ok()];
        let node =
            Node { addresses: vec![NODE_V4.into(), NODE_V6.into()], pod_ranges: ranges.into_iter().flatten().collect(), ..Node::default() };
        let mut nodes: BTreeMap<String, Node> =
            index.node_names().filter_map(|name| Some((name.clone(), index.node(name)?.clone()))).collect();
        nodes.insert(NODE.to_owned(), node);
        index.set_nodes(nodes);
        let wired = manifest.declared_pods().into_iter().filter(|pod| !pod.host_network);
        for (number, pod) in (1_u32..u32::from(u16::MAX)).zip(wired) {
            let v4 = Ipv4Addr::from(u32::from(PODS_V4) + number);
            let v6 = Ipv6Addr::from(u128::from(PODS_V6) + u128::from(number));
            index.set_local_addresses(&pod.name, None, vec![IpAddr::V4(v4), IpAddr::V6(v6)]);
        }
        let model = index.model();
        let mut numbers = Numbers::default();
        let compiled = compile(&model, &model.pods.keys().cloned().collect(), &mut numbers);
        index.derive_endpoints();
        let services = index.services();
        let served = palisade_service::compile(&services, &palisade_service::Compiled::default(), &mut palisade_service::Numbers::after(0));
        let notes = notes(&manifest, &index, None);
        Ok(Self { model, compiled, numbers, services, served, notes })
    }

    /// What of the files has no effect, a sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// What the policies say of a flow.
    pub fn ask(&self, query: &FlowQuery) -> Result<Explained, Failure> {
        let Self { model, compiled, numbers, services, served, .. } = self;
        palisade_runtime::explained(View { compiled, numbers, model, known: model, services, served }, query)
    }

    /// The names of the pods.
    pub fn pods(&self) -> String {
        let names: Vec<String> = self.model.pods.keys().map(ToString::to_string).collect();
        if names.is_empty() { "none".into() } else { names.join(", ") }
    }
}
