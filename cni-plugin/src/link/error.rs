use nix::errno::Errno;
use std::path::PathBuf;

/// Why something about namespaces, links, addresses, routes or neighbours failed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The kernel refused a netlink request.
    #[error("{action}: {errno}{}{}", .detail.as_deref().map(|detail| format!(": {detail}")).unwrap_or_default(), hint(*.errno))]
    Refused {
        /// What was asked, with names.
        action: String,
        /// The kernel's error.
        errno: Errno,
        /// The kernel's own sentence, where it gives one (extended acknowledgement).
        detail: Option<String>,
    },
    /// The netlink socket failed.
    #[error("netlink socket, {action}: {errno}{}", hint(*.errno))]
    Socket {
        /// What was tried.
        action: &'static str,
        /// The error.
        errno: Errno,
    },
    /// The kernel's answer could not be read.
    #[error("netlink answer to '{action}' cannot be read: {reason}; this is a defect of palisade or of the kernel")]
    Malformed {
        /// What was asked.
        action: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// There is no network namespace at a path.
    #[error("no network namespace at {}: {reason}", .path.display())]
    NoNamespace {
        /// The path.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A namespace could not be made, pinned, entered or removed.
    #[error("{action}: {errno}{}", hint(*.errno))]
    Namespace {
        /// What was tried, with the path.
        action: String,
        /// The error.
        errno: Errno,
    },
    /// A sysctl could not be read or written.
    #[error("sysctl {name}: {source}")]
    Sysctl {
        /// Name below `/proc/sys`, with slashes.
        name: String,
        /// The error.
        source: std::io::Error,
    },
    /// A thread for a namespace could not be started.
    #[error("cannot start a thread to enter a network namespace: {0}; the machine is out of memory or of processes")]
    Thread(std::io::Error),
}

impl LinkError {
    /// The kernel's error, where there is one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } | Self::Socket { errno, .. } | Self::Namespace { errno, .. } => Some(*errno),
            Self::Sysctl { source, .. } | Self::Thread(source) => source.raw_os_error().map(Errno::from_raw),
            Self::Malformed { .. } | Self::NoNamespace { .. } => None,
        }
    }

    /// Whether what was asked for exists already.
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(Errno::EEXIST)
    }

    /// Whether what was asked about is not there.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::NoNamespace { .. })
            || matches!(self.errno(), Some(Errno::ENODEV | Errno::ESRCH | Errno::ENOENT | Errno::EADDRNOTAVAIL))
    }
}

fn hint(errno: Errno) -> &'static str {
    match errno {
        Errno::EPERM | Errno::EACCES => " (root, or CAP_NET_ADMIN and CAP_SYS_ADMIN, is needed)",
        Errno::EMFILE | Errno::ENFILE => " (too many open files: raise the limit)",
        Errno::ENOBUFS | Errno::ENOMEM => " (the kernel is out of memory for this)",
        _ => "",
    }
}
