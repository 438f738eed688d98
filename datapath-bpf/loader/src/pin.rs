use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use palisade_datapath_core::abi::{ABI_VERSION, Hook};

use crate::{LoaderError, error::refuse};

/// What an interface is to the datapath, which says what programs it has: one at its ingress and one at its egress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// The host's end of a pod's link.
    Endpoint,
    /// An interface by which the node is reached. It has Ethernet headers: of another one, the programs find nothing to translate.
    Uplink,
    /// The overlay's device.
    Overlay,
}

impl Role {
    /// The roles whose programs this build has.
    pub const ALL: [Self; 3] = [Self::Endpoint, Self::Uplink, Self::Overlay];

    /// Its programs: at the ingress and at the egress.
    pub const fn hooks(self) -> [Hook; 2] {
        match self {
            Self::Endpoint => [Hook::FromPod, Hook::ToPod],
            Self::Uplink => [Hook::FromNet, Hook::ToNet],
            Self::Overlay => [Hook::FromOverlay, Hook::ToOverlay],
        }
    }

    /// The role that has a program.
    pub(crate) const fn of(hook: Hook) -> Self {
        match hook {
            Hook::FromPod | Hook::ToPod => Self::Endpoint,
            Hook::FromNet | Hook::ToNet => Self::Uplink,
            Hook::FromOverlay | Hook::ToOverlay => Self::Overlay,
        }
    }

    /// The end of the name of the mark that says: this interface has clsact filters of ours.
    const fn mark(self) -> &'static str {
        match self {
            Self::Endpoint => "clsact",
            Self::Uplink => "clsact-uplink",
            Self::Overlay => "clsact-overlay",
        }
    }
}

/// The programs of this build.
pub(crate) fn hooks() -> impl Iterator<Item = Hook> {
    Role::ALL.into_iter().flat_map(Role::hooks)
}

/// The directory in a BPF file system that holds what outlives a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinDir {
    root: PathBuf,
}

impl PinDir {
    /// The directory of this build's ABI version below `base`, for example `/sys/fs/bpf/palisade`.
    pub fn new(base: impl Into<PathBuf>) -> Self {
        Self { root: base.into().join(format!("v{ABI_VERSION}")) }
    }

    /// The directory `dir` itself, as [`root`](Self::root) of another process told it.
    pub fn from_abi_dir(dir: impl Into<PathBuf>) -> Self {
        Self { root: dir.into() }
    }

    /// The directory that carries the ABI version.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the maps are pinned.
    pub fn maps_dir(&self) -> PathBuf {
        self.root.join("maps")
    }

    /// Where the programs are pinned.
    pub fn programs_dir(&self) -> PathBuf {
        self.root.join("programs")
    }

    /// Where the links of the endpoints are pinned.
    pub fn links_dir(&self) -> PathBuf {
        self.root.join("links")
    }

    pub(crate) fn program(&self, hook: Hook) -> PathBuf {
        self.programs_dir().join(hook.program())
    }

    pub(crate) fn link(&self, index: u32, hook: Hook) -> PathBuf {
        self.links_dir().join(format!("{index}-{}", hook.program()))
    }

    /// The empty directory that says: this interface has clsact filters of ours. Filters cannot be pinned, and
    /// asking every interface of a node for its filters would grow with the node.
    pub(crate) fn clsact_mark(&self, index: u32, role: Role) -> PathBuf {
        self.links_dir().join(format!("{index}-{}", role.mark()))
    }

    /// Takes the lock of the directory; waits while another process holds it.
    ///
    /// Replacing the programs takes it alone, attaching shares it: else an endpoint could be given a program that
    /// was replaced a moment ago, and keep it for ever.
    pub(crate) fn lock(&self, way: FlockArg) -> Result<Option<Flock<File>>, LoaderError> {
        let directory = match File::open(&self.root) {
            Ok(directory) => directory,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failed("open", &self.root, error)),
        };
        match Flock::lock(directory, way) {
            Ok(lock) => Ok(Some(lock)),
            Err((_, errno)) => Err(self.failed("lock", &self.root, errno.into())),
        }
    }

    /// An error of a file operation.
    pub(crate) fn failed(&self, action: &'static str, path: &Path, error: io::Error) -> LoaderError {
        refuse(error, || format!("to {action} {}", path.display()), |source| LoaderError::Pin { action, path: path.to_owned(), source })
    }

    /// Removes a file or empty directory; fine when there is none. Says whether there was one.
    pub(crate) fn remove(&self, path: &Path) -> Result<bool, LoaderError> {
        let removed = match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_dir() => fs::remove_dir(path),
            Ok(_) => fs::remove_file(path),
            Err(error) => Err(error),
        };
        match removed {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(self.failed("remove", path, error)),
        }
    }

    /// The names in a directory; none where it does not exist.
    pub(crate) fn names(&self, directory: &Path) -> Result<Vec<String>, LoaderError> {
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(self.failed("read", directory, error)),
        };
        entries
            .map(|entry| Ok(entry.map_err(|error| self.failed("read", directory, error))?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    /// What the names in the links directory stand for.
    pub(crate) fn pinned(&self) -> Result<Vec<(u32, Pinned)>, LoaderError> {
        Ok(self.names(&self.links_dir())?.iter().filter_map(|name| parse(name)).collect())
    }
}

/// What a name in the links directory stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pinned {
    /// A TCX link.
    Link(Hook),
    /// The mark of clsact filters.
    Clsact(Role),
}

impl Pinned {
    /// What its interface is.
    pub(crate) const fn role(self) -> Role {
        match self {
            Self::Link(hook) => Role::of(hook),
            Self::Clsact(role) => role,
        }
    }
}

fn parse(name: &str) -> Option<(u32, Pinned)> {
    let (index, rest) = name.split_once('-')?;
    let pinned = hooks()
        .find(|hook| hook.program() == rest)
        .map(Pinned::Link)
        .or_else(|| Role::ALL.into_iter().find(|role| role.mark() == rest).map(Pinned::Clsact))?;
    Some((index.parse().ok()?, pinned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_carries_the_abi_version() {
        let pin = PinDir::new("/sys/fs/bpf/palisade");
        assert_eq!(pin.root(), Path::new("/sys/fs/bpf/palisade").join(format!("v{ABI_VERSION}")));
        assert_eq!(PinDir::from_abi_dir(pin.root()), pin);
    }

    #[test]
    fn names_of_links_are_read_back() {
        let pin = PinDir::new("/b");
        for hook in hooks() {
            let path = pin.link(7, hook);
            assert_eq!(parse(path.file_name().unwrap().to_str().unwrap()), Some((7, Pinned::Link(hook))));
        }
        for role in Role::ALL {
            let path = pin.clsact_mark(7, role);
            assert_eq!(parse(path.file_name().unwrap().to_str().unwrap()), Some((7, Pinned::Clsact(role))));
        }
    }

    #[test]
    fn foreign_names_among_the_links_are_ignored() {
        for name in ["7", "x-from_pod", "7-other", "-from_pod", "7-from_pod-next", "7-clsact-other"] {
            assert_eq!(parse(name), None, "{name}");
        }
    }
}
