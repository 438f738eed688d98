use crate::Host;
use serde_json::{Value, json};

impl Host {
    /// Calls the CNI plugin's own code for a pod, as a container runtime would call the binary. The container id is
    /// `pod-NAMESPACE-NAME`, its network namespace that of [`Host::create_pod`] under the same name.
    ///
    /// Returns the exit code, and the result or the error object; `Null` where there is none.
    pub fn cni(&self, verb: &str, namespace: &str, pod: &str) -> (u8, Value) {
        let container = container_id(namespace, pod);
        let variables = [
            ("CNI_COMMAND", verb.to_owned()),
            ("CNI_NETNS", self.pod_path(&container).display().to_string()),
            ("CNI_CONTAINERID", container),
            ("CNI_IFNAME", "eth0".to_owned()),
            ("CNI_PATH", "/opt/cni/bin".to_owned()),
            ("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={pod};K8S_POD_UID=uid-{namespace}-{pod}")),
        ];
        let config = json!({
            "cniVersion": "1.1.0", "name": "palisade", "type": "palisade-cni",
            "runDir": self.run_dir(), "stateDir": self.state_dir(), "agentTimeoutSeconds": 20,
        });
        let mut output = Vec::new();
        let variables = variables.map(|(name, value)| (name.to_owned(), value));
        let code = palisade_cni::command::run(variables, config.to_string().as_bytes(), &mut output);
        (code, serde_json::from_slice(&output).unwrap_or(Value::Null))
    }
}

/// The container id that [`Host::cni`] uses for a pod.
pub fn container_id(namespace: &str, pod: &str) -> String {
    format!("pod-{namespace}-{pod}")
}
