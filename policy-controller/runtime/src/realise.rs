//! What `palisade-cni` asks: the node's configuration, an endpoint realised, released, compared.

use crate::agent::Agent;
use crate::config::Source;
use crate::kernel::{KernelError, pod_name};
use crate::problem::Part;
use palisade_cni::link::MacAddress;
use palisade_k8s::index::Realisable;
use palisade_loader::LoaderError;
use palisade_policy::model::ObjectName;
use palisade_protocol::{Attachment, EndpointSpec, ErrorKind, Failure, HostPort, NodeConfig, Release, is_interface_name};
use std::time::Duration;

/// How long a pod may be unknown: the container runtime can be faster than the watch.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a pod of this node gets.
///
/// # Errors
/// [`ErrorKind::TryAgain`] until programs are pinned and the ranges are known.
pub fn node(agent: &Agent) -> Result<NodeConfig, Failure> {
    for part in [Part::Datapath, Part::Node] {
        if let Some(problem) = agent.state.problems.of(part) {
            return Err(try_again(format!("the agent is not ready: {part}: {problem}")));
        }
    }
    agent.state.node_config().ok_or_else(|| try_again("the agent is not ready: the node's pod ranges are not known yet"))
}

/// Puts the endpoint's policy into the kernel. Returns when every packet of the pod meets it.
///
/// # Errors
/// [`ErrorKind::TryAgain`] when the agent is not ready, the pod is not known, the API server cannot be asked or a table
/// is full; [`ErrorKind::Invalid`] when the request can never succeed.
pub async fn realise(agent: &Agent, spec: EndpointSpec) -> Result<(), Failure> {
    validate(&spec)?;
    if let Some(problem) = agent.state.problems.of(Part::Datapath) {
        return Err(try_again(format!("the agent is not ready: {}: {problem}", Part::Datapath)));
    }
    tokio::time::timeout(PATIENCE, known(agent, &pod_name(&spec), spec.uid.as_deref()))
        .await
        .map_err(|_| try_again(waited_for(agent, &spec)))??;
    let (pod, addresses) = (pod_name(&spec), spec.addresses.clone());
    let realised = agent.kernel.run(|kernel| kernel.realise(spec)).await;
    realised.map_err(|error| failure(&error))?;
    tracing::info!(%pod, ?addresses, "endpoint realised");
    Ok(())
}

/// Waits until everything was read once and the pod is known as it is now.
async fn known(agent: &Agent, pod: &ObjectName, uid: Option<&str>) -> Result<(), Failure> {
    let mut changes = agent.state.changes();
    loop {
        changes.borrow_and_update();
        if agent.state.index().synced() {
            break;
        }
        let _ = changes.changed().await;
    }
    // What the watch has brought may be older than what the user has just applied.
    if let Source::Kubernetes { .. } = agent.state.config.source {
        let reader = agent.reader.get().ok_or_else(|| try_again("the API server cannot be asked yet"))?;
        let read = reader.read_afresh(&agent.state, pod).await;
        read.map_err(|error| try_again(format!("pod {pod} and its policies cannot be read afresh: {error}")))?;
    }
    loop {
        changes.borrow_and_update();
        match agent.state.index().pod_ready_to_realise(pod, uid) {
            Realisable::Ready => return Ok(()),
            Realisable::HostNetwork => return Err(invalid(format!("pod {pod} uses the host's network: there is nothing to realise"))),
            Realisable::Finished => return Err(invalid(format!("pod {pod} has finished"))),
            Realisable::Unknown | Realisable::NamespaceUnknown | Realisable::OtherUid { .. } | Realisable::OtherNode { .. } => {}
        }
        let _ = changes.changed().await;
    }
}

/// What a request has waited for in vain.
fn waited_for(agent: &Agent, spec: &EndpointSpec) -> String {
    let pod = pod_name(spec);
    let index = agent.state.index();
    if !index.synced() {
        let kinds: Vec<String> = index.not_synced().iter().map(ToString::to_string).collect();
        let problems = agent.state.problems.list().join("; ");
        return format!("the agent is not ready: not all objects of {} have been listed yet; {problems}", kinds.join(", "));
    }
    match index.pod_ready_to_realise(&pod, spec.uid.as_deref()) {
        Realisable::NamespaceUnknown => format!("namespace {} is not known yet", pod.namespace),
        Realisable::OtherNode { node } => format!("pod {pod} is on node {node}, and this is {}", agent.state.config.node),
        Realisable::OtherUid { known } => {
            format!(
                "pod {pod} is known with UID {known}, not {}: it was replaced, or the new one is not known yet",
                spec.uid.as_deref().unwrap_or("-")
            )
        }
        _ => format!("pod {pod} is not known to {}", agent.state.config.source),
    }
}

/// Forgets an endpoint; fine when it is unknown.
///
/// # Errors
/// [`ErrorKind::Internal`] when a row or record could not be removed.
pub async fn release(agent: &Agent, release: Release) -> Result<(), Failure> {
    let Release { attachment, host_interface } = release;
    if !attachment.is_valid() || !is_interface_name(&host_interface) {
        // No endpoint can have such a name, and no file is looked for under it.
        return Ok(());
    }
    agent.kernel.run(move |kernel| kernel.release(&attachment, &host_interface)).await.map_err(|error| failure(&error))
}

/// Compares what the kernel holds with what should be there.
///
/// # Errors
/// [`ErrorKind::NotFound`], [`ErrorKind::Differs`].
pub async fn check(agent: &Agent, attachment: Attachment) -> Result<(), Failure> {
    agent.kernel.run(move |kernel| kernel.check(&attachment)).await.map_err(|error| failure(&error))
}

/// Refuses a request that can never succeed, before anything is touched.
fn validate(spec: &EndpointSpec) -> Result<(), Failure> {
    if !spec.attachment.is_valid() {
        return Err(invalid("the container id or the interface name is none that CNI allows"));
    }
    if spec.namespace.is_empty() || spec.pod.is_empty() {
        return Err(invalid("the pod's namespace or name is missing (K8S_POD_NAMESPACE, K8S_POD_NAME in CNI_ARGS)"));
    }
    for mac in [&spec.pod_mac, &spec.host_mac] {
        mac.parse::<MacAddress>().map_err(|error| invalid(error.to_string()))?;
    }
    let family = |ipv6: bool| spec.addresses.iter().filter(|address| address.is_ipv6() == ipv6).count();
    if spec.addresses.is_empty() || family(false) > 1 || family(true) > 1 {
        return Err(invalid("a pod has one address or one of each family"));
    }
    if let Some(address) = spec.addresses.iter().find(|address| address.is_unspecified() || address.is_loopback() || address.is_multicast())
    {
        return Err(invalid(format!("{address} cannot be a pod's address")));
    }
    if let Some((one, other)) = HostPort::first_clash(&spec.host_ports) {
        return Err(invalid(format!("two host ports of the pod are one: {one}, {other}")));
    }
    if !is_interface_name(&spec.host_interface) {
        return Err(invalid(format!("'{}' is no name of an interface", spec.host_interface)));
    }
    if spec.host_index == 0 {
        return Err(invalid("0 is no index of an interface"));
    }
    Ok(())
}

fn failure(error: &KernelError) -> Failure {
    let kind = match error {
        KernelError::Closed(_)
        | KernelError::NotSynced(_)
        | KernelError::PodGone(_)
        | KernelError::Taken { .. }
        | KernelError::TooLarge { .. }
        | KernelError::Loader(LoaderError::TableFull { .. }) => ErrorKind::TryAgain,
        KernelError::Loader(_) | KernelError::Run(_) | KernelError::Link(_) => ErrorKind::Internal,
        KernelError::Invalid(_) => ErrorKind::Invalid,
        KernelError::Unknown(_) => ErrorKind::NotFound,
        KernelError::Differs(_) => ErrorKind::Differs,
    };
    Failure { kind, message: error.to_string() }
}

fn try_again(message: impl Into<String>) -> Failure {
    Failure { kind: ErrorKind::TryAgain, message: message.into() }
}

fn invalid(message: impl Into<String>) -> Failure {
    Failure { kind: ErrorKind::Invalid, message: message.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_protocol::Transport;

    fn host_port() -> HostPort {
        let port = |number: u16| number.try_into().unwrap();
        HostPort { host_port: port(8080), container_port: port(80), protocol: Transport::Tcp, host_ip: None }
    }

    fn spec() -> EndpointSpec {
        EndpointSpec {
            attachment: Attachment { container_id: "c1".to_owned(), interface: "eth0".to_owned() },
            namespace: "shop".to_owned(),
            pod: "web".to_owned(),
            uid: None,
            host_interface: "pal0".to_owned(),
            host_index: 7,
            pod_mac: "02:00:00:00:00:01".to_owned(),
            host_mac: "02:00:00:00:00:02".to_owned(),
            addresses: vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            host_ports: vec![host_port()],
        }
    }

    #[test]
    fn a_request_that_can_never_succeed_is_refused_before_anything_is_touched() {
        assert_eq!(validate(&spec()), Ok(()));
        let changes: [fn(&mut EndpointSpec); 10] = [
            |spec| spec.attachment.container_id = "../../etc".to_owned(),
            |spec| spec.attachment.interface = "a/b".to_owned(),
            |spec| spec.pod.clear(),
            |spec| spec.pod_mac = "nonsense".to_owned(),
            |spec| spec.addresses.clear(),
            |spec| spec.addresses.push("10.0.0.3".parse().unwrap()),
            |spec| spec.addresses = vec!["127.0.0.1".parse().unwrap()],
            |spec| spec.host_index = 0,
            |spec| spec.host_interface = "../pal0".to_owned(),
            |spec| spec.host_ports = vec![host_port(), host_port()],
        ];
        for change in changes {
            let mut spec = spec();
            change(&mut spec);
            assert_eq!(validate(&spec).unwrap_err().kind, ErrorKind::Invalid, "{spec:?}");
        }
    }
}
