//! Runs `palisade`, and reads what it says.

use palisade_test_support::requires_root;
use serde_json::Value;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The binary under test.
pub const PALISADE: &str = env!("CARGO_BIN_EXE_palisade");

/// How long anything may take on a busy machine.
pub const LONG: Duration = Duration::from_secs(60);

/// Whether a lab can run: as root, and with the CNI binary beside the one under test.
pub fn labs_run_here() -> bool {
    if !requires_root() {
        return false;
    }
    let cni = Path::new(PALISADE).with_file_name("palisade-cni");
    assert!(cni.exists(), "{} is missing: build it with -p palisade-cni", cni.display());
    true
}

/// The example that users start with.
pub fn shop() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/shop")
}

/// `palisade` with arguments.
pub fn palisade<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(PALISADE);
    command.args(arguments).stdin(Stdio::null());
    command
}

/// How a command ended, and what it said.
pub struct Ended {
    /// Its exit code; none where a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub output: String,
    /// Standard error.
    pub errors: String,
}

impl Ended {
    /// The output as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.output).unwrap_or_else(|error| panic!("no JSON ({error}): {}\n{}", self.output, self.errors))
    }

    /// Demands an exit code.
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "\n-- standard output --\n{}\n-- standard error --\n{}", self.output, self.errors);
        self
    }
}

/// Runs a command to its end.
pub fn run(mut command: Command) -> Ended {
    let output = command.output().expect("palisade starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("output is text");
    Ended { code: output.status.code(), output: text(output.stdout), errors: text(output.stderr) }
}

/// Runs `palisade lab DIR` with further arguments to its end.
pub fn lab(directory: &Path, arguments: &[&str]) -> Ended {
    let mut command = palisade(["lab"]);
    command.arg(directory).args(arguments);
    run(command)
}

/// A command that runs while the test goes on; it is killed with the value.
pub struct Running {
    child: Child,
    output: Arc<Mutex<String>>,
    errors: Arc<Mutex<String>>,
    /// What reads both.
    readers: [JoinHandle<()>; 2],
}

impl Running {
    /// Starts a lab that stays.
    pub fn lab(directory: &Path, arguments: &[&str]) -> Self {
        let mut command = palisade(["lab"]);
        command.arg(directory).args(arguments);
        Self::start(command)
    }

    /// Starts a command.
    pub fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("palisade starts");
        let (output, of_output) = collect(child.stdout.take().expect("piped"));
        let (errors, of_errors) = collect(child.stderr.take().expect("piped"));
        Self { child, output, errors, readers: [of_output, of_errors] }
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a process id")
    }

    /// What it has written to standard output.
    pub fn output(&self) -> String {
        self.output.lock().unwrap().clone()
    }

    /// What it has written to standard error.
    pub fn errors(&self) -> String {
        self.errors.lock().unwrap().clone()
    }

    /// Waits until it has written `text` to standard error.
    pub fn wait_for_errors(&self, text: &str) {
        self.wait(text, &self.errors);
    }

    /// Waits until it has written `text` to standard output.
    pub fn wait_for_output(&self, text: &str) {
        self.wait(text, &self.output);
    }

    fn wait(&self, text: &str, stream: &Mutex<String>) {
        let start = Instant::now();
        while !stream.lock().unwrap().contains(text) {
            assert!(start.elapsed() < LONG, "{text:?} was not said:\n-- output --\n{}\n-- errors --\n{}", self.output(), self.errors());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal).expect("it runs");
    }

    /// Waits for its end, and until all that it has written is read.
    pub fn wait_for_end(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            let ended = self.child.try_wait().expect("it is our child");
            if let Some(status) = ended.filter(|_| self.readers.iter().all(JoinHandle::is_finished)) {
                return status;
            }
            assert!(start.elapsed() < LONG, "it does not end:\n{}\n{}", self.output(), self.errors());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(mut stream: impl Read + Send + 'static) -> (Arc<Mutex<String>>, JoinHandle<()>) {
    let text = Arc::new(Mutex::new(String::new()));
    let all = Arc::clone(&text);
    let reader = std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(length @ 1..) = stream.read(&mut bytes) {
            all.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..length]));
        }
    });
    (text, reader)
}

/// A directory of manifests that ends with the test.
pub struct Manifests(tempfile::TempDir);

impl Manifests {
    /// A directory with one file, `all.yaml`.
    pub fn new(text: &str) -> Self {
        let manifests = Self(tempfile::tempdir().expect("a temporary directory"));
        manifests.write("all.yaml", text);
        manifests
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file whole, as an editor does: under another name first.
    pub fn write(&self, name: &str, text: &str) {
        let unfinished = self.path().join(format!(".{name}.new"));
        std::fs::write(&unfinished, text).unwrap();
        std::fs::rename(unfinished, self.path().join(name)).unwrap();
    }

    /// Writes a file that is no manifest, in a place where no manifest is looked for.
    pub fn beside(&self, name: &str, text: &str) -> String {
        let directory = self.path().join("expect");
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

/// A namespace, labelled with its own name.
pub fn namespace(name: &str) -> String {
    format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{name: {name}}}}}\n")
}

/// A pod, labelled `app: NAME`, with ports in flow style.
pub fn pod(namespace: &str, name: &str, ports: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}\nspec:\n  \
         containers:\n  - {{name: c, image: i, ports: [{ports}]}}\n"
    )
}

/// A policy with its spec in flow style.
pub fn policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

/// The probes of a report that fit, as `(from, to, protocol, port) -> all of them reached`.
pub fn reached(report: &Value, from: &str, to: &str, protocol: &str, port: u16) -> bool {
    let probes: Vec<&Value> = probes(report)
        .filter(|probe| probe["from"] == from && probe["to"] == to && probe["protocol"] == protocol && probe["port"] == port)
        .collect();
    assert_eq!(probes.len(), 2, "{from} -> {to} {protocol} {port}: both families in {report}");
    assert_eq!(probes[0]["reached"], probes[1]["reached"], "both families go the same way: {probes:?}");
    probes[0]["reached"] == true
}

/// The probes of a report.
pub fn probes(report: &Value) -> impl Iterator<Item = &Value> {
    report["probes"].as_array().expect("probes").iter()
}
