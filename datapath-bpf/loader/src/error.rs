use std::{error::Error, io, path::PathBuf};

use crate::AttachKind;

/// The error of the library below, kept whole for the chain of causes.
pub(crate) type Cause = Box<dyn Error + Send + Sync + 'static>;

/// What can go wrong between this process, the kernel and the pin directory.
#[derive(Debug, thiserror::Error)]
pub enum LoaderError {
    /// The pin directory does not lie on a BPF file system.
    #[error("{path} is not on a BPF file system, where programs and tables outlive the agent: mount one with `mount -t bpf bpf /sys/fs/bpf`, or mount the node's /sys/fs/bpf into the container", path = path.display())]
    NotBpffs {
        /// The nearest directory that exists.
        path: PathBuf,
    },
    /// The kernel refused for lack of a capability.
    #[error("{action} is not permitted: run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON")]
    Permission {
        /// What was tried.
        action: String,
        /// The kernel's answer.
        #[source]
        source: Cause,
    },
    /// A file operation in the pin directory failed.
    #[error("cannot {action} {path}", path = path.display())]
    Pin {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: Cause,
    },
    /// A newer Palisade has pinned its state beside ours.
    #[error("{path} was pinned by a newer version of Palisade (ABI {found}, this one writes {ours}): it was left untouched; run the newer version, or drain the node and remove the directory", path = path.display())]
    NewerAbi {
        /// The directory of the newer version.
        path: PathBuf,
        /// Its ABI version.
        found: u32,
        /// The ABI version of this build.
        ours: u32,
    },
    /// A pinned map does not fit the programs. It was left untouched.
    #[error("the pinned map {map} ({path}) is {pinned}, but the programs want {declared}: it was left untouched; drain the node and remove the pin directory to start afresh", path = path.display())]
    Layout {
        /// Name of the map.
        map: String,
        /// Where it is pinned.
        path: PathBuf,
        /// The layout of what is pinned, in words.
        pinned: String,
        /// The layout that the object declares, in words.
        declared: String,
    },
    /// The BPF object that this binary carries cannot be read, or lacks something: a defect of the build.
    #[error("the BPF object of this build is not usable: {what}")]
    Object {
        /// What is wrong with it.
        what: String,
    },
    /// The kernel refused the maps or a program.
    #[error("the kernel refused to load {what}")]
    Load {
        /// Which part.
        what: String,
        /// The kernel's answer, with the verifier's log where there is one.
        #[source]
        source: Cause,
    },
    /// The kernel has no way to attach the programs.
    #[error("the kernel has neither TCX (Linux 6.6 and later) nor clsact with BPF classifiers (modules sch_ingress and cls_bpf)")]
    NoAttachKind {
        /// Why clsact failed.
        #[source]
        source: Cause,
    },
    /// No programs are pinned: the agent has not run on this node yet.
    #[error("no programs are pinned in {path}: the agent is not ready on this node yet", path = path.display())]
    ProgramsMissing {
        /// Where the programs should be.
        path: PathBuf,
    },
    /// The interface does not exist in this network namespace, or its index is another's.
    #[error("there is no interface {interface} with index {index} in this network namespace")]
    InterfaceMissing {
        /// Its name.
        interface: String,
        /// Its index.
        index: u32,
    },
    /// A program could not be attached.
    #[error("cannot attach {program} to {interface} by {kind}")]
    Attach {
        /// Name of the program.
        program: &'static str,
        /// Name of the interface.
        interface: String,
        /// The way it was tried.
        kind: AttachKind,
        /// The kernel's answer.
        #[source]
        source: Cause,
    },
    /// A directory is no cgroup to which programs can be attached.
    #[error("{path} is not in a file system of cgroups, version 2: mount one with `mount -t cgroup2 none {path}`, or mount the node's /sys/fs/cgroup into the container, and name it (--cgroup)", path = path.display())]
    NotCgroup {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: Cause,
    },
    /// The kernel does not tell the number of a network namespace, without which sockets of the node and of pods look alike.
    #[error("the kernel does not tell the cookie of a network namespace (Linux 5.14 and later), by which the node's sockets are known")]
    NoNamespaceCookie {
        /// What the system said.
        #[source]
        source: Cause,
    },
    /// A program could not be attached to a cgroup.
    #[error("cannot attach {program} to the cgroup {path}; it takes CAP_NET_ADMIN, and no other program there that wants to be alone", path = path.display())]
    AttachToCgroup {
        /// Name of the program.
        program: &'static str,
        /// The cgroup's directory.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: Cause,
    },
    /// Sockets could not be listed, or one of them not be ended.
    #[error("cannot {action} (needs the kernel's module udp_diag and, to end one, CONFIG_INET_DIAG_DESTROY)")]
    Sockets {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        #[source]
        source: Cause,
    },
    /// A program could not be detached.
    #[error("cannot detach {program} from interface {index}")]
    Detach {
        /// Name of the program.
        program: &'static str,
        /// Index of the interface.
        index: u32,
        /// The kernel's answer.
        #[source]
        source: Cause,
    },
    /// The programs of an interface could not be asked for.
    #[error("cannot list the programs of interface {interface}")]
    Query {
        /// Name or index of the interface.
        interface: String,
        /// The kernel's answer.
        #[source]
        source: Cause,
    },
    /// An operation on a table failed.
    #[error("cannot {operation} the row {key} of {map}")]
    Table {
        /// Name of the map.
        map: &'static str,
        /// The operation, as a verb.
        operation: &'static str,
        /// The row's key.
        key: String,
        /// The kernel's answer.
        #[source]
        source: Cause,
    },
    /// A table has no room for a further row.
    #[error(
        "{map} is full: it has room for {max_entries} rows and {key} is one more; use fewer or broader policies, or run fewer pods on this node"
    )]
    TableFull {
        /// Name of the map.
        map: &'static str,
        /// Number of rows that it has room for.
        max_entries: u32,
        /// The row that did not fit.
        key: String,
    },
    /// A map would need more rows than its limit. Nothing was changed.
    #[error("{map} may have room for {limit} rows at most and {rows} are needed, {} too many: raise its limit (--map-limit)", .rows - *.limit as usize)]
    TooManyRows {
        /// Name of the map.
        map: &'static str,
        /// Rows that are needed.
        rows: usize,
        /// Rows that it may have room for.
        limit: u32,
    },
    /// Maps could not be replaced by larger ones. Everything is as before.
    #[error("cannot replace {maps} by larger maps; those that are there stay")]
    Grow {
        /// The names of the maps.
        maps: String,
        /// Why not.
        #[source]
        source: Box<LoaderError>,
    },
    /// Maps were replaced by larger ones in part, and that could not be undone: some endpoints may read the old ones, which hold the same rows.
    #[error("{maps} were replaced by larger maps only in part; the datapath has to be opened anew")]
    Torn {
        /// The names of the maps.
        maps: String,
        /// What failed.
        #[source]
        source: Box<LoaderError>,
    },
    /// A record of the event ring is none that this version writes.
    #[error("a record of the event ring has {length} bytes instead of {expected}")]
    EventMalformed {
        /// Its length in bytes.
        length: usize,
        /// The length of an event in bytes.
        expected: usize,
    },
    /// A program could not be run over a packet.
    #[error("cannot run {program} over a packet of {length} bytes as from interface {ifindex}")]
    TestRun {
        /// Name of the program.
        program: &'static str,
        /// Length of the packet in bytes.
        length: usize,
        /// Index of the interface; it must exist in this network namespace.
        ifindex: u32,
        /// The kernel's answer.
        #[source]
        source: Cause,
    },
}

impl LoaderError {
    /// The kernel's error number at the root of this error, where there is one.
    pub fn os_error(&self) -> Option<i32> {
        os_error(self)
    }
}

/// The error number at the root of a chain of causes.
pub(crate) fn os_error(error: &(dyn Error + 'static)) -> Option<i32> {
    let mut cause = Some(error);
    let mut found = None;
    while let Some(error) = cause {
        if let Some(number) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            found = Some(number);
        }
        if let Some(errno) = error.downcast_ref::<nix::errno::Errno>() {
            found = Some(*errno as i32);
        }
        cause = error.source();
    }
    found
}

/// Turns an error of the library below into ours; a refusal for lack of capabilities always into the same one.
pub(crate) fn refuse<E>(source: E, action: impl FnOnce() -> String, other: impl FnOnce(Cause) -> LoaderError) -> LoaderError
where
    E: Error + Send + Sync + 'static,
{
    if os_error(&source) == Some(nix::libc::EPERM) {
        return LoaderError::Permission { action: action(), source: Box::new(source) };
    }
    other(Box::new(source))
}

/// A pinned map that cannot be opened. Here EACCES, too, is a lack of permission: the file's mode.
#[cfg(feature = "load")]
pub(crate) fn cannot_open(path: &std::path::Path, source: impl Error + Send + Sync + 'static) -> LoaderError {
    match os_error(&source) {
        Some(nix::libc::EPERM | nix::libc::EACCES) => {
            LoaderError::Permission { action: format!("to open {}", path.display()), source: Box::new(source) }
        }
        _ => LoaderError::Pin { action: "open the map", path: path.to_owned(), source: Box::new(source) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_for_lack_of_capabilities_names_them() {
        let denied = io::Error::from_raw_os_error(nix::libc::EPERM);
        let error = refuse(denied, || "loading the programs".to_owned(), |source| LoaderError::NoAttachKind { source });
        let text = error.to_string();
        assert!(text.contains("loading the programs") && text.contains("CAP_BPF") && text.contains("CAP_NET_ADMIN"), "{text}");
        assert_eq!(error.os_error(), Some(nix::libc::EPERM));
    }

    #[test]
    fn other_refusals_keep_their_cause() {
        let invalid = io::Error::from_raw_os_error(nix::libc::EINVAL);
        let error = refuse(invalid, String::new, |source| LoaderError::NoAttachKind { source });
        assert!(matches!(error, LoaderError::NoAttachKind { .. }));
        assert_eq!(error.os_error(), Some(nix::libc::EINVAL));
    }
}
