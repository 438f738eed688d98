use crate::ipam::Owner;
use crate::spec::{Code, Error, NetworkConfig};
use palisade_protocol::{Attachment, Call, Client, ClientError, EndpointSpec, ErrorKind, NodeConfig, Release, Reply, SOCKET_NAME, Status};
use std::path::PathBuf;
use std::time::Duration;

/// The agent of this node, as this plugin needs it: every question is a connection of its own.
#[derive(Debug)]
pub(super) struct Agent {
    socket: PathBuf,
    timeout: Duration,
}

/// How long to wait where the answer changes nothing of what is done: in DEL and when undoing.
const SHORT: Duration = Duration::from_secs(2);

impl Agent {
    pub(super) fn new(config: &NetworkConfig) -> Self {
        Self { socket: config.run_dir.join(SOCKET_NAME), timeout: config.agent_timeout }
    }

    /// What is needed to wire a pod.
    pub(super) fn node(&self) -> Result<NodeConfig, Error> {
        match self.ask(Call::Node, self.timeout)? {
            Reply::Node(node) => Ok(node),
            other => Err(unexpected(&other)),
        }
    }

    /// Has the pod's policy put into the kernel; returns when it is there.
    pub(super) fn realise(&self, endpoint: EndpointSpec) -> Result<(), Error> {
        self.done(Call::Realise(endpoint), self.timeout)
    }

    /// Has an endpoint forgotten. Does not wait long: an agent that does not answer now finds out when it reads the
    /// records of the endpoints again.
    pub(super) fn release(&self, owner: &Owner) -> Result<(), Error> {
        let release = Release { attachment: owner.attachment.clone(), host_interface: super::host_interface(owner) };
        self.done(Call::Release(release), self.timeout.min(SHORT))
    }

    /// Has the kernel's rows of an endpoint compared with what they should be.
    pub(super) fn check(&self, attachment: &Attachment) -> Result<(), Error> {
        self.done(Call::Check(attachment.clone()), self.timeout)
    }

    /// Its state.
    pub(super) fn status(&self) -> Result<Status, Error> {
        match self.ask(Call::Status, self.timeout)? {
            Reply::Status(status) => Ok(status),
            other => Err(unexpected(&other)),
        }
    }

    fn done(&self, call: Call, timeout: Duration) -> Result<(), Error> {
        match self.ask(call, timeout)? {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    fn ask(&self, call: Call, timeout: Duration) -> Result<Reply, Error> {
        Client::connect(&self.socket, timeout).and_then(|mut client| client.call(call)).map_err(|error| {
            let code = match &error {
                ClientError::Refused(failure) => match failure.kind {
                    // Agent and plugin are of different versions only while a node is being upgraded.
                    ErrorKind::TryAgain | ErrorKind::Version => Code::TryAgain,
                    ErrorKind::Differs | ErrorKind::NotFound => Code::Differs,
                    ErrorKind::Invalid | ErrorKind::Internal => Code::Agent,
                },
                ClientError::Unreachable { .. } | ClientError::TimedOut(_) | ClientError::HungUp | ClientError::Io(_) => Code::TryAgain,
                ClientError::Malformed(_) => Code::Agent,
            };
            Error::new(code, error.to_string())
        })
    }
}

fn unexpected(reply: &Reply) -> Error {
    Error::new(Code::Agent, format!("palisade-agent answered something else than what was asked: {reply:?}"))
}
