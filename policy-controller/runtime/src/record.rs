//! The endpoint records: one file per realised endpoint, so that a restarted agent knows whose rows it finds.

use palisade_protocol::{Attachment, EndpointSpec, is_interface_name, record_name};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The directory of the endpoint records, `RUN/endpoints`.
#[derive(Debug)]
pub struct Records {
    directory: PathBuf,
}

/// What the directory of the endpoint records held.
#[derive(Debug, Default)]
pub struct Found {
    /// The records that could be read, older ones first: of two that name one pod, the later is the pod's own.
    pub specs: Vec<EndpointSpec>,
    /// When each of them was written.
    pub written: BTreeMap<Attachment, SystemTime>,
    /// What could not be read, and why. Such a file stays where it is.
    pub unreadable: Vec<String>,
}

impl Records {
    /// Opens the directory; made if it is missing.
    pub fn open(directory: PathBuf) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        Ok(Self { directory })
    }

    /// Reads every record, older ones first. A file that is no record is named in the result and otherwise left alone.
    pub fn load(&self) -> io::Result<Found> {
        let mut specs: Vec<(SystemTime, EndpointSpec)> = Vec::new();
        let mut unreadable = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match read(&path) {
                Ok((_, spec)) if !is_interface_name(&spec.host_interface) => {
                    unreadable.push(format!("{}: '{}' is no name of an interface", path.display(), spec.host_interface));
                }
                Ok(record) => {
                    // Agents of before named it by container and interface. DEL looks for this name alone.
                    let own = self.path(&record.1.host_interface);
                    if path != own {
                        fs::rename(&path, own)?;
                    }
                    specs.push(record);
                }
                // DEL removes records while no agent runs; one that went between the listing and the reading is no problem.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => unreadable.push(format!("{}: {error}", path.display())),
            }
        }
        specs.sort_by(|(a_time, a), (b_time, b)| (a_time, &a.attachment).cmp(&(b_time, &b.attachment)));
        let written = specs.iter().map(|(time, spec)| (spec.attachment.clone(), *time)).collect();
        Ok(Found { specs: specs.into_iter().map(|(_, spec)| spec).collect(), written, unreadable })
    }

    /// Writes the record of an endpoint, in place of an older one.
    pub fn write(&self, spec: &EndpointSpec) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(spec).map_err(io::Error::other)?;
        replace_file(&self.path(&spec.host_interface), &text)
    }

    /// Removes the record of the endpoint with this host-side interface; fine when there is none.
    pub fn remove(&self, host_interface: &str) -> io::Result<()> {
        match fs::remove_file(self.path(host_interface)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn path(&self, host_interface: &str) -> PathBuf {
        self.directory.join(record_name(host_interface))
    }
}

/// A record, and when it was written.
fn read(path: &Path) -> io::Result<(SystemTime, EndpointSpec)> {
    let written = fs::metadata(path)?.modified()?;
    Ok((written, serde_json::from_slice(&fs::read(path)?)?))
}

/// Replaces a file as one step: readers, and a machine that lost power, see the old content or the new.
pub fn replace_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_protocol::{HostPort, Transport};

    fn spec(container: &str) -> EndpointSpec {
        EndpointSpec {
            attachment: Attachment { container_id: container.to_owned(), interface: "eth0".to_owned() },
            namespace: "shop".to_owned(),
            pod: "web".to_owned(),
            uid: None,
            host_interface: format!("pal-{container}"),
            host_index: 7,
            pod_mac: "02:00:00:00:00:01".to_owned(),
            host_mac: "02:00:00:00:00:02".to_owned(),
            addresses: vec!["10.0.0.2".parse().unwrap()],
            host_ports: vec![HostPort {
                host_port: 8080.try_into().unwrap(),
                container_port: 80.try_into().unwrap(),
                protocol: Transport::Udp,
                host_ip: Some("192.0.2.1".parse().unwrap()),
            }],
        }
    }

    #[test]
    fn records_are_read_back_as_written_older_ones_first() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::open(directory.path().join("endpoints")).unwrap();
        for (container, age) in [("b", 20), ("a", 10), ("c", 30)] {
            records.write(&spec(container)).unwrap();
            let file = fs::File::options().write(true).open(records.path(&spec(container).host_interface)).unwrap();
            file.set_modified(SystemTime::now() - std::time::Duration::from_secs(age)).unwrap();
        }
        assert_eq!(records.load().unwrap().specs, [spec("c"), spec("b"), spec("a")]);
    }

    /// Records outlive the agent that wrote them, and so an upgrade.
    #[test]
    fn a_record_of_an_agent_that_knew_no_host_ports_is_one_without() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::open(directory.path().to_owned()).unwrap();
        let mut older = serde_json::to_value(spec("a")).unwrap();
        assert!(older.as_object_mut().unwrap().remove("hostPorts").is_some());
        fs::write(records.path("pal-a"), older.to_string()).unwrap();
        assert_eq!(records.load().unwrap().specs, [EndpointSpec { host_ports: Vec::new(), ..spec("a") }]);
    }

    #[test]
    fn a_record_under_the_name_that_an_earlier_agent_gave_it_is_removed_by_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::open(directory.path().to_owned()).unwrap();
        records.write(&spec("a")).unwrap();
        fs::rename(records.path("pal-a"), directory.path().join("a-eth0.json")).unwrap();
        assert_eq!(records.load().unwrap().specs, [spec("a")]);
        records.remove("pal-a").unwrap();
        assert!(records.load().unwrap().specs.is_empty());
    }

    #[test]
    fn removing_a_record_twice_is_fine() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::open(directory.path().to_owned()).unwrap();
        records.write(&spec("a")).unwrap();
        records.remove("pal-a").unwrap();
        records.remove("pal-a").unwrap();
        assert!(records.load().unwrap().specs.is_empty());
    }

    #[test]
    fn a_broken_record_is_named_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::open(directory.path().to_owned()).unwrap();
        fs::write(directory.path().join("broken.json"), "{").unwrap();
        records.write(&spec("a")).unwrap();
        let found = records.load().unwrap();
        assert_eq!(found.specs, [spec("a")]);
        assert!(found.unreadable[0].contains("broken.json"), "{:?}", found.unreadable);
        assert!(directory.path().join("broken.json").exists());
    }
}
