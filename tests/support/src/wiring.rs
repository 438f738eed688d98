use crate::Host;
use serde_json::{Value, json};
use std::collections::BTreeMap;

impl Host {
    /// Calls the CNI plugin's own code for a pod, as a container runtime would call the binary: see [`Host::cni_call`].
    ///
    /// Returns the exit code, and the result or the error object; `Null` where there is none.
    pub fn cni(&self, verb: &str, namespace: &str, pod: &str) -> (u8, Value) {
        self.cni_call(namespace, pod).run(verb)
    }

    /// What the CNI plugin is called with for a pod. The container id is `pod-NAMESPACE-NAME`, its network namespace that of
    /// [`Host::create_pod`] under the same name.
    pub fn cni_call(&self, namespace: &str, pod: &str) -> CniCall {
        let container = container_id(namespace, pod);
        let variables = BTreeMap::from([
            ("CNI_NETNS", self.pod_path(&container).display().to_string()),
            ("CNI_CONTAINERID", container.clone()),
            ("CNI_IFNAME", "eth0".to_owned()),
            ("CNI_PATH", "/opt/cni/bin".to_owned()),
            ("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={pod};K8S_POD_UID=uid-{namespace}-{pod}")),
        ]);
        let config = json!({
            "cniVersion": "1.1.0", "name": "palisade", "type": "palisade-cni",
            "runDir": self.run_dir(), "stateDir": self.state_dir(), "agentTimeoutSeconds": 20,
        });
        CniCall { container, variables, config }
    }
}

/// What the CNI plugin's own code is called with for a pod, for any verb, as often as is wanted.
#[derive(Clone, Debug)]
pub struct CniCall {
    container: String,
    variables: BTreeMap<&'static str, String>,
    config: Value,
}

impl CniCall {
    /// The id of the container.
    pub fn container(&self) -> &str {
        &self.container
    }

    /// The same with a key of the configuration.
    pub fn key(mut self, name: &str, value: Value) -> Self {
        self.config[name] = value;
        self
    }

    /// The same with one more of `CNI_ARGS`.
    pub fn argument(mut self, name: &str, value: &str) -> Self {
        let arguments = self.variables.entry("CNI_ARGS").or_default();
        *arguments = format!("{arguments};{name}={value}");
        self
    }

    /// The same where other plugins are in this folder.
    pub fn folder(mut self, folder: &str) -> Self {
        self.variables.insert("CNI_PATH", folder.to_owned());
        self
    }

    /// Calls it with a verb: the exit code, and the result or the error object; `Null` where there is none.
    pub fn run(&self, verb: &str) -> (u8, Value) {
        let variables = self.variables.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        let variables = variables.chain([("CNI_COMMAND".to_owned(), verb.to_owned())]);
        let mut output = Vec::new();
        let code = palisade_cni::command::run(variables, self.config.to_string().as_bytes(), &mut output);
        (code, serde_json::from_slice(&output).unwrap_or(Value::Null))
    }
}

/// The container id that [`Host::cni`] uses for a pod.
pub fn container_id(namespace: &str, pod: &str) -> String {
    format!("pod-{namespace}-{pod}")
}
