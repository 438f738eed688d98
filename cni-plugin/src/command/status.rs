use super::agent::Agent;
use super::call;
use super::delegate::Delegate;
use crate::spec::{Code, Error, NetworkConfig};

/// STATUS: whether ADD can be served. What is connected already stays enforced without the agent, so the answer is
/// never that existing containers suffer (51).
pub(super) fn status(config: &NetworkConfig, delegate: Option<&Delegate>) -> Result<(), Error> {
    let not_available = |message: String| Error::new(Code::NotAvailable, message);
    let status = Agent::new(config).status().map_err(|error| not_available(error.message))?;
    if !status.ready {
        return Err(not_available(format!("palisade-agent is not ready: {}", status.problems.join("; "))));
    }
    call::store(config).owners().map(|_| ()).map_err(|error| not_available(error.to_string()))?;
    delegate.map_or(Ok(()), |delegate| delegate.tell("STATUS"))
}
