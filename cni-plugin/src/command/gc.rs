use super::record::Record;
use super::{call, del, log};
use crate::ipam::{IpamError, Owner};
use crate::spec::{Code, Error, NetworkConfig};
use palisade_protocol::Attachment;
use std::collections::BTreeSet;

/// GC: removes all attachments of this network that the runtime does not name. Goes on after an error.
pub(super) fn gc(config: &NetworkConfig) -> Result<(), Error> {
    // A list that is missing is not an empty one: that would remove every pod's network.
    let valid = config.valid_attachments.as_ref().ok_or_else(|| {
        Error::new(Code::InvalidConfig, "the network configuration has no \"cni.dev/valid-attachments\": GC would not know what to keep")
    })?;
    let valid: BTreeSet<Attachment> =
        valid.iter().map(|valid| Attachment { container_id: valid.container_id.clone(), interface: valid.ifname.clone() }).collect();
    let failures: Vec<String> = attachments(config)?
        .into_iter()
        .filter(|owner| !valid.contains(&owner.attachment))
        .filter_map(|owner| {
            log(format!("{owner} belongs to no container and is removed"));
            del::disconnect(config, &owner).err().map(|error| format!("{owner}: {error}"))
        })
        .collect();
    if failures.is_empty() {
        return Ok(());
    }
    let mut error = Error::new(Code::Incomplete, format!("{} attachments could not be removed; try GC again", failures.len()));
    error.details = failures.join("; ");
    Err(error)
}

/// Whatever left an address or a record.
fn attachments(config: &NetworkConfig) -> Result<BTreeSet<Owner>, Error> {
    let mut owners: BTreeSet<Owner> = Record::owners(config)?.into_iter().collect();
    match call::store(config).owners() {
        Err(error @ IpamError::Damaged { .. }) => log(error),
        other => owners.extend(other?),
    }
    owners.retain(|owner| owner.network == config.name);
    Ok(owners)
}
