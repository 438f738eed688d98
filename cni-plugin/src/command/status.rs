use super::add::require_programs;
use super::agent::Agent;
use super::delegate::Delegate;
use super::record::Record;
use super::{call, host_interface, log, wire};
use crate::ipam::{IpamError, Owner};
use crate::link::Netlink;
use crate::spec::{Code, Error, NetworkConfig};
use palisade_loader::{PinDir, endpoint_attached};

/// STATUS: whether ADD can be served. Whatever else is wrong with the node goes to the log: a runtime that hears of an error has the whole
/// node count as not ready, where new pods would work.
pub(super) fn status(config: &NetworkConfig, delegate: Option<&Delegate>) -> Result<(), Error> {
    can_add(config).map_err(|error| not_available(config, &error.message))?;
    let Some(delegate) = delegate else { return Ok(()) };
    delegate.tell("STATUS").map_err(|error| match error.code {
        Code::OfAnother(_) | Code::InvalidEnvironment => error,
        _ => not_available(config, &error.message),
    })
}

/// Asks what an ADD needs before it makes anything.
fn can_add(config: &NetworkConfig) -> Result<(), Error> {
    let agent = Agent::new(config);
    let status = agent.status()?;
    if !status.refuses_pods.is_empty() {
        let message = format!("palisade-agent cannot connect pods now: {}", status.refuses_pods.join("; "));
        return Err(Error::new(Code::NotAvailable, message));
    }
    for problem in &status.problems {
        log(format!("palisade-agent connects pods, but is not ready: {problem}"));
    }
    let node = agent.node()?;
    require_programs(&PinDir::from_abi_dir(&node.pin_dir))?;
    if wire::usable_ranges(&node.ranges)?.is_empty() {
        return Err(IpamError::NoRange.into());
    }
    call::store(config).owners()?;
    Ok(())
}

/// What is connected stays enforced and connected without the agent. It suffers where it has lost its programs.
fn not_available(config: &NetworkConfig, message: &str) -> Error {
    match without_programs(config) {
        None => Error::new(Code::NotAvailable, message),
        Some(owner) => Error::new(
            Code::NotAvailableAndLimited,
            format!(
                "{message}; and {owner}, if no other, has lost its programs, without which it has neither policies nor services: was the \
                 BPF file system unmounted or emptied? Delete the pods of this node once the agent is ready"
            ),
        ),
    }
}

/// An attachment of this network whose links are up and whose programs are gone.
fn without_programs(config: &NetworkConfig) -> Option<Owner> {
    let host = Netlink::open().ok()?;
    Record::owners(config).ok()?.into_iter().filter(|owner| owner.network == config.name).find(|owner| {
        let link = host.link(&host_interface(owner)).ok().flatten();
        // One that is just being connected has none yet, and is down.
        let Some((record, link)) = Record::read(config, owner).zip(link.filter(|link| link.up)) else { return false };
        let attached = endpoint_attached(&PinDir::from_abi_dir(record.pin_dir), &link.name, record.host_index);
        link.index == record.host_index && matches!(attached, Ok(false))
    })
}
