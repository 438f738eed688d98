//! The address store made true to the interfaces that there are. A runtime that lost its state, or a node that lost its power, sends
//! no DEL for what is gone; and a store that was lost knows nothing of what runs.

use super::call::{self, Call};
use super::record::{self, Record};
use super::{host_interface, log};
use crate::ipam::{IpamError, Owner};
use crate::link::Netlink;
use crate::lock::FileLock;
use crate::spec::{Code, Error};
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::time::SystemTime;

/// Once after each boot, and when the store is new: before the first address is given.
pub(super) fn at_start(call: &Call) -> Result<(), Error> {
    let boot = record::boot()?;
    let marker = call.config.state_dir.join("ipam/reconciled");
    let done = || call.store().exists() && std::fs::read_to_string(&marker).is_ok_and(|last| last == boot);
    if done() {
        return Ok(());
    }
    // Of many that come at once, one does it and the others wait.
    let _lock = FileLock::temporary(call.config.state_dir.join("locks/reconcile"), call.config.agent_timeout)?;
    if done() {
        return Ok(());
    }
    learn(call)?;
    free(call)?;
    // As the store makes it.
    let folder = DirBuilder::new().recursive(true).mode(0o700).create(call.config.state_dir.join("ipam"));
    let written = folder.and_then(|()| std::fs::write(&marker, boot));
    written.map_err(|error| Error::new(Code::Io, format!("cannot write {}: {error}", marker.display())))
}

/// Takes back the addresses of attachments whose interface is gone, and which nobody is at work on; from the IPAM plugin first, where it
/// gave them. False: there are none.
pub(super) fn free(call: &Call) -> Result<bool, Error> {
    let (host, store) = (Netlink::open()?, call.store());
    let mut freed = false;
    for owner in store.owners()? {
        let Some(_lock) = lock_if_gone(call, &host, &owner)? else { continue };
        if store.is_delegated(&owner)? && !plugin_takes_back(call, &owner) {
            continue;
        }
        freed |= release(call, &owner)?;
    }
    Ok(freed)
}

/// Takes the addresses of a holder back, one of which the IPAM plugin has given away: it does not take it for that one's any more. False:
/// the holder has its interface, or somebody is at work on it.
pub(super) fn free_given_away(call: &Call, holder: &Owner) -> Result<bool, Error> {
    let Some(_lock) = lock_if_gone(call, &Netlink::open()?, holder)? else { return Ok(false) };
    if call.store().is_delegated(holder)? {
        // For the sake of its other address. Whatever comes of it, the one that is another's now must not stand under its name.
        plugin_takes_back(call, holder);
    }
    release(call, holder)
}

/// The lock of another attachment whose interface is gone; `None` where it is there, or another call is at work.
fn lock_if_gone(call: &Call, host: &Netlink, owner: &Owner) -> Result<Option<FileLock>, Error> {
    let gone = || Ok::<bool, Error>(host.link(&host_interface(owner))?.is_none());
    if *owner == call.owner() || !gone()? {
        return Ok(None);
    }
    // An ADD takes an address before it makes the interface: it holds this lock, and so does a DEL.
    let lock = call::try_lock(&call.config, owner)?;
    Ok(if gone()? { lock } else { None })
}

/// Has the IPAM plugin take back what it gave to somebody else. One that the configuration names no more cannot be asked; that of another
/// network is that network's to ask.
fn plugin_takes_back(call: &Call, owner: &Owner) -> bool {
    if owner.network != call.config.name {
        return false;
    }
    let taken_back = call.delegate.as_ref().map_or(Ok(()), |delegate| delegate.del_of_another(owner));
    taken_back.inspect_err(|error| log(format!("{owner} has no interface any more, but keeps its addresses: {error}"))).is_ok()
}

fn release(call: &Call, owner: &Owner) -> Result<bool, Error> {
    let freed = call.store().release(owner, SystemTime::now())?;
    if freed {
        log(format!("{owner} has no interface any more: its addresses are free"));
    }
    Ok(freed)
}

/// Writes down the addresses of those that run and that the store does not know.
fn learn(call: &Call) -> Result<(), Error> {
    let (host, store) = (Netlink::open()?, call.store());
    for owner in Record::owners(&call.config)? {
        let Some(_lock) = call::try_lock(&call.config, &owner)? else { continue };
        let Some(record) = Record::read(&call.config, &owner) else { continue };
        let runs = host.link(&host_interface(&owner))?.is_some_and(|link| link.index == record.host_index);
        if !runs || !store.addresses(&owner)?.is_empty() {
            continue;
        }
        let Some(endpoint) = record::endpoint(&call.config, &owner) else { continue };
        match store.adopt(&owner, &endpoint.addresses, call.delegate.is_some(), SystemTime::now()) {
            Err(error @ IpamError::Taken { .. }) => log(format!("{owner} runs, but {error}")),
            other => other?,
        }
    }
    Ok(())
}
