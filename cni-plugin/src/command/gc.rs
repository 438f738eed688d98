use super::delegate::Delegate;
use super::record::Record;
use super::{call, del, log};
use crate::ipam::{IpamError, Owner};
use crate::spec::{Code, Error, NetworkConfig};
use palisade_protocol::Attachment;
use std::collections::BTreeSet;

/// GC: removes all attachments of this network that the runtime does not name, then has the IPAM plugin do the same with what
/// nobody here knows of. Goes on after an error.
pub(super) fn gc(config: &NetworkConfig, delegate: Option<&Delegate>) -> Result<(), Error> {
    // A list that is missing is not an empty one: that would remove every pod's network.
    let valid = config.valid_attachments.as_ref().ok_or_else(|| {
        Error::new(Code::InvalidConfig, "the network configuration has no \"cni.dev/valid-attachments\": GC would not know what to keep")
    })?;
    let valid: BTreeSet<Attachment> =
        valid.iter().map(|valid| Attachment { container_id: valid.container_id.clone(), interface: valid.ifname.clone() }).collect();
    let (owners, unread) = attachments(config);
    let mut failures: Vec<String> = owners
        .into_iter()
        .filter(|owner| !valid.contains(&owner.attachment))
        .filter_map(|owner| {
            log(format!("{owner} belongs to no container and is removed"));
            del::disconnect(config, &owner, delegate).err().map(|error| format!("{owner}: {error}"))
        })
        .collect();
    let removed_all = failures.is_empty();
    failures.extend(unread);
    let told = delegate.map_or(Ok(()), |delegate| delegate.tell("GC"));
    if failures.is_empty() {
        return told;
    }
    failures.extend(told.err().map(|error| error.to_string()));
    let what = if removed_all {
        "some attachments could not be listed, those that could are removed; try GC again".to_owned()
    } else {
        format!("{} attachments could not be removed or listed; try GC again", failures.len())
    };
    let mut error = Error::new(Code::Incomplete, what);
    error.details = failures.join("; ");
    Err(error)
}

/// Whatever left an address or a record, and why one of the two could not be asked: what the other one knows is removed all the same.
fn attachments(config: &NetworkConfig) -> (BTreeSet<Owner>, Vec<String>) {
    let (mut owners, mut unread) = (BTreeSet::new(), Vec::new());
    match Record::owners(config) {
        Ok(found) => owners.extend(found),
        Err(error) => unread.push(error.to_string()),
    }
    match call::store(config).owners() {
        Ok(found) => owners.extend(found),
        Err(error @ IpamError::Damaged { .. }) => log(error),
        Err(error) => unread.push(error.to_string()),
    }
    owners.retain(|owner| owner.network == config.name);
    (owners, unread)
}
