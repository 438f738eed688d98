use super::LinkError;
use nix::errno::Errno;
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::fstat;
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// A network namespace. It lives as long as this handle, a process in it, or a file that it is pinned at.
#[derive(Debug)]
pub struct Namespace {
    file: OwnedFd,
}

/// What tells two network namespaces apart, as long as both live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespaceId {
    device: u64,
    inode: u64,
}

impl Namespace {
    /// Makes a namespace with nothing in it but `lo`, which is down. It ends with the handle.
    pub fn create() -> Result<Self, LinkError> {
        in_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .map_err(|errno| LinkError::Namespace { action: "cannot create a network namespace".into(), errno })?;
            Self::current()
        })?
    }

    /// Makes a namespace and pins it at `path`, as `ip netns add` does: a file that must not exist yet, with the
    /// namespace mounted on it. Missing directories above it are made (mode 0755). See [`Namespace::unpin`].
    pub fn create_at(path: &Path) -> Result<Self, LinkError> {
        let failed = |what: &str, errno| LinkError::Namespace { action: format!("cannot {what} {}", path.display()), errno };
        let errno = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
        if let Some(directory) = path.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(directory)
                .map_err(|error| failed("make the directory of", errno(error)))?;
        }
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o444)
            .open(path)
            .map_err(|error| failed("make the file of namespace", errno(error)))?;
        let pinned = Self::create().and_then(|namespace| {
            let source = format!("/proc/self/fd/{}", namespace.file.as_raw_fd());
            mount(Some(source.as_str()), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .map_err(|errno| failed("pin a namespace at", errno))?;
            Ok(namespace)
        });
        if pinned.is_err() {
            let _ = std::fs::remove_file(path);
        }
        pinned
    }

    /// Takes the pin away that [`Namespace::create_at`] made. False: there was none. The namespace itself ends with
    /// its last process or handle.
    pub fn unpin(path: &Path) -> Result<bool, LinkError> {
        let failed = |action: String| move |errno| LinkError::Namespace { action, errno };
        loop {
            match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                // Nothing (more) is mounted there.
                Err(Errno::EINVAL) => break,
                Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(false),
                other => other.map_err(failed(format!("cannot unmount namespace {}", path.display())))?,
            }
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => {
                Err(failed(format!("cannot remove {}", path.display()))(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))))
            }
            Ok(()) => Ok(true),
        }
    }

    /// Opens the namespace that is pinned at `path`, or that `/proc/PID/ns/net` names.
    ///
    /// Fails with [`LinkError::NoNamespace`] when there is nothing, or something else.
    pub fn open(path: &Path) -> Result<Self, LinkError> {
        let none = |reason: String| LinkError::NoNamespace { path: path.to_owned(), reason };
        // A FIFO at the path must not make us wait for a writer.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(|error| none(error.to_string()))?;
        if is_network_namespace(&file) { Ok(Self { file: file.into() }) } else { Err(none("it is something else".into())) }
    }

    /// The calling thread's namespace.
    pub fn current() -> Result<Self, LinkError> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// What tells this namespace from others.
    pub fn id(&self) -> Result<NamespaceId, LinkError> {
        let status =
            fstat(&self.file).map_err(|errno| LinkError::Namespace { action: "cannot look at a network namespace".into(), errno })?;
        Ok(NamespaceId { device: status.st_dev, inode: status.st_ino })
    }

    /// Runs `work` in a fresh thread inside the namespace, and waits for it. What it opens (sockets) and starts
    /// (processes) stays in the namespace. A panic in `work` goes on in the caller.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LinkError> {
        in_thread(|| {
            setns(&self.file, CloneFlags::CLONE_NEWNET)
                .map_err(|errno| LinkError::Namespace { action: "cannot enter a network namespace".into(), errno })?;
            Ok(work())
        })?
    }

    /// A second handle of the same namespace.
    pub fn try_clone(&self) -> Result<Self, LinkError> {
        let file = self.file.try_clone().map_err(|error| LinkError::Namespace {
            action: "cannot duplicate a handle".into(),
            errno: Errno::from_raw(error.raw_os_error().unwrap_or(libc::EMFILE)),
        })?;
        Ok(Self { file })
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Runs `work` in a thread of its own: a thread that changed its namespace must not be used for anything else.
fn in_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, LinkError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("namespace".into()).spawn_scoped(scope, work).map_err(LinkError::Thread)?;
        thread.join().map_or_else(|panic| std::panic::resume_unwind(panic), Ok)
    })
}

fn is_network_namespace(file: &File) -> bool {
    /// `NS_GET_NSTYPE` of linux/nsfs.h: no argument, answers with the CLONE_NEW* of the kind. Needs Linux 4.11.
    const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
    // SAFETY: the descriptor is open for the whole call; the request takes no argument, and a file that is no
    // namespace refuses it with ENOTTY.
    unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) == libc::CLONE_NEWNET }
}
