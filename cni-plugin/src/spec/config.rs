use super::environment::is_identifier;
use super::{Code, Error, SpecVersion};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The network configuration of this plugin, as the runtime hands it over: one entry of a list, with the list's
/// version and name put in.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// The version of the specification in which to answer.
    pub version: SpecVersion,
    /// Name of the network.
    pub name: String,
    /// Where the agent's socket and the records of attachments are.
    pub run_dir: PathBuf,
    /// Where the addresses are kept.
    pub state_dir: PathBuf,
    /// Which plugin gives the addresses (`ipam.type`); `None`: this one.
    pub ipam: Option<String>,
    /// How long an answer of the agent may take.
    pub agent_timeout: Duration,
    /// The result of the plugin before this one (ADD), or of the whole chain (CHECK, DEL).
    pub previous: Option<Value>,
    /// The attachments that are to stay (GC); `None` where the runtime did not say.
    pub valid_attachments: Option<Vec<ValidAttachment>>,
    /// What the runtime asks for by the capabilities of this plugin; see [`Demand`](super::Demand).
    pub runtime_config: Option<Value>,
    /// What whoever made the configuration asks for; see [`Demand`](super::Demand).
    pub args: Option<Value>,
    /// What else the configuration says: kept, and no concern of ours.
    pub unknown: Map<String, Value>,
}

/// An attachment that GC must keep.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ValidAttachment {
    /// Container id.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// Interface name.
    pub ifname: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    cni_version: Option<String>,
    name: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    prev_result: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments", default, deserialize_with = "list_or_null")]
    valid_attachments: Option<Vec<ValidAttachment>>,
    /// The same from a library that was written before the specification had its last word on the name.
    #[serde(rename = "cni.dev/attachments", default, deserialize_with = "list_or_null")]
    attachments: Option<Vec<ValidAttachment>>,
    runtime_config: Option<Value>,
    args: Option<Value>,
    ipam: Option<Value>,
    run_dir: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    agent_timeout_seconds: Option<u64>,
    #[serde(flatten)]
    unknown: Map<String, Value>,
}

impl NetworkConfig {
    /// The state directory where the configuration names none.
    pub const DEFAULT_STATE_DIR: &'static str = "/var/lib/palisade";
    const DEFAULT_TIMEOUT: u64 = 10;
    const LONGEST_TIMEOUT: u64 = 300;

    /// Reads and checks a configuration. `default_run_dir` is where the agent is unless the configuration says
    /// otherwise.
    pub fn parse(input: &[u8], default_run_dir: &str) -> Result<Self, Error> {
        let wire: Wire = serde_json::from_slice(input)
            .map_err(|error| Error::new(Code::Decode, format!("the network configuration on standard input cannot be read: {error}")))?;
        let version = SpecVersion::parse(wire.cni_version.as_deref())?;
        let name = wire.name.unwrap_or_default();
        if name.is_empty() {
            return Err(invalid("the network configuration has no name: add \"name\""));
        }
        if !is_identifier(&name) {
            return Err(invalid(format!(
                "the network's name is '{name}': it must start with a letter or digit and contain only letters, digits, '_', '.' and '-'"
            )));
        }
        let Some(kind) = wire.kind.filter(|kind| !kind.is_empty()) else {
            return Err(invalid("the network configuration has no type: add \"type\": \"palisade-cni\""));
        };
        let seconds = wire.agent_timeout_seconds.unwrap_or(Self::DEFAULT_TIMEOUT);
        if !(1..=Self::LONGEST_TIMEOUT).contains(&seconds) {
            return Err(invalid(format!("\"agentTimeoutSeconds\" is {seconds}: it must be 1 to {}", Self::LONGEST_TIMEOUT)));
        }
        Ok(Self {
            version,
            name,
            run_dir: absolute("runDir", wire.run_dir, default_run_dir)?,
            state_dir: absolute("stateDir", wire.state_dir, Self::DEFAULT_STATE_DIR)?,
            ipam: wire.ipam.map(|ipam| delegate(&ipam, &kind)).transpose()?.flatten(),
            agent_timeout: Duration::from_secs(seconds),
            previous: wire.prev_result,
            valid_attachments: wire.valid_attachments.or(wire.attachments),
            runtime_config: wire.runtime_config,
            args: wire.args,
            unknown: wire.unknown,
        })
    }

    /// The version that a broken configuration asks for, as far as that can be told: an error is answered in it.
    pub fn version_of(input: &[u8]) -> SpecVersion {
        let value: Option<Value> = serde_json::from_slice(input).ok();
        let text = value.as_ref().and_then(|value| value.get("cniVersion")?.as_str());
        text.and_then(|text| SpecVersion::parse(Some(text)).ok()).unwrap_or(SpecVersion::LATEST)
    }

    /// Fails when the configuration's version does not know the verb yet.
    pub fn require_version(&self, verb: &str, first: SpecVersion) -> Result<(), Error> {
        if self.version >= first {
            return Ok(());
        }
        let (ours, first) = (self.version.as_str(), first.as_str());
        Err(Error::new(Code::IncompatibleVersion, format!("{verb} came with CNI {first}, but the configuration's cniVersion is {ours}")))
    }
}

/// A list that is there. Runtimes that are written in Go say null for an empty one: CRI-O does on a node without pods.
fn list_or_null<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Vec<ValidAttachment>>, D::Error> {
    Option::deserialize(input).map(|list| Some(list.unwrap_or_default()))
}

fn absolute(key: &str, path: Option<PathBuf>, default: &str) -> Result<PathBuf, Error> {
    let path = path.unwrap_or_else(|| Path::new(default).to_owned());
    if path.is_absolute() { Ok(path) } else { Err(invalid(format!("\"{key}\" is '{}': it must be an absolute path", path.display()))) }
}

/// The plugin that `ipam` names, where it names one.
fn delegate(ipam: &Value, own: &str) -> Result<Option<String>, Error> {
    if ipam.as_object().is_some_and(Map::is_empty) {
        return Ok(None);
    }
    let Some(kind) = ipam.get("type").and_then(Value::as_str) else {
        return Err(invalid(format!("\"ipam\": {ipam} has no type: name a plugin that assigns addresses, or remove it: then {own} does")));
    };
    if kind == own {
        return Err(invalid(format!(
            "\"ipam.type\" is {kind} itself: remove \"ipam\", and it assigns the addresses from the node's pod ranges"
        )));
    }
    if kind.contains('/') || ["", ".", ".."].contains(&kind) {
        return Err(invalid(format!("\"ipam.type\" is '{kind}': it must be the name of a plugin")));
    }
    Ok(Some(kind.to_owned()))
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(Code::InvalidConfig, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(value: Value) -> Result<NetworkConfig, Error> {
        NetworkConfig::parse(value.to_string().as_bytes(), "/run/palisade")
    }

    #[test]
    fn everything_but_version_name_and_type_has_a_default() {
        let config = parse(json!({"cniVersion": "1.1.0", "name": "net", "type": "palisade-cni", "ipam": {}})).unwrap();
        assert_eq!((config.version, config.name.as_str()), (SpecVersion::V1_1_0, "net"));
        assert_eq!((config.run_dir.to_str(), config.state_dir.to_str()), (Some("/run/palisade"), Some("/var/lib/palisade")));
        assert_eq!(config.agent_timeout, Duration::from_secs(10));
        assert_eq!((config.previous, config.valid_attachments, config.ipam), (None, None, None));
    }

    #[test]
    fn our_keys_are_read_and_unknown_ones_kept() {
        let config = parse(json!({
            "cniVersion": "0.4.0", "name": "net", "type": "palisade-cni", "runDir": "/a", "stateDir": "/b", "agentTimeoutSeconds": 3,
            "prevResult": {"cniVersion": "0.4.0"}, "runtimeConfig": {"x": 1}, "later.invention": [1],
            "ipam": {"type": "host-local", "subnet": "10.0.0.0/24"}, "cni.dev/valid-attachments": [{"containerID": "c", "ifname": "eth0"}],
        }))
        .unwrap();
        assert_eq!((config.run_dir.to_str(), config.state_dir.to_str()), (Some("/a"), Some("/b")));
        assert_eq!(config.agent_timeout, Duration::from_secs(3));
        assert_eq!(config.previous, Some(json!({"cniVersion": "0.4.0"})));
        assert_eq!(config.valid_attachments.unwrap(), [ValidAttachment { container_id: "c".into(), ifname: "eth0".into() }]);
        assert_eq!(config.ipam.as_deref(), Some("host-local"));
        assert_eq!(config.runtime_config, Some(json!({"x": 1})));
        assert_eq!(Value::Object(config.unknown), json!({"later.invention": [1]}));
    }

    #[test]
    fn null_is_an_empty_list_of_valid_attachments_and_no_key_is_none() {
        let config =
            |key: &str, value: Value| parse(json!({"cniVersion": "1.1.0", "name": "net", "type": "palisade-cni", key: value})).unwrap();
        assert_eq!(config("cni.dev/valid-attachments", json!(null)).valid_attachments, Some(Vec::new()));
        assert_eq!(config("cni.dev/valid-attachments", json!([])).valid_attachments, Some(Vec::new()));
        assert_eq!(parse(json!({"cniVersion": "1.1.0", "name": "net", "type": "palisade-cni"})).unwrap().valid_attachments, None);
    }

    #[test]
    fn an_early_library_s_name_of_the_valid_attachments_counts_where_the_specification_s_is_not_there() {
        let list = |container: &str| json!([{"containerID": container, "ifname": "eth0"}]);
        let of = |config: Value| {
            let valid = parse(config).unwrap().valid_attachments;
            valid.map(|valid| valid.into_iter().map(|valid| valid.container_id).collect::<Vec<_>>())
        };
        let mut config = json!({"cniVersion": "1.1.0", "name": "net", "type": "palisade-cni", "cni.dev/attachments": list("early")});
        assert_eq!(of(config.clone()), Some(vec!["early".to_owned()]));
        config["cni.dev/valid-attachments"] = list("specified");
        assert_eq!(of(config.clone()), Some(vec!["specified".to_owned()]));
        config["cni.dev/valid-attachments"] = json!([]);
        assert_eq!(of(config.clone()), Some(Vec::new()), "an empty list is one");
        config.as_object_mut().unwrap().remove("cni.dev/valid-attachments");
        config["cni.dev/attachments"] = json!(null);
        assert_eq!(of(config), Some(Vec::new()));
    }

    #[test]
    fn bad_input_has_its_specified_code() {
        let with = |key: &str, value: Value| {
            let mut config = json!({"cniVersion": "1.0.0", "name": "net", "type": "palisade-cni"});
            config[key] = value;
            parse(config).unwrap_err()
        };
        for (key, value, code, said) in [
            ("cniVersion", json!("9.9.9"), Code::IncompatibleVersion, "9.9.9"),
            ("cniVersion", json!(null), Code::IncompatibleVersion, "0.1.0"),
            ("name", json!(null), Code::InvalidConfig, "name"),
            ("name", json!(""), Code::InvalidConfig, "name"),
            ("name", json!("a/b"), Code::InvalidConfig, "a/b"),
            ("type", json!(null), Code::InvalidConfig, "type"),
            ("ipam", json!({"subnet": "10.0.0.0/24"}), Code::InvalidConfig, "10.0.0.0/24"),
            ("ipam", json!("host-local"), Code::InvalidConfig, "host-local"),
            ("ipam", json!({"type": "palisade-cni"}), Code::InvalidConfig, "itself"),
            ("ipam", json!({"type": "../sh"}), Code::InvalidConfig, "../sh"),
            ("runDir", json!("run"), Code::InvalidConfig, "runDir"),
            ("stateDir", json!("./x"), Code::InvalidConfig, "stateDir"),
            ("agentTimeoutSeconds", json!(0), Code::InvalidConfig, "agentTimeoutSeconds"),
            ("agentTimeoutSeconds", json!(301), Code::InvalidConfig, "300"),
            ("agentTimeoutSeconds", json!("x"), Code::Decode, "invalid type"),
            ("name", json!(7), Code::Decode, "invalid type"),
        ] {
            let error = with(key, value.clone());
            assert_eq!(error.code, code, "{key}: {value}");
            assert!(error.message.contains(said), "{}", error.message);
        }
    }

    #[test]
    fn malformed_json_is_code_6_with_the_place() {
        for input in ["", "{", "[]", "null", "{\"name\": }"] {
            let error = NetworkConfig::parse(input.as_bytes(), "/run").unwrap_err();
            assert_eq!(error.code, Code::Decode, "{input}");
            assert!(error.message.contains("line 1"), "{}", error.message);
        }
    }

    #[test]
    fn an_error_is_answered_in_the_version_asked_for() {
        assert_eq!(NetworkConfig::version_of(b"{\"cniVersion\":\"0.4.0\",\"name\":7}"), SpecVersion::V0_4_0);
        assert_eq!(NetworkConfig::version_of(b"{\"cniVersion\":\"9\"}"), SpecVersion::LATEST);
        assert_eq!(NetworkConfig::version_of(b"nonsense"), SpecVersion::LATEST);
    }

    #[test]
    fn a_verb_that_the_version_does_not_know_is_code_1() {
        let config = parse(json!({"cniVersion": "0.3.1", "name": "net", "type": "palisade-cni"})).unwrap();
        assert_eq!(config.require_version("CHECK", SpecVersion::V0_4_0).unwrap_err().code, Code::IncompatibleVersion);
        assert!(config.require_version("ADD", SpecVersion::V0_3_1).is_ok());
    }
}
