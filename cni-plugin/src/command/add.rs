use super::addresses::{self, Given};
use super::call::{Call, Pod};
use super::record::{self, Record};
use super::undo::Undo;
use super::wire::{self, Wire};
use crate::spec::{CniResult, Code, Demand, Error, Interface, Ip, Route};
use ipnet::IpNet;
use palisade_loader::{LoaderError, PinDir, attach_endpoint, detach_endpoint};
use palisade_protocol::{EndpointSpec, NodeConfig};
use std::cell::Cell;
use std::path::Path;

/// ADD: connects a pod, and returns when its policy is in the kernel and its links are up. When a step fails, all is
/// as it was before.
pub(super) fn add(call: &Call, pod: &Pod, demand: &Demand) -> Result<CniResult, Error> {
    let previous = call.config.previous.clone().map(CniResult::parse).transpose()?;
    call.open_namespace()?;
    let _lock = call.lock()?;
    let node = call.agent().node()?;
    let used = Cell::new(false);
    let mut undo = Undo::default();
    match connect(call, pod, demand, &node, &used, &mut undo) {
        Ok(ours) => {
            undo.forget();
            let mut result = previous.unwrap_or_default();
            result.append(ours);
            Ok(result)
        }
        Err(error) => Err(undo.after(error)),
    }
}

/// `used` says whether a packet of the pod's addresses can have been.
fn connect<'a>(
    call: &'a Call,
    pod: &Pod,
    demand: &Demand,
    node: &'a NodeConfig,
    used: &'a Cell<bool>,
    undo: &mut Undo<'a>,
) -> Result<CniResult, Error> {
    let owner = call.owner();
    let interface = &call.attachment.interface;
    let (namespace, path) = call.open_namespace()?;
    let pins = PinDir::from_abi_dir(&node.pin_dir);
    require_programs(&pins)?;
    Wire::require_free(&owner, &namespace)?;
    let given = addresses::give(call, demand, node, used, undo)?;
    let wire = Wire::create(&owner, &namespace, node.mtu, demand.mac)?;
    let (host_interface, host_index) = (wire.host_interface.clone(), wire.host_index);
    undo.remember("the interface", move || Wire::remove(&host_interface));
    Record::new(owner, host_index, &node.pin_dir)?.write(&call.config)?;
    undo.remember("the record", || Record::remove(&call.config, &call.owner()));
    undo.remember("the programs", move || detach_endpoint(&PinDir::from_abi_dir(&node.pin_dir), host_index).map_err(refused));
    attach_endpoint(&pins, &wire.host_interface, host_index).map_err(refused)?;
    wire.configure(interface, &namespace, &given.addresses)?;

    undo.remember("the endpoint's record", || record::remove_endpoint(&call.config, &call.owner()));
    // An agent that is gone needs not forget anything; one that hangs reads the records when it comes to itself.
    undo.remember("the endpoint", || {
        let _ = call.agent().release(&call.owner());
        Ok(())
    });
    call.agent().realise(EndpointSpec {
        attachment: call.attachment.clone(),
        namespace: pod.namespace.clone(),
        pod: pod.name.clone(),
        uid: pod.uid.clone(),
        host_interface: wire.host_interface.clone(),
        host_index,
        pod_mac: wire.pod_mac.to_string(),
        host_mac: wire.host_mac.to_string(),
        addresses: given.addresses.clone(),
        host_ports: demand.host_ports.clone(),
    })?;
    used.set(true);
    wire.raise(&given.addresses, &given.routes)?;
    Ok(result(call, path, node, &wire, given))
}

/// Before anything is made: without programs nothing may come up.
pub(super) fn require_programs(pins: &PinDir) -> Result<(), Error> {
    let missing = ["from_pod", "to_pod"].into_iter().find(|name| !pins.programs_dir().join(name).exists());
    missing.map_or(Ok(()), |_| Err(refused(LoaderError::ProgramsMissing { path: pins.programs_dir() })))
}

/// What the runtime is told.
fn result(call: &Call, namespace: &Path, node: &NodeConfig, wire: &Wire, given: Given) -> CniResult {
    let interface = |name: &str, mac: String, sandbox: Option<String>| Interface {
        name: name.to_owned(),
        mac: Some(mac),
        mtu: Some(node.mtu),
        sandbox,
        ..Interface::default()
    };
    CniResult {
        interfaces: vec![
            interface(&wire.host_interface, wire.host_mac.to_string(), None),
            interface(&call.attachment.interface, wire.pod_mac.to_string(), Some(namespace.display().to_string())),
        ],
        ips: given
            .addresses
            .into_iter()
            .map(|address| Ip {
                address: IpNet::from(address),
                gateway: Some(wire::gateway(address)),
                interface: Some(1),
                unknown: serde_json::Map::new(),
            })
            .collect(),
        routes: given
            .routes
            .into_iter()
            .map(|dst| Route { dst, gw: Some(wire::gateway(dst.addr())), unknown: serde_json::Map::new() })
            .collect(),
        unknown: given.others,
    }
}

/// A failure of the loader, with its causes.
pub(super) fn refused(error: LoaderError) -> Error {
    let code = if matches!(error, LoaderError::ProgramsMissing { .. }) { Code::TryAgain } else { Code::Datapath };
    let mut message = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        message = format!("{message}: {error}");
        cause = error.source();
    }
    Error::new(code, message)
}
