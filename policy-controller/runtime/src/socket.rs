//! The node socket: one JSON request per line, one JSON response per line.

use crate::agent::Agent;
use crate::error::AgentError;
use crate::state::State;
use crate::{explain, policies, realise, services, status};
use palisade_protocol::{Call, ErrorKind, Failure, PROTOCOL_VERSION, Reply, Request};
use serde::Deserialize;
use std::convert::Infallible;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

/// Longest request in bytes, newline included.
const LONGEST_REQUEST: usize = 64 * 1024;
/// Connections served at once; more wait for their turn.
const MOST_CONNECTIONS: usize = 256;

/// The listening socket. Its file goes with it, unless a later agent has put its own there.
#[derive(Debug)]
pub struct NodeSocket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl NodeSocket {
    /// Listens, for root only; a stale socket is replaced. The caller holds the lock of the run directory.
    ///
    /// # Errors
    /// [`AgentError::Socket`].
    pub fn bind(path: &Path) -> Result<Self, AgentError> {
        let failed = |error| AgentError::Socket { path: path.parent().unwrap_or(path).to_owned(), error };
        // Made under another name and renamed when only root can open it: never open to others, never absent.
        let new = path.with_extension("new");
        match fs::remove_file(&new) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&new).map_err(failed)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        fs::rename(&new, path).map_err(failed)?;
        let inode = inode(path).map_err(failed)?;
        Ok(Self { listener, path: path.to_owned(), inode })
    }

    /// Serves for ever.
    pub async fn serve(self, agent: Arc<Agent>) -> std::io::Result<Infallible> {
        let mut connections = JoinSet::new();
        loop {
            while connections.len() >= MOST_CONNECTIONS {
                connections.join_next().await;
            }
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => drop(connections.spawn(converse(Arc::clone(&agent), stream))),
                    // Out of file descriptors, for example: connections that end give some back.
                    Err(error) => {
                        tracing::error!(%error, "cannot accept a connection on the node socket");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }
}

impl Drop for NodeSocket {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|inode| inode == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn inode(path: &Path) -> std::io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(fs::symlink_metadata(path)?.ino())
}

/// Answers the requests of one connection until the client hangs up.
async fn converse(agent: Arc<Agent>, stream: UnixStream) {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    // An error here is the client's: it hung up, or sent no line.
    while let Ok(Some(line)) = line(&mut read).await {
        let reply = match parse(&line) {
            Ok(Call::Observe { allowed }) => return observe(&agent, allowed, read, write).await,
            Ok(call) => answer(&agent, call).await,
            Err(failure) => Err(failure),
        };
        if send(&mut write, &reply.unwrap_or_else(Reply::Error)).await.is_err() {
            return;
        }
    }
}

/// The next line; `None` at the end. A longer one than allowed is an error.
async fn line(read: &mut (impl AsyncBufRead + Unpin)) -> std::io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let length = read.take(LONGEST_REQUEST as u64).read_until(b'\n', &mut line).await?;
    match line.last() {
        _ if length == 0 => Ok(None),
        Some(b'\n') => Ok(Some(line)),
        _ if length >= LONGEST_REQUEST => Err(std::io::ErrorKind::InvalidData.into()),
        // The last line, without its newline.
        _ => Ok(Some(line)),
    }
}

/// The call of a request line.
fn parse(line: &[u8]) -> Result<Call, Failure> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let invalid = |error: serde_json::Error| Failure { kind: ErrorKind::Invalid, message: format!("the request cannot be read: {error}") };
    // The version first: a request of another one may have other fields.
    let Version { version } = serde_json::from_slice(line).map_err(invalid)?;
    if version != PROTOCOL_VERSION {
        let message = format!(
            "the agent speaks version {PROTOCOL_VERSION} of the node socket and was asked in version {version}; use programs of one release"
        );
        return Err(Failure { kind: ErrorKind::Version, message });
    }
    Ok(serde_json::from_slice::<Request>(line).map_err(invalid)?.call)
}

async fn send(write: &mut OwnedWriteHalf, reply: &Reply) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    write.write_all(&line).await
}

async fn answer(agent: &Arc<Agent>, call: Call) -> Result<Reply, Failure> {
    match call {
        Call::Node => realise::node(agent).map(Reply::Node),
        Call::Realise(spec) => realise::realise(agent, spec).await.map(|()| Reply::Done),
        Call::Release(release) => realise::release(agent, release).await.map(|()| Reply::Done),
        Call::Check(attachment) => realise::check(agent, attachment).await.map(|()| Reply::Done),
        Call::Status => Ok(Reply::Status(status::status(&agent.state, &agent.kernel).await)),
        Call::Endpoints => Ok(Reply::Endpoints(status::endpoints(&agent.state))),
        Call::Policies { object } => {
            let reports = agent.listed.reports(agent).await;
            aside(agent, move |state| policies::policies(state, &reports, object.as_deref())).await.map(Reply::Policies)
        }
        Call::Identities { object } => {
            let reports = agent.listed.reports(agent).await;
            aside(agent, move |state| policies::identities(state, &reports, object.as_deref())).await.map(Reply::Identities)
        }
        Call::Services { namespaces, object, backends } => {
            let services = move |state: &State| services::services(state, &namespaces, object.as_deref(), backends);
            aside(agent, services).await.map(Reply::Services)
        }
        Call::Explain(query) => aside(agent, move |state| explain::explain(state, &query)).await?.map(Reply::Explained),
        // Taken by the caller: its answer is a stream.
        Call::Observe { .. } => Err(Failure { kind: ErrorKind::Internal, message: "observe is answered by a stream".to_owned() }),
    }
}

/// Sends events until the client hangs up. The first line says that it is observed from now on.
async fn observe(agent: &Agent, allowed: bool, mut read: BufReader<OwnedReadHalf>, mut write: OwnedWriteHalf) {
    let mut subscription = agent.state.events.subscribe(allowed);
    if allowed && agent.kernel.run(|kernel| kernel.observe_allowed(true)).await.is_err() {
        return;
    }
    if send(&mut write, &Reply::Done).await.is_err() {
        return;
    }
    loop {
        tokio::select! {
            event = subscription.next(|count| agent.state.metrics.events_lost(count)) => {
                let Some(event) = event else { return };
                if send(&mut write, &Reply::Event(event)).await.is_err() {
                    return;
                }
            }
            // Whatever the client sends now is not answered; its end ends the stream.
            line = line(&mut read) => match line {
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return,
            },
        }
    }
}

/// Answers on a thread of its own: what walks over the whole model must not keep others waiting.
async fn aside<T: Send + 'static>(agent: &Agent, answer: impl FnOnce(&State) -> T + Send + 'static) -> Result<T, Failure> {
    let state = Arc::clone(&agent.state);
    let answered = tokio::task::spawn_blocking(move || answer(&state)).await;
    answered.map_err(|error| Failure { kind: ErrorKind::Internal, message: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_of_another_version_is_refused_whatever_its_fields() {
        let failure = parse(br#"{"version":99,"call":"teleport"}"#).unwrap_err();
        assert_eq!(failure.kind, ErrorKind::Version);
    }

    #[test]
    fn a_request_that_cannot_be_read_is_invalid() {
        for line in [&b"{"[..], b"{}", br#"{"version":1}"#, br#"{"version":1,"call":"teleport"}"#, b"\n"] {
            assert_eq!(parse(line).unwrap_err().kind, ErrorKind::Invalid, "{:?}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn calls_are_read() {
        let Ok(Call::Services { namespaces, object: None, backends: false }) = parse(br#"{"version":1,"call":"services"}"#) else {
            panic!("refused")
        };
        assert!(namespaces.is_empty());
        assert!(matches!(parse(br#"{"version":1,"call":"observe","allowed":true}"#), Ok(Call::Observe { allowed: true })));
        assert!(matches!(parse(br#"{"version":1,"call":"node"}"#), Ok(Call::Node)));
    }

    #[tokio::test]
    async fn a_line_without_end_is_no_request() {
        let endless = vec![b'x'; LONGEST_REQUEST + 1];
        assert!(line(&mut endless.as_slice()).await.is_err());
        assert_eq!(line(&mut b"{}\nrest".as_slice()).await.unwrap().unwrap(), b"{}\n");
        assert!(line(&mut b"".as_slice()).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_only_its_owner_removes_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let first = NodeSocket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let second = NodeSocket::bind(&path).unwrap();
        drop(first);
        assert!(path.exists(), "the first agent must not remove the second one's socket");
        drop(second);
        assert!(!path.exists());
    }
}
