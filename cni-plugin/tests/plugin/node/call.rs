use palisade_test_support::Host;
use serde_json::{Map, Value, json};
use std::io::Write;
use std::process::{Child, Command, Output, Stdio};

/// One call of the binary, as a container runtime makes it.
pub struct Call {
    command: Command,
    config: Value,
}

/// What the binary answered.
#[derive(Debug)]
pub struct Answer {
    pub exit: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// The least configuration that is valid.
pub fn least_config() -> Value {
    json!({"cniVersion": "1.1.0", "name": "palisade", "type": "palisade-cni"})
}

impl Call {
    /// A call with nothing in its environment but the verb.
    pub fn bare(verb: Option<&str>) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_palisade-cni"));
        command.env_clear().envs(verb.map(|verb| ("CNI_COMMAND", verb)));
        Self { command, config: least_config() }
    }

    pub(super) fn new(host: &Host, verb: &str, pod: &str) -> Self {
        let mut call = Self::bare(Some(verb));
        call.command
            .env("CNI_CONTAINERID", pod)
            .env("CNI_NETNS", host.pod_path(pod))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/opt/cni/bin")
            .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={pod};K8S_POD_UID=uid-{pod}"));
        call.key("runDir", host.run_dir().to_str().into())
            .key("stateDir", host.state_dir().to_str().into())
            .key("agentTimeoutSeconds", 20.into())
    }

    /// Sets a variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Sets a key of the configuration; null removes it.
    pub fn key(mut self, name: &str, value: Value) -> Self {
        if value.is_null() {
            self.config.as_object_mut().unwrap().remove(name);
        } else {
            self.config[name] = value;
        }
        self
    }

    /// Answers in another version of the specification.
    pub fn version(self, version: &str) -> Self {
        self.key("cniVersion", version.into())
    }

    /// Starts the binary and hands it the configuration.
    pub fn start(self) -> Child {
        let input = self.config.to_string();
        self.start_with(input.as_bytes())
    }

    fn start_with(mut self, input: &[u8]) -> Child {
        let mut child = self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // A binary that does not read its input has closed it already, perhaps.
        let _ = child.stdin.take().unwrap().write_all(input);
        child
    }

    /// Runs the binary to its end.
    pub fn run(self) -> Answer {
        self.start().wait_with_output().unwrap().into()
    }

    /// Runs the binary with something else on standard input.
    pub fn run_with(self, input: &[u8]) -> Answer {
        self.start_with(input).wait_with_output().unwrap().into()
    }
}

impl From<Output> for Answer {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { exit: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Answer {
    /// The result of a call that must have worked.
    pub fn success(self) -> Value {
        assert_eq!(self.exit, Some(0), "{self:?}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// A call that must have worked without a word on standard output.
    pub fn silent(self) {
        assert_eq!((self.exit, self.stdout.as_str()), (Some(0), ""), "{self:?}");
    }

    /// The message of a call that must have failed with a code, with an error object of the specified form.
    pub fn failure(self, code: u64) -> String {
        assert_eq!(self.exit, Some(1), "{self:?}");
        let error: Map<String, Value> = serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        assert_eq!(error["code"], code, "{self:?}");
        assert!(
            error["cniVersion"].is_string() && error.keys().all(|key| ["cniVersion", "code", "msg", "details"].contains(&key.as_str())),
            "{self:?}"
        );
        let message = error["msg"].as_str().unwrap();
        assert!(self.stderr.contains(message), "the log says it too: {self:?}");
        if let Some(details) = error.get("details") {
            panic!("something could not be undone: {details}");
        }
        message.to_owned()
    }
}
