use super::agent::Agent;
use super::delegate::Delegate;
use crate::ipam::{Owner, Store};
use crate::link::{LinkError, Namespace};
use crate::lock::{FileLock, LockError};
use crate::spec::{Code, Environment, Error, NetworkConfig};
use palisade_protocol::{Attachment, DEFAULT_RUN_DIR};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A call about one attachment, checked as far as that is possible without touching anything.
#[derive(Debug)]
pub(super) struct Call {
    /// The network configuration.
    pub(super) config: NetworkConfig,
    /// Which attachment.
    pub(super) attachment: Attachment,
    /// Path of the container's network namespace; `None` where the runtime says that it is gone.
    pub(super) namespace: Option<PathBuf>,
    /// Who gives the addresses, where it is not us.
    pub(super) delegate: Option<Delegate>,
}

/// The pod that a container belongs to, as Kubernetes' runtimes tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: Option<String>,
}

/// Reads and checks the network configuration.
pub(super) fn read_config(input: &[u8]) -> Result<NetworkConfig, Error> {
    NetworkConfig::parse(input, DEFAULT_RUN_DIR)
}

impl Call {
    /// Reads and checks the variables, of which some must be there, and the configuration.
    pub(super) fn read(environment: &Environment, input: &[u8], required: &[&str]) -> Result<Self, Error> {
        environment.require(required)?;
        let attachment = environment.attachment()?;
        let config = read_config(input)?;
        let delegate = Delegate::of(&config, environment, input);
        Ok(Self { config, attachment, namespace: environment.namespace(), delegate })
    }

    /// Who the addresses belong to.
    pub(super) fn owner(&self) -> Owner {
        Owner { network: self.config.name.clone(), attachment: self.attachment.clone() }
    }

    /// Opens the container's namespace, which must not be the plugin's own.
    pub(super) fn open_namespace(&self) -> Result<(Namespace, &Path), Error> {
        let path = self.namespace.as_deref().unwrap_or(Path::new(""));
        let namespace = Namespace::open(path).map_err(|error| {
            Error::new(Code::UnknownContainer, format!("CNI_NETNS: {error}; the container is gone, there is nothing to connect"))
        })?;
        if namespace.id()? == Namespace::current()?.id()? {
            let message = format!(
                "CNI_NETNS {} is the network namespace of the node itself: a pod on the node's network needs no CNI",
                path.display()
            );
            return Err(Error::new(Code::OwnNamespace, message));
        }
        Ok((namespace, path))
    }

    /// Waits until no other call is at work on this attachment. An ADD waits for the agent a few times at most.
    pub(super) fn lock(&self) -> Result<FileLock, Error> {
        lock(&self.config, &self.owner())
    }

    /// The addresses.
    pub(super) fn store(&self) -> Store {
        store(&self.config)
    }

    /// The agent of this node.
    pub(super) fn agent(&self) -> Agent {
        Agent::new(&self.config)
    }
}

/// Waits until no other call is at work on an attachment.
pub(super) fn lock(config: &NetworkConfig, owner: &Owner) -> Result<FileLock, Error> {
    let patience = config.agent_timeout * 6 + Duration::from_secs(10);
    Ok(FileLock::temporary(lock_file(config, owner), patience)?)
}

/// As [`lock`], without waiting; `None` while another call is at work.
pub(super) fn try_lock(config: &NetworkConfig, owner: &Owner) -> Result<Option<FileLock>, Error> {
    match FileLock::temporary(lock_file(config, owner), Duration::ZERO) {
        Ok(lock) => Ok(Some(lock)),
        Err(LockError::Busy { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The name of the veth stands for the attachment, and is short enough.
fn lock_file(config: &NetworkConfig, owner: &Owner) -> PathBuf {
    config.state_dir.join("locks").join(super::host_interface(owner))
}

/// The addresses of the node.
pub(super) fn store(config: &NetworkConfig) -> Store {
    Store::new(config.state_dir.join("ipam"))
}

impl Pod {
    /// Reads who the pod is from `CNI_ARGS`.
    pub(super) fn read(environment: &Environment) -> Result<Self, Error> {
        let arguments = environment.arguments()?;
        let get = |key: &str| arguments.get(key).filter(|value| !value.is_empty()).map(|value| (*value).to_owned());
        match (get("K8S_POD_NAMESPACE"), get("K8S_POD_NAME")) {
            (Some(namespace), Some(name)) => Ok(Self { namespace, name, uid: get("K8S_POD_UID") }),
            _ => Err(Error::new(
                Code::InvalidEnvironment,
                "CNI_ARGS must name the pod, because its policy hangs on it: K8S_POD_NAMESPACE=...;K8S_POD_NAME=... (container runtimes for Kubernetes set them)",
            )),
        }
    }
}

impl From<LockError> for Error {
    fn from(error: LockError) -> Self {
        let code = if matches!(error, LockError::Busy { .. }) { Code::TryAgain } else { Code::Io };
        Self::new(code, error.to_string())
    }
}

impl From<LinkError> for Error {
    fn from(error: LinkError) -> Self {
        let code = if matches!(error, LinkError::NoNamespace { .. }) { Code::UnknownContainer } else { Code::Network };
        Self::new(code, error.to_string())
    }
}

impl From<crate::ipam::IpamError> for Error {
    fn from(error: crate::ipam::IpamError) -> Self {
        use crate::ipam::IpamError;
        let code = match error {
            IpamError::Full { .. } => Code::AddressesExhausted,
            IpamError::NotUsable { .. } => Code::InvalidConfig,
            IpamError::Taken { .. } => Code::AddressTaken,
            IpamError::NoRange | IpamError::Resting { .. } | IpamError::Busy(_) => Code::TryAgain,
            IpamError::Damaged { .. } | IpamError::Io { .. } => Code::Io,
        };
        Self::new(code, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(arguments: &str) -> Result<Pod, Error> {
        Pod::read(&Environment::new([("CNI_ARGS".to_owned(), arguments.to_owned())]))
    }

    #[test]
    fn the_pod_is_read_from_the_arguments() {
        let read = pod("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=x;K8S_POD_UID=u").unwrap();
        assert_eq!(read, Pod { namespace: "shop".into(), name: "web-0".into(), uid: Some("u".into()) });
        assert_eq!(pod("K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0").unwrap().uid, None);
    }

    #[test]
    fn a_container_of_no_pod_is_refused_with_code_4() {
        for arguments in ["", "K8S_POD_NAME=web-0", "K8S_POD_NAMESPACE=;K8S_POD_NAME=web-0", "IgnoreUnknown"] {
            assert_eq!(pod(arguments).unwrap_err().code, Code::InvalidEnvironment, "{arguments}");
        }
    }
}
