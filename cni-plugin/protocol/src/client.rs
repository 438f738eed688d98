use crate::{Call, Failure, PROTOCOL_VERSION, Reply, Request};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// A reply line that is longer than this, in bytes, is not read: it is no reply.
const LONGEST_REPLY: usize = 64 << 20;

/// A connection to the node socket that waits for each answer, but never longer than it was told to.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    timeout: Duration,
    /// What was read beyond the last line.
    rest: Vec<u8>,
}

/// Why the agent gave no answer, or not the one that was hoped for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens at the socket.
    #[error("palisade-agent cannot be reached at {}: {source}; is the agent of this node running?", .path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// The answer did not come in time.
    #[error("palisade-agent did not answer within {} s; see its log", .0.as_secs_f32())]
    TimedOut(Duration),
    /// The agent hung up before it answered.
    #[error("palisade-agent hung up before it answered: it has probably been restarted")]
    HungUp,
    /// Reading or writing failed.
    #[error("node socket: {0}")]
    Io(io::Error),
    /// The answer is not of this protocol.
    #[error("palisade-agent gave an answer that cannot be read ({0}); are the agent and this program of the same version?")]
    Malformed(String),
    /// The agent refused.
    #[error("palisade-agent: {0}")]
    Refused(Failure),
}

impl Client {
    /// Connects to the socket at `path`. Connecting and every later answer may take `timeout`.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self, ClientError> {
        let (sender, receiver) = mpsc::channel();
        let socket = path.to_owned();
        // An agent that hangs with a full queue makes connect() wait without end, and std has no time-out for it.
        std::thread::spawn(move || sender.send(UnixStream::connect(socket)));
        let stream = receiver
            .recv_timeout(timeout)
            .map_err(|_| ClientError::TimedOut(timeout))?
            .map_err(|source| ClientError::Unreachable { path: path.to_owned(), source })?;
        Ok(Self { stream, timeout, rest: Vec::new() })
    }

    /// Changes how long an answer may take.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Asks, and waits for the answer. [`Reply::Error`] comes back as [`ClientError::Refused`].
    pub fn call(&mut self, call: Call) -> Result<Reply, ClientError> {
        self.send(call)?;
        self.receive(Some(Instant::now() + self.timeout))?.ok_or(ClientError::HungUp)
    }

    /// Asks for a stream of replies, such as [`Call::Observe`]; they come out of [`Client::next_reply`].
    pub fn stream(&mut self, call: Call) -> Result<(), ClientError> {
        self.send(call)
    }

    /// The next reply of a stream, whenever it comes; `None` when the agent has hung up.
    pub fn next_reply(&mut self) -> Result<Option<Reply>, ClientError> {
        self.receive(None)
    }

    fn send(&mut self, call: Call) -> Result<(), ClientError> {
        let request = Request { version: PROTOCOL_VERSION, call };
        let mut line = serde_json::to_vec(&request).map_err(|error| ClientError::Malformed(error.to_string()))?;
        line.push(b'\n');
        self.stream.set_write_timeout(Some(self.timeout)).map_err(ClientError::Io)?;
        self.stream.write_all(&line).map_err(|error| self.failed(error))
    }

    fn receive(&mut self, deadline: Option<Instant>) -> Result<Option<Reply>, ClientError> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.rest[searched..].iter().position(|byte| *byte == b'\n').map(|end| searched + end) {
                let reply = serde_json::from_slice(&self.rest[..end]).map_err(|error| ClientError::Malformed(error.to_string()));
                self.rest.drain(..=end);
                return match reply? {
                    Reply::Error(failure) => Err(ClientError::Refused(failure)),
                    reply => Ok(Some(reply)),
                };
            }
            searched = self.rest.len();
            if searched > LONGEST_REPLY {
                return Err(ClientError::Malformed("a line without end".into()));
            }
            // Counted from the question, so that an agent that sends byte by byte cannot stretch it.
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Err(ClientError::TimedOut(self.timeout));
            }
            self.stream.set_read_timeout(left).map_err(ClientError::Io)?;
            let mut part = [0; 16 << 10];
            match self.stream.read(&mut part) {
                Ok(0) if self.rest.is_empty() => return Ok(None),
                Ok(0) => return Err(ClientError::HungUp),
                Ok(length) => self.rest.extend_from_slice(&part[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
    }

    fn failed(&self, error: io::Error) -> ClientError {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::TimedOut(self.timeout),
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ClientError::HungUp,
            _ => ClientError::Io(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;

    /// An agent that answers one request with `answers`, and then hangs up or waits for the client to do so.
    fn agent(answers: &'static [&'static str], hangs: bool) -> (std::path::PathBuf, std::thread::JoinHandle<String>) {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("palisade-client-{}-{number}.sock", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let socket = path.clone();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            std::fs::remove_file(socket).unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut request = String::new();
            reader.read_line(&mut request).unwrap();
            for answer in answers {
                stream.write_all(answer.as_bytes()).unwrap();
            }
            if hangs {
                let _ = reader.read_line(&mut String::new());
            }
            request
        });
        (path, thread)
    }

    const SHORT: Duration = Duration::from_millis(100);
    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn a_call_is_one_line_and_its_answer_another() {
        let (path, thread) = agent(&["{\"reply\":", "\"done\"}\n"], false);
        assert!(matches!(Client::connect(&path, LONG).unwrap().call(Call::Node), Ok(Reply::Done)));
        assert_eq!(thread.join().unwrap(), "{\"version\":1,\"call\":\"node\"}\n");
    }

    #[test]
    fn a_refusal_keeps_its_kind() {
        let (path, thread) =
            agent(&["{\"reply\":\"error\",\"value\":{\"kind\":\"try-again\",\"message\":\"the pod is not known yet\"}}\n"], false);
        let error = Client::connect(&path, LONG).unwrap().call(Call::Node).unwrap_err();
        assert!(matches!(&error, ClientError::Refused(failure) if failure.kind == ErrorKind::TryAgain), "{error}");
        assert!(error.to_string().contains("not known yet"));
        thread.join().unwrap();
    }

    #[test]
    fn an_agent_that_hangs_hangs_up_or_babbles_is_an_error_of_its_own() {
        let (path, hanging) = agent(&["{\"reply\":"], true);
        assert!(matches!(Client::connect(&path, SHORT).unwrap().call(Call::Node), Err(ClientError::TimedOut(_))));
        let (path, dying) = agent(&["{\"reply\":"], false);
        assert!(matches!(Client::connect(&path, LONG).unwrap().call(Call::Node), Err(ClientError::HungUp)));
        let (path, silent) = agent(&[], false);
        assert!(matches!(Client::connect(&path, LONG).unwrap().call(Call::Node), Err(ClientError::HungUp)));
        let (path, babbling) = agent(&["hello\n"], false);
        assert!(matches!(Client::connect(&path, LONG).unwrap().call(Call::Node), Err(ClientError::Malformed(_))));
        for thread in [hanging, dying, silent, babbling] {
            thread.join().unwrap();
        }
        let gone = Client::connect(Path::new("/nonexistent/agent.sock"), LONG).unwrap_err();
        assert!(matches!(gone, ClientError::Unreachable { .. }) && gone.to_string().contains("running"), "{gone}");
    }

    #[test]
    fn a_stream_ends_when_the_agent_hangs_up() {
        let (path, thread) = agent(&["{\"reply\":\"done\"}\n{\"reply\":\"done\"}\n"], false);
        let mut client = Client::connect(&path, LONG).unwrap();
        client.stream(Call::Observe { allowed: true }).unwrap();
        assert!(matches!(client.next_reply(), Ok(Some(Reply::Done))));
        assert!(matches!(client.next_reply(), Ok(Some(Reply::Done))));
        assert!(matches!(client.next_reply(), Ok(None)));
        thread.join().unwrap();
    }
}
