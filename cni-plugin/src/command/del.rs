use super::add::refused;
use super::agent::Agent;
use super::call::{self, Call};
use super::delegate::Delegate;
use super::log;
use super::record::{self, Record};
use super::wire::Wire;
use crate::ipam::{IpamError, Owner};
use crate::link::Netlink;
use crate::spec::{Error, NetworkConfig};
use palisade_loader::{PinDir, detach_endpoint};
use std::collections::BTreeSet;
use std::time::SystemTime;

/// DEL: removes an attachment. What is missing already is no error; neither is an agent that does not answer.
pub(super) fn del(call: &Call) -> Result<(), Error> {
    disconnect(&call.config, &call.owner(), call.delegate.as_ref())
}

/// Removes all that an attachment can have left. Goes on after an error, so that as much as possible is gone, and
/// returns the first.
pub(super) fn disconnect(config: &NetworkConfig, owner: &Owner, delegate: Option<&Delegate>) -> Result<(), Error> {
    let _lock = call::lock(config, owner)?;
    let interface = super::host_interface(owner);
    let record = Record::read(config, owner);
    let link = Netlink::open().and_then(|host| host.link(&interface));
    let index = link.as_ref().ok().and_then(|link| link.as_ref()).map(|link| link.index);
    let indices: BTreeSet<u32> = index.into_iter().chain(record.as_ref().map(|record| record.host_index)).collect();

    // First the link: from then on there is no packet that a missing row or program could let pass.
    let mut results = vec![link.map(|_| ()).map_err(Error::from), Wire::remove(&interface)];
    if let Some(record) = &record {
        let pins = PinDir::from_abi_dir(&record.pin_dir);
        results.extend(indices.into_iter().map(|index| detach_endpoint(&pins, index).map_err(refused)));
    }
    // Before the agent is asked, so that one that starts just now does not take it over.
    results.push(record::remove_endpoint(config, owner));
    if let Err(error) = Agent::new(config).release(owner) {
        log(format!("{owner} is removed without the agent: {error}"));
    }
    let taken_back = delegate.map_or(Ok(()), |delegate| delegate.del(owner));
    let released = match &taken_back {
        Ok(()) => call::store(config).release(owner, SystemTime::now()),
        // GC is to find whose it is.
        Err(_) => Ok(false),
    };
    results.push(taken_back);
    results.push(match released {
        // The pod must be able to go. That its address stays taken in a damaged store does no harm.
        Err(error @ IpamError::Damaged { .. }) => {
            log(format!("{owner} is removed, its address stays taken: {error}"));
            Ok(())
        }
        other => other.map(|_| ()).map_err(Error::from),
    });
    // Last: with it the next DEL can do what this one could not.
    if results.iter().all(Result::is_ok) {
        results.push(Record::remove(config, owner));
    }
    results.into_iter().collect()
}
