//! A container runtime: plugins are called by the library that runtimes are built with, in the program `tests/e2e/libcni`.

use crate::node::{Node, node};
use palisade_test_support::{requires_root, skipped};
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use tempfile::TempDir;

/// A runtime with one network, whose list of plugins begins with ours.
#[derive(Clone)]
pub struct Runtime<'a> {
    pub node: &'a Node<'a>,
    program: &'static Path,
    network: Value,
    folders: Vec<String>,
    capabilities: Map<String, Value>,
    path: Option<String>,
}

/// What came of a call of the library.
#[derive(Debug)]
pub struct Reply {
    /// What it gave; null where it gives nothing.
    pub result: Value,
    /// The calls of plugins that it made.
    pub calls: Vec<Called>,
    error: Option<(u64, String)>,
}

/// One call of a plugin.
#[derive(Debug)]
pub struct Called {
    pub verb: String,
    pub plugin: String,
    /// The configuration that it was handed.
    pub input: Value,
    /// What it printed, where it did not fail.
    pub output: String,
}

/// The folder of the binary.
const OURS: &str = env!("CARGO_BIN_EXE_palisade-cni");

/// Runs a test on a node with a runtime. Without Go, which the program is built by, the test is skipped, visibly.
pub fn with_runtime(ranges: &[&str], test: impl FnOnce(&Runtime<'_>) + Send) {
    if !requires_root() {
        return;
    }
    // Before the node is made: there is no network on it to fetch modules by.
    let Some(program) = program() else { return };
    node(ranges, |node| {
        let folder = Path::new(OURS).parent().unwrap();
        let own = json!({
            "type": "palisade-cni",
            "runDir": node.host.run_dir(), "stateDir": node.host.state_dir(), "agentTimeoutSeconds": 20,
        });
        test(&Runtime {
            node,
            program,
            network: json!({"cniVersion": "1.1.0", "name": "palisade", "plugins": [own]}),
            folders: vec![folder.to_str().unwrap().to_owned()],
            capabilities: Map::new(),
            path: None,
        });
    });
}

impl<'a> Runtime<'a> {
    /// The same with the network in another version of the specification.
    pub fn version(&self, version: &str) -> Self {
        self.with(|runtime| runtime.network["cniVersion"] = version.into())
    }

    /// The same with a further plugin at the end of the list.
    pub fn then(&self, plugin: &Value) -> Self {
        self.with(|runtime| runtime.network["plugins"].as_array_mut().unwrap().push(plugin.clone()))
    }

    /// The same without the plugins of a type.
    pub fn without(&self, kind: &str) -> Self {
        self.with(|runtime| runtime.network["plugins"].as_array_mut().unwrap().retain(|plugin| plugin["type"] != kind))
    }

    /// The same with a network that is the configuration of our plugin alone, not a list.
    pub fn of_one(&self) -> Self {
        self.with(|runtime| {
            let mut plugin = runtime.network["plugins"][0].take();
            for key in ["cniVersion", "name"] {
                plugin[key] = runtime.network[key].take();
            }
            runtime.network = plugin;
        })
    }

    /// The same with a key of our plugin's configuration.
    pub fn key(&self, name: &str, value: &Value) -> Self {
        self.with(|runtime| runtime.network["plugins"][0][name] = value.clone())
    }

    /// The same with one more folder of plugins.
    pub fn folder(&self, folder: &str) -> Self {
        self.with(|runtime| runtime.folders.push(folder.to_owned()))
    }

    /// The same where plugins find programs in these folders.
    pub fn path(&self, path: &str) -> Self {
        self.with(|runtime| runtime.path = Some(path.to_owned()))
    }

    /// The same with something that plugins with this capability are to do for a container.
    pub fn capability(&self, name: &str, value: Value) -> Self {
        self.with(|runtime| drop(runtime.capabilities.insert(name.to_owned(), value)))
    }

    fn with(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut runtime = self.clone();
        change(&mut runtime);
        runtime
    }

    /// Makes a pod's namespace and connects it.
    pub fn add(&self, pod: &str) -> Reply {
        self.node.host.create_pod(pod).unwrap();
        self.call("ADD", pod).success()
    }

    /// Disconnects a pod and removes its namespace.
    pub fn remove(&self, pod: &str) {
        self.call("DEL", pod).success();
        self.node.host.remove_pod(pod).unwrap();
    }

    /// A call about a pod's attachment; the container id is the pod's name.
    pub fn call(&self, verb: &str, pod: &str) -> Reply {
        self.call_in(verb, pod, self.node.host.pod_path(pod).to_str().unwrap())
    }

    /// A call about a pod's attachment, of which the runtime knows this path of its namespace.
    pub fn call_in(&self, verb: &str, pod: &str, namespace: &str) -> Reply {
        self.ask(json!({"verb": verb, "attachment": {
            "containerId": pod, "namespace": namespace, "interface": "eth0", "args": arguments(pod), "capabilities": self.capabilities,
        }}))
    }

    /// GC, with the pods whose attachments are valid; `None`: without a list.
    pub fn gc(&self, valid: Option<&[&str]>) -> Reply {
        let attachment = |pod: &&str| json!({"containerID": pod, "ifname": "eth0"});
        let list = valid.map(|pods| pods.iter().map(attachment).collect::<Vec<_>>());
        self.ask(json!({"verb": "GC", "valid": list.map(|list| json!({"attachments": list}))}))
    }

    /// GC with a list that is Go's nil, which the library writes as null.
    pub fn gc_with_nil(&self) -> Reply {
        self.ask(json!({"verb": "GC", "valid": {"attachments": null}}))
    }

    /// A call about the network: STATUS, or VALIDATE.
    pub fn of_network(&self, verb: &str) -> Reply {
        self.ask(json!({"verb": verb}))
    }

    /// The versions that a plugin speaks.
    pub fn versions(&self, plugin: &str) -> Vec<String> {
        serde_json::from_value(self.ask(json!({"verb": "VERSION", "plugin": plugin})).success().result).unwrap()
    }

    /// The file in which the library keeps the result of a pod's ADD.
    pub fn cached(&self, pod: &str) -> PathBuf {
        self.cache().join(format!("results/palisade-{pod}-eth0"))
    }

    /// The tool that comes with the library, with the same network.
    pub fn tool(&self) -> Tool<'a> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("10-palisade.conflist"), self.network.to_string()).unwrap();
        Tool { runtime: self.clone(), folder }
    }

    fn cache(&self) -> PathBuf {
        self.node.host.directory().join("cache")
    }

    fn ask(&self, mut request: Value) -> Reply {
        request["path"] = self.folders.clone().into();
        request["cacheDir"] = self.cache().to_str().into();
        request["network"] = self.network.clone();
        let mut command = Command::new(self.program);
        command.envs(self.path.as_ref().map(|path| ("PATH", path)));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(request.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        Reply::read(&serde_json::from_slice(&output.stdout).unwrap())
    }
}

/// The program `cnitool`. What the library keeps, always below /var/lib/cni here, it keeps in a folder of this tool's own.
pub struct Tool<'a> {
    runtime: Runtime<'a>,
    folder: TempDir,
}

impl Tool<'_> {
    /// Starts it for a verb and a pod, of which it is told what a runtime knows. What came of it.
    fn start(&self, verb: &str, pod: &str) -> Output {
        let (runtime, folder) = (&self.runtime, self.folder.path());
        let arguments: Vec<String> = arguments(pod).iter().map(|[name, value]| format!("{name}={value}")).collect();
        Command::new("unshare")
            .args(["--mount", "sh", "-c", r#"mount --bind "$1" /var/lib && shift && exec "$@""#, "sh"])
            .args([folder, &runtime.program.with_file_name("cnitool")])
            .args([verb, "palisade", runtime.node.host.pod_path(pod).to_str().unwrap()])
            .env("CNI_PATH", runtime.folders.join(":"))
            .env("NETCONFPATH", folder)
            .env("CNI_ARGS", arguments.join(";"))
            .env("CAP_ARGS", Value::from(runtime.capabilities.clone()).to_string())
            .output()
            .unwrap()
    }

    /// What it printed for a verb that must have worked.
    pub fn done(&self, verb: &str, pod: &str) -> String {
        let output = self.start(verb, pod);
        assert!(output.status.success(), "{verb} {pod}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What it said of a verb that must have failed.
    pub fn refused(&self, verb: &str, pod: &str) -> String {
        let output = self.start(verb, pod);
        assert_eq!(output.status.code(), Some(1), "{verb} {pod}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

impl Reply {
    fn read(answer: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let call = |call: &Value| Called {
            verb: text(&call["verb"]),
            plugin: text(&call["plugin"]),
            input: call["input"].clone(),
            output: text(&call["output"]),
        };
        let error = answer.get("error").map(|error| (error["code"].as_u64().unwrap(), text(&error["message"])));
        let calls = answer["calls"].as_array().unwrap().iter().map(call).collect();
        Self { result: answer.get("result").cloned().unwrap_or_default(), calls, error }
    }

    /// A call that must have worked, and in which our plugin did not say more than it may.
    pub fn success(self) -> Self {
        assert_eq!(self.error, None, "{self:?}");
        let silent = |call: &&Called| call.plugin == "palisade-cni" && !["ADD", "VERSION"].contains(&call.verb.as_str());
        assert!(self.calls.iter().filter(silent).all(|call| call.output.is_empty()), "{self:?}");
        self
    }

    /// The message of a call that must have failed with a code; 0 is the library's own.
    pub fn failure(self, code: u64) -> String {
        match &self.error {
            Some((found, message)) if *found == code => message.clone(),
            _ => panic!("not code {code}: {self:?}"),
        }
    }

    /// The message of a call, where it failed.
    pub fn message(&self) -> Option<&str> {
        self.error.as_ref().map(|(_, message)| message.as_str())
    }

    /// The verbs that plugins were called with, in order: `DEL bandwidth`.
    pub fn order(&self) -> Vec<String> {
        self.calls.iter().map(|call| format!("{} {}", call.verb, call.plugin)).collect()
    }

    /// What the plugin that was called at this place printed.
    pub fn printed(&self, place: usize) -> Value {
        serde_json::from_str(&self.calls[place].output).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// What a runtime says of a pod, in CNI_ARGS.
fn arguments(pod: &str) -> [[String; 2]; 5] {
    [
        ["IgnoreUnknown", "1"],
        ["K8S_POD_NAMESPACE", "shop"],
        ["K8S_POD_NAME", pod],
        ["K8S_POD_INFRA_CONTAINER_ID", pod],
        ["K8S_POD_UID", &format!("uid-{pod}")],
    ]
    .map(|pair| pair.map(str::to_owned))
}

/// The program, built once per run; `None` without Go, said where it is seen.
fn program() -> Option<&'static Path> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    let program = PROGRAM.get_or_init(build).as_deref();
    if program.is_none() {
        skipped("needs Go 1.21 or later, in PATH or in /usr/local/go");
    }
    program
}

/// Builds the program, and beside it the library's own tool, below the target folder; `None` without Go.
fn build() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("go");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/e2e/libcni/build");
    let output = Command::new(script).arg(&folder).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0) => Some(folder.join("bin/libcni")),
        Some(3) => None,
        _ => panic!("tests/e2e/libcni does not build; is the Go module proxy reachable?\n{said}"),
    }
}
