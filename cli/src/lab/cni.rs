//! `palisade-cni`, called as a container runtime calls it.

use super::flow::Party;
use super::paths::Places;
use super::{node, paths};
use ipnet::IpNet;
use palisade_cni::link::LinkError;
use palisade_policy::model::ObjectName;
use serde::Deserialize;
use serde_json::json;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Name of the pod's interface.
pub const INTERFACE: &str = "eth0";

/// Why a pod could not be wired.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// There is no such binary.
    #[error(
        "no CNI binary at {0}: `make build` puts it beside palisade; or name another with --cni or the environment variable PALISADE_CNI"
    )]
    Absent(PathBuf),
    /// It could not be started or spoken to.
    #[error("cannot run {binary}: {source}")]
    Start {
        /// The binary.
        binary: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The node could not be entered.
    #[error(transparent)]
    Node(#[from] LinkError),
    /// It refused, in the error form of the specification.
    #[error("palisade-cni {verb} for {pod} failed with code {code}: {message}")]
    Refused {
        /// `ADD` or `DEL`.
        verb: &'static str,
        /// For which pod.
        pod: ObjectName,
        /// Code of the specification.
        code: u32,
        /// What it said.
        message: String,
    },
    /// It said what the specification does not know.
    #[error("palisade-cni {verb} for {pod} {problem}")]
    Answer {
        /// `ADD` or `DEL`.
        verb: &'static str,
        /// For which pod.
        pod: ObjectName,
        /// What is wrong with it.
        problem: String,
    },
}

/// The CNI binary.
#[derive(Clone, Debug)]
pub struct Cni {
    binary: PathBuf,
}

/// A pod's sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// The pod.
    pub pod: ObjectName,
    /// Which sandbox of this pod: a pod that is made anew gets a new one.
    pub generation: u64,
    /// The node that it is on.
    pub node: String,
}

impl Sandbox {
    fn container_id(&self) -> String {
        format!("{}.{}.{}", self.pod.namespace, self.pod.name, self.generation)
    }

    fn arguments(&self) -> String {
        let id = self.container_id();
        format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={id}", self.pod.namespace, self.pod.name)
    }
}

/// A result as the specification has it; only what is needed here.
#[derive(Deserialize)]
struct AddResult {
    ips: Vec<AssignedAddress>,
}

#[derive(Deserialize)]
struct AssignedAddress {
    address: IpNet,
}

/// An error as the specification has it.
#[derive(Deserialize)]
struct ErrorResult {
    code: u32,
    msg: String,
    #[serde(default)]
    details: String,
}

impl Cni {
    /// The binary that was named, or `palisade-cni` beside the running executable.
    pub fn find(named: Option<&Path>) -> Result<Self, CniError> {
        let binary = match named {
            Some(path) => path.to_owned(),
            None => std::env::current_exe()
                .ok()
                .and_then(|own| Some(own.parent()?.join("palisade-cni")))
                .unwrap_or_else(|| PathBuf::from("palisade-cni")),
        };
        match std::fs::canonicalize(&binary) {
            Ok(path) if path.is_file() => Ok(Self { binary: path }),
            _ => Err(CniError::Absent(binary)),
        }
    }

    /// The binary.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Wires a pod, and returns its addresses. Blocks until its policy is in the kernel.
    pub fn add(&self, sandbox: &Sandbox) -> Result<Vec<IpAddr>, CniError> {
        let output = self.call("ADD", sandbox)?;
        let result: AddResult = serde_json::from_slice(&output).map_err(|error| CniError::Answer {
            verb: "ADD",
            pod: sandbox.pod.clone(),
            problem: format!("answered with no result: {error}"),
        })?;
        Ok(result.ips.iter().map(|assigned| assigned.address.addr()).collect())
    }

    /// Unwires a pod.
    pub fn delete(&self, sandbox: &Sandbox) -> Result<(), CniError> {
        self.call("DEL", sandbox).map(drop)
    }

    fn call(&self, verb: &'static str, sandbox: &Sandbox) -> Result<Vec<u8>, CniError> {
        let started = |source| CniError::Start { binary: self.binary.clone(), source };
        let places = Places::of(&sandbox.node);
        let configuration = json!({
            "cniVersion": "1.1.0",
            "name": "palisade-lab",
            "type": "palisade-cni",
            "runDir": places.run,
            "stateDir": places.state,
        });
        let mut command = Command::new(&self.binary);
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", sandbox.container_id())
            .env("CNI_NETNS", paths::namespace(&Party::Pod(sandbox.pod.clone())))
            .env("CNI_IFNAME", INTERFACE)
            .env("CNI_ARGS", sandbox.arguments())
            .env("CNI_PATH", self.binary.parent().unwrap_or(Path::new("/")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // A process is where the thread is that starts it.
        let mut child = node::within(&sandbox.node, || command.spawn())?.map_err(started)?;
        let fed = child.stdin.take().map_or(Ok(()), |mut input| input.write_all(configuration.to_string().as_bytes()));
        let output = child.wait_with_output().map_err(started)?;
        if output.status.success() {
            return fed.map(|()| output.stdout).map_err(started);
        }
        let pod = sandbox.pod.clone();
        Err(match serde_json::from_slice::<ErrorResult>(&output.stdout) {
            Ok(error) => {
                let details = if error.details.is_empty() { String::new() } else { format!(" ({})", error.details) };
                CniError::Refused { verb, pod, code: error.code, message: error.msg + &details }
            }
            Err(_) => CniError::Answer {
                verb,
                pod,
                problem: format!("ended with {} and no error object: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_is_named_as_the_specification_allows_and_tells_the_pod() {
        let sandbox = Sandbox { pod: ObjectName::new("backend", "api-0"), generation: 2, node: "node".to_owned() };
        assert_eq!(sandbox.container_id(), "backend.api-0.2");
        assert_eq!(
            sandbox.arguments(),
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=backend;K8S_POD_NAME=api-0;K8S_POD_INFRA_CONTAINER_ID=backend.api-0.2"
        );
    }

    #[test]
    fn a_cni_binary_that_is_not_there_is_named_with_the_way_out() {
        let error = Cni::find(Some(Path::new("/nonexistent/palisade-cni"))).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/palisade-cni") && error.to_string().contains("--cni"));
    }
}
