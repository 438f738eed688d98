use crate::ipam::Owner;
use crate::spec::{Code, Error, NetworkConfig};
use palisade_protocol::{EndpointSpec, RECORDS_NAME, record_name};
use serde::{Deserialize, Serialize};
use std::fs::DirBuilder;
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

/// Directory of these records, relative to the run directory. Links and pins end with the running kernel, and so does
/// what is in the run directory.
const DIRECTORY: &str = "attachments";

/// What DEL must know of an attachment when neither its link nor the agent is there to ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    /// Which attachment of which network.
    #[serde(flatten)]
    pub(super) owner: Owner,
    /// Index of the host's end of the veth.
    pub(super) host_index: u32,
    /// Where its programs are pinned.
    pub(super) pin_dir: PathBuf,
    /// The running kernel. An index of an earlier one may be another pod's now.
    boot: String,
}

impl Record {
    /// The record of an attachment that is being made.
    pub(super) fn new(owner: Owner, host_index: u32, pin_dir: &str) -> Result<Self, Error> {
        Ok(Self { owner, host_index, pin_dir: pin_dir.into(), boot: boot()? })
    }

    /// Writes the record, whole or not at all.
    pub(super) fn write(&self, config: &NetworkConfig) -> Result<(), Error> {
        let path = path(config, &self.owner);
        let unfinished = path.with_extension("unfinished");
        let write = || -> io::Result<()> {
            DirBuilder::new().recursive(true).mode(0o755).create(config.run_dir.join(DIRECTORY))?;
            std::fs::write(&unfinished, serde_json::to_vec(self)?)?;
            std::fs::rename(&unfinished, &path)
        };
        write().map_err(|error| {
            let _ = std::fs::remove_file(&unfinished);
            Error::new(Code::Io, format!("cannot write {}: {error}", path.display()))
        })
    }

    /// The record of an attachment; `None` where there is none, or none of the running kernel, or where it cannot be
    /// read: then DEL works with what it can find out.
    pub(super) fn read(config: &NetworkConfig, owner: &Owner) -> Option<Self> {
        let path = path(config, owner);
        let bytes = std::fs::read(&path).ok()?;
        let record: Self =
            serde_json::from_slice(&bytes).inspect_err(|error| super::log(format!("{} cannot be read: {error}", path.display()))).ok()?;
        boot().is_ok_and(|boot| boot == record.boot).then_some(record)
    }

    /// Removes the record of an attachment, if there is one.
    pub(super) fn remove(config: &NetworkConfig, owner: &Owner) -> Result<(), Error> {
        remove(path(config, owner))?;
        remove(path(config, owner).with_extension("unfinished"))
    }

    /// Everybody who has a record.
    pub(super) fn owners(config: &NetworkConfig) -> Result<Vec<Owner>, Error> {
        let directory = config.run_dir.join(DIRECTORY);
        let entries = match std::fs::read_dir(&directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(|error| Error::new(Code::Io, format!("cannot list {}: {error}", directory.display())))?,
        };
        let records = entries.filter_map(Result::ok).filter_map(|entry| std::fs::read(entry.path()).ok());
        Ok(records.filter_map(|bytes| serde_json::from_slice::<Self>(&bytes).ok()).map(|record| record.owner).collect())
    }
}

/// The agent's record of an endpoint; `None` where there is none that can be read.
pub(super) fn endpoint(config: &NetworkConfig, owner: &Owner) -> Option<EndpointSpec> {
    let bytes = std::fs::read(endpoint_path(config, owner)).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Removes the agent's record of an endpoint, so that an agent that is down does not take it over when it comes back.
pub(super) fn remove_endpoint(config: &NetworkConfig, owner: &Owner) -> Result<(), Error> {
    remove(endpoint_path(config, owner))
}

/// What tells one run of the kernel from the next.
pub(super) fn boot() -> Result<String, Error> {
    Ok(crate::link::sysctl::read("kernel/random/boot_id")?)
}

fn endpoint_path(config: &NetworkConfig, owner: &Owner) -> PathBuf {
    config.run_dir.join(RECORDS_NAME).join(record_name(&super::host_interface(owner)))
}

fn path(config: &NetworkConfig, owner: &Owner) -> PathBuf {
    // The name of the veth stands for network, container and interface, and cannot be too long.
    config.run_dir.join(DIRECTORY).join(super::host_interface(owner)).with_extension("json")
}

fn remove(path: PathBuf) -> Result<(), Error> {
    match std::fs::remove_file(&path) {
        Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Err(Error::new(Code::Io, format!("cannot remove {}: {error}", path.display())))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_protocol::Attachment;

    fn config(directory: &std::path::Path) -> NetworkConfig {
        let json = serde_json::json!({"cniVersion": "1.1.0", "name": "net", "type": "palisade-cni"});
        NetworkConfig::parse(json.to_string().as_bytes(), directory.to_str().unwrap()).unwrap()
    }

    fn owner() -> Owner {
        Owner { network: "net".into(), attachment: Attachment { container_id: "c".into(), interface: "eth0".into() } }
    }

    #[test]
    fn a_record_is_read_back_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path());
        assert_eq!(Record::read(&config, &owner()), None);
        let record = Record::new(owner(), 7, "/bpf/v1").unwrap();
        record.write(&config).unwrap();
        assert_eq!(Record::read(&config, &owner()), Some(record));
        assert_eq!(Record::owners(&config).unwrap(), [owner()]);
        Record::remove(&config, &owner()).unwrap();
        Record::remove(&config, &owner()).unwrap();
        assert_eq!((Record::read(&config, &owner()), Record::owners(&config).unwrap().len()), (None, 0));
    }

    #[test]
    fn a_record_of_an_earlier_boot_names_no_interface_of_this_one() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path());
        let mut record = Record::new(owner(), 7, "/bpf/v1").unwrap();
        record.boot = "earlier".into();
        record.write(&config).unwrap();
        assert_eq!(Record::read(&config, &owner()), None);
        assert_eq!(Record::owners(&config).unwrap(), [owner()], "GC still finds it");
    }
}
