//! What a node's administrator can do, done in a pod.

use crate::pod;
use serde_json::{Value, json};

/// Where the node's files are in the pod.
pub const NODE: &str = "/node";
/// Before a command that is to run as one of the node's, with the node's programs. By its path, for the shell of some images takes `env` and what that starts
/// for its own.
pub const ON_NODE: &str = "chroot /node /usr/bin/env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A pod on the network of its node that may do to it what its administrator may.
pub fn administrator(name: &str, node: &str) -> Value {
    let mut pod = pod::shell(name, node, &[("app", "administrator")], "");
    let spec = &mut pod["spec"];
    spec["hostNetwork"] = json!(true);
    spec["volumes"] = json!([{ "name": "node", "hostPath": { "path": "/" } }]);
    spec["containers"][0]["securityContext"] = json!({ "privileged": true });
    spec["containers"][0]["volumeMounts"] = json!([{ "name": "node", "mountPath": NODE }]);
    pod
}
