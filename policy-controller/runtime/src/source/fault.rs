//! Why the API server gives no answer, in words that say what to do.

use kube::runtime::watcher;
use std::error::Error;

/// Why the API server gives no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// No connection.
    #[error(
        "the API server at {server} cannot be reached: {cause}; check its address (--api-server; apiServer.host and apiServer.port of the chart) and the node's network"
    )]
    Unreachable {
        /// Where it was looked for.
        server: String,
        /// What the system said.
        cause: String,
    },
    /// Its certificate is not signed by the authority that was given.
    #[error(
        "the API server at {server} is not trusted: {cause}; its certificate must be valid for this address and signed by the service account's CA"
    )]
    Untrusted {
        /// Where it was found.
        server: String,
        /// What is wrong with the certificate.
        cause: String,
    },
    /// It does not know who we are.
    #[error(
        "the API server at {server} does not accept the agent's credentials (401): the service account's token is missing, expired or of another cluster"
    )]
    Unauthorised {
        /// Which server.
        server: String,
    },
    /// We may not do this.
    #[error(
        "the agent may not {verb} {resource} (403: {message}); its service account needs get, list and watch of what the chart's ClusterRole names"
    )]
    Forbidden {
        /// The verb.
        verb: &'static str,
        /// The resource, in plural.
        resource: &'static str,
        /// What the API server said.
        message: String,
    },
    /// Another answer than the one that was asked for.
    #[error("the API server at {server} answered {verb} {resource} with: {message}")]
    Answer {
        /// Which server.
        server: String,
        /// The verb.
        verb: &'static str,
        /// The resource, in plural.
        resource: &'static str,
        /// What it said.
        message: String,
    },
    /// The credentials cannot be read.
    #[error("no way to the API server is configured: {0}")]
    Configuration(String),
    /// A watch is just listing everything anew, so that what is read beside it cannot be ordered.
    #[error("the watch of {0} is just beginning anew")]
    Listing(&'static str),
}

/// What was asked of whom.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The server.
    pub server: &'a str,
    /// The verb.
    pub verb: &'static str,
    /// The resource, in plural.
    pub resource: &'static str,
}

impl SourceError {
    /// The category of a client's error.
    pub fn of(error: &kube::Error, asked: Asked<'_>) -> Self {
        let server = asked.server.to_owned();
        match error {
            kube::Error::Api(status) => Self::of_status(status, asked),
            kube::Error::Auth(error) => Self::Configuration(causes(error)),
            kube::Error::Service(error) => Self::of_connection(causes(&**error), server),
            kube::Error::HyperError(error) => Self::of_connection(causes(error), server),
            kube::Error::ReadEvents(error) => Self::Unreachable { server, cause: causes(error) },
            other => Self::Answer { server, verb: asked.verb, resource: asked.resource, message: causes(other) },
        }
    }

    /// The category of a watch's error; `None` for a watch that only has to begin anew.
    pub fn of_watch(error: &watcher::Error, asked: Asked<'_>) -> Option<Self> {
        match error {
            watcher::Error::InitialListFailed(error) => Some(Self::of(error, Asked { verb: "list", ..asked })),
            watcher::Error::WatchStartFailed(error) | watcher::Error::WatchFailed(error) => Some(Self::of(error, asked)),
            // Too old a version to go on from: the ordinary end of a watch that was idle for long.
            watcher::Error::WatchError(status) if status.code == 410 => None,
            watcher::Error::WatchError(status) => Some(Self::of_status(status, asked)),
            watcher::Error::NoResourceVersion => Some(Self::Answer {
                server: asked.server.to_owned(),
                verb: asked.verb,
                resource: asked.resource,
                message: error.to_string(),
            }),
        }
    }

    fn of_status(status: &kube::core::Status, asked: Asked<'_>) -> Self {
        let server = asked.server.to_owned();
        match status.code {
            401 => Self::Unauthorised { server },
            403 => Self::Forbidden { verb: asked.verb, resource: asked.resource, message: status.message.clone() },
            code => Self::Answer {
                server,
                verb: asked.verb,
                resource: asked.resource,
                message: format!("{} ({code} {})", status.message, status.reason),
            },
        }
    }

    fn of_connection(cause: String, server: String) -> Self {
        // rustls' errors come through two libraries as text.
        if cause.contains("certificate") { Self::Untrusted { server, cause } } else { Self::Unreachable { server, cause } }
    }
}

/// An error and its causes in one line, without repeating what a cause says again.
fn causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    const ASKED: Asked<'_> = Asked { server: "https://192.0.2.1:6443/", verb: "watch", resource: "pods" };

    fn answer(code: u16, message: &str) -> kube::Error {
        kube::Error::Api(Status::failure(message, "Reason").with_code(code).boxed())
    }

    #[test]
    fn refused_credentials_are_told_from_a_missing_permission() {
        assert!(matches!(SourceError::of(&answer(401, "Unauthorized"), ASKED), SourceError::Unauthorised { .. }));
        let forbidden = SourceError::of(&answer(403, "pods is forbidden: User \"x\" cannot watch"), ASKED).to_string();
        assert!(forbidden.contains("may not watch pods") && forbidden.contains("ClusterRole"), "{forbidden}");
    }

    #[test]
    fn a_failed_list_names_the_verb_list() {
        let error = watcher::Error::InitialListFailed(answer(403, "no"));
        assert!(matches!(SourceError::of_watch(&error, ASKED), Some(SourceError::Forbidden { verb: "list", resource: "pods", .. })));
    }

    #[test]
    fn a_watch_that_fell_behind_is_no_problem() {
        let gone = watcher::Error::WatchError(Status::failure("too old", "Expired").with_code(410).boxed());
        assert_eq!(SourceError::of_watch(&gone, ASKED), None);
    }

    #[test]
    fn a_bad_certificate_is_told_from_a_server_that_does_not_answer() {
        let service = |text: &str| kube::Error::Service(Box::new(std::io::Error::other(text.to_owned())));
        let refused = SourceError::of(&service("Connection refused"), ASKED);
        assert!(matches!(&refused, SourceError::Unreachable { .. }) && refused.to_string().contains("192.0.2.1:6443"), "{refused}");
        let untrusted = SourceError::of(&service("invalid peer certificate: UnknownIssuer"), ASKED);
        assert!(matches!(untrusted, SourceError::Untrusted { .. }), "{untrusted}");
    }

    #[test]
    fn other_answers_keep_their_code() {
        let error = SourceError::of(&answer(503, "etcd is away"), ASKED).to_string();
        assert!(error.contains("503") && error.contains("etcd is away"), "{error}");
    }
}
