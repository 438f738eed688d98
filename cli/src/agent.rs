//! Which agent is asked: that of this node, or that of a running lab.

use crate::arguments::AgentArguments;
use crate::error::CliError;
use crate::lab::{outside, paths, registry};
use palisade_protocol::{Client, ClientError, Reply, SOCKET_NAME};
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

/// How long an agent may take for an answer.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Connects to the agent that the arguments name.
pub fn connect(arguments: &AgentArguments) -> Result<Client, CliError> {
    Client::connect(&socket(arguments)?, PATIENCE).map_err(|error| match &error {
        ClientError::Unreachable { path, source } if source.kind() == ErrorKind::PermissionDenied => {
            CliError::Environment(format!("no permission for {}: run it as root", path.display()))
        }
        ClientError::Unreachable { .. } if arguments.lab.is_none() && !registry::running().is_empty() => {
            CliError::Environment(format!("{error} A lab is running: --lab asks that one"))
        }
        _ => error.into(),
    })
}

/// The error for an answer of a kind that was not asked for.
pub fn unexpected(reply: &Reply) -> CliError {
    CliError::Socket(ClientError::Malformed(format!("an answer of another kind: {reply:?}")))
}

/// Path of the node socket that the arguments name.
fn socket(arguments: &AgentArguments) -> Result<PathBuf, CliError> {
    match &arguments.lab {
        None => Ok(arguments.run_dir().join(SOCKET_NAME)),
        Some(name) => {
            let lab = registry::find(name.as_deref())?;
            let node = lab.node(arguments.node.as_deref())?;
            Ok(lab.inside(&paths::Places::of(&node).run).join(SOCKET_NAME))
        }
    }
}

/// How many nodes the lab has that the arguments name, where they name one.
pub fn lab_nodes(arguments: &AgentArguments) -> Result<Option<outside::Nodes>, CliError> {
    arguments.lab.as_ref().map(|name| Ok(registry::find(name.as_deref())?.nodes())).transpose()
}
