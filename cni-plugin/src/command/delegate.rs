use crate::ipam::Owner;
use crate::spec::{CniResult, Code, Environment, Error, NetworkConfig};
use serde_json::{Map, Value};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Another plugin that gives the addresses (`ipam.type`). It is called as the specification has it (section 4): with the variables
/// of this call and its whole configuration, for every verb but VERSION.
#[derive(Clone, Debug)]
pub(super) struct Delegate {
    kind: String,
    variables: Environment,
    input: Vec<u8>,
}

impl Delegate {
    /// The plugin that a configuration names; `None`: the addresses are ours.
    pub(super) fn of(config: &NetworkConfig, variables: &Environment, input: &[u8]) -> Option<Self> {
        let kind = config.ipam.clone()?;
        Some(Self { kind, variables: variables.clone(), input: input.to_owned() })
    }

    /// Fails where there is no such plugin.
    pub(super) fn require(&self) -> Result<(), Error> {
        self.find().map(|_| ())
    }

    /// Has it give addresses.
    pub(super) fn add(&self) -> Result<CniResult, Error> {
        let output = self.call("ADD", &[])?;
        let result = serde_json::from_slice(&output).map_err(|error| error.to_string());
        result.and_then(CniResult::read).map_err(|error| self.error(Code::Delegate, format!("what it printed is no result: {error}")))
    }

    /// Has it take back what this attachment has. Who asks for GC names no container, so it is named here.
    pub(super) fn del(&self, owner: &Owner) -> Result<(), Error> {
        let attachment = &owner.attachment;
        self.call("DEL", &[("CNI_CONTAINERID", &attachment.container_id), ("CNI_IFNAME", &attachment.interface)]).map(|_| ())
    }

    /// Has it take back what an attachment has that this call is not about: it is told nothing of the container that it is about.
    pub(super) fn del_of_another(&self, owner: &Owner) -> Result<(), Error> {
        let mut input: Map<String, Value> = serde_json::from_slice(&self.input).unwrap_or_default();
        input.retain(|key, _| !["runtimeConfig", "args", "prevResult"].contains(&key.as_str()));
        let asked = Self { input: Value::from(input).to_string().into_bytes(), ..self.clone() };
        let (container, interface) = (owner.attachment.container_id.as_str(), owner.attachment.interface.as_str());
        let variables = [("CNI_CONTAINERID", container), ("CNI_IFNAME", interface), ("CNI_NETNS", ""), ("CNI_ARGS", "")];
        asked.call("DEL", &variables).map(|_| ())
    }

    /// Has it do what a verb that prints nothing asks for.
    pub(super) fn tell(&self, verb: &str) -> Result<(), Error> {
        self.call(verb, &[]).map(|_| ())
    }

    fn find(&self) -> Result<PathBuf, Error> {
        self.variables.require(&["CNI_PATH"])?;
        let folders = self.variables.plugin_folders();
        let runs = |path: &PathBuf| path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0);
        folders.iter().map(|folder| folder.join(&self.kind)).find(runs).ok_or_else(|| {
            let folders: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
            self.error(
                Code::InvalidConfig,
                format!("there is no such plugin in CNI_PATH ({}): install it, or correct \"ipam\"", folders.join(", ")),
            )
        })
    }

    /// Calls it; what it printed.
    fn call(&self, verb: &str, variables: &[(&str, &str)]) -> Result<Vec<u8>, Error> {
        let path = self.find()?;
        let failed = |what: &str, error: std::io::Error| self.error(Code::Delegate, format!("{what} {}: {error}", path.display()));
        let mut command = Command::new(&path);
        command.envs(self.variables.iter()).env("CNI_COMMAND", verb).envs(variables.iter().copied());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(|error| failed("cannot start", error))?;
        // One that does not read its input has closed it, perhaps.
        drop(child.stdin.take().map(|mut input| input.write_all(&self.input)));
        let output = child.wait_with_output().map_err(|error| failed("cannot wait for", error))?;
        if output.status.success() { Ok(output.stdout) } else { Err(self.refused(verb, &output)) }
    }

    /// Its error with its own code, and what it is about.
    fn refused(&self, verb: &str, output: &std::process::Output) -> Error {
        #[derive(serde::Deserialize)]
        struct Said {
            code: u32,
            msg: String,
            #[serde(default)]
            details: String,
        }
        match serde_json::from_slice::<Said>(&output.stdout) {
            Ok(said) => Error { details: said.details, ..self.error(Code::OfAnother(said.code), format!("{verb}: {}", said.msg)) },
            Err(_) => {
                let printed = String::from_utf8_lossy(&output.stdout);
                self.error(Code::Delegate, format!("{verb} ended with {}, without a CNI error: '{}'", output.status, printed.trim()))
            }
        }
    }

    /// An error about what this plugin did.
    pub(super) fn error(&self, code: Code, message: String) -> Error {
        Error::new(code, format!("the IPAM plugin {}: {message}", self.kind))
    }
}
