use crate::ipam::Owner;
use crate::spec::{CniResult, Code, Environment, Error, NetworkConfig};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Map, Value};
use std::cell::Cell;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::rc::Rc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How often longer than the agent an IPAM plugin may take, which may have a server to ask: 30 s, unless the configuration has another
/// time-out. A kubelet gives a call of the runtime two minutes or more.
const PATIENCE: u32 = 3;
/// Between two looks at whether one that has said all has ended, too.
const PAUSE: Duration = Duration::from_millis(1);

/// Another plugin that gives the addresses (`ipam.type`). It is called as the specification has it (section 4): with the variables
/// of this call and its whole configuration, for every verb but VERSION.
#[derive(Clone, Debug)]
pub(super) struct Delegate {
    kind: String,
    variables: Environment,
    input: Vec<u8>,
    patience: Duration,
    /// Whether a call of it took too long. It is not asked anything else then: nobody is to wait for the same again, and whatever it has
    /// not taken back, the next DEL or GC asks for.
    hangs: Rc<Cell<bool>>,
}

impl Delegate {
    /// The plugin that a configuration names; `None`: the addresses are ours.
    pub(super) fn of(config: &NetworkConfig, variables: &Environment, input: &[u8]) -> Option<Self> {
        let kind = config.ipam.clone()?;
        let patience = config.agent_timeout * PATIENCE;
        Some(Self { kind, variables: variables.clone(), input: input.to_owned(), patience, hangs: Rc::default() })
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
        if self.hangs.get() {
            return Err(self.error(Code::TryAgain, format!("{verb} was not asked of it, since it did not answer a moment ago")));
        }
        let failed = |what: &str, error: std::io::Error| self.error(Code::Delegate, format!("{what} {}: {error}", path.display()));
        let mut command = Command::new(&path);
        command.envs(self.variables.iter()).env("CNI_COMMAND", verb).envs(variables.iter().copied());
        // A group of its own, so that what it has started can be ended with it.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut child = command.spawn().map_err(|error| failed("cannot start", error))?;
        match self.talk(&mut child).map_err(|error| failed("cannot wait for", error))? {
            Some(output) if output.status.success() => Ok(output.stdout),
            Some(output) => Err(self.refused(verb, &output)),
            None => {
                self.hangs.set(true);
                end(&child);
                let message = format!(
                    "{verb} was not answered within {} s, and {} was ended; is a server that it needs away?",
                    self.patience.as_secs(),
                    path.display()
                );
                Err(self.error(Code::TryAgain, message))
            }
        }
    }

    /// Hands it the configuration and takes its answer; `None` where that took too long.
    fn talk(&self, child: &mut Child) -> std::io::Result<Option<Output>> {
        let deadline = Instant::now() + self.patience;
        let (input, pipe) = (self.input.clone(), child.stdin.take());
        // One that does not read its input has closed it, perhaps, or leaves it to fill up.
        std::thread::spawn(move || pipe.map(|mut pipe| pipe.write_all(&input)));
        let (sender, answer) = mpsc::channel();
        let pipe = child.stdout.take();
        std::thread::spawn(move || {
            let mut stdout = Vec::new();
            let read = pipe.map_or(Ok(0), |mut pipe| pipe.read_to_end(&mut stdout));
            sender.send(read.map(|_| stdout))
        });
        let Ok(stdout) = answer.recv_timeout(deadline.saturating_duration_since(Instant::now())) else { return Ok(None) };
        let stdout = stdout?;
        Ok(ended(child, deadline)?.map(|status| Output { status, stdout, stderr: Vec::new() }))
    }

    /// Its error with its own code, and what it is about.
    fn refused(&self, verb: &str, output: &Output) -> Error {
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

/// How a process ended; `None` where it has not by then.
fn ended(child: &mut Child, deadline: Instant) -> std::io::Result<Option<ExitStatus>> {
    loop {
        let status = child.try_wait()?;
        if status.is_some() || Instant::now() >= deadline {
            return Ok(status);
        }
        std::thread::sleep(PAUSE);
    }
}

/// Ends a process that leads its group, and all that it has started. Does not wait for it: the kernel may have it wait for a disk.
fn end(child: &Child) {
    if let Ok(id) = i32::try_from(child.id()) {
        let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
    }
}
