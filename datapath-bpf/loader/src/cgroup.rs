//! The programs at the sockets of the node's own processes, attached to a cgroup.
//!
//! A link of the kernel holds each of them, and a pin below `sockets` the link. Whose sockets they serve stands in `CONFIG`: the cookie
//! of a network namespace, so that several nodes of one machine can have programs at one cgroup.

use std::{
    ffi::CString,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{CgroupAttachMode, CgroupSockAddr, ProgramType, links::FdLink},
    sys::{BpfHelper, is_helper_supported},
};
use nix::{
    libc,
    sys::{
        socket::{AddressFamily, SockFlag, SockType, socket},
        statfs::{CGROUP2_SUPER_MAGIC, fstatfs},
    },
};

use crate::{
    LoaderError, PinDir,
    error::os_error,
    install::{load_refused, verify},
};

/// The programs, by their names in the object. What leads a socket to a backend comes after what shows it the frontend, so that no
/// socket sees the backend.
const PROGRAMS: [&str; 8] = ["recvmsg4", "recvmsg6", "getpeername4", "getpeername6", "sendmsg4", "sendmsg6", "connect4", "connect6"];
/// The name of the constant that tells the programs that they may say with which error a call fails.
pub(crate) const SAYS_ERROR: &str = "SAYS_ERROR";
/// A pin with this ending waits to be renamed to its own name.
const NEXT: &str = "-next";
/// Where the file system of cgroups has its own when another one of version 1 is around it.
const UNIFIED: &str = "unified";

impl PinDir {
    /// Where the links of the programs at sockets are pinned.
    pub fn sockets_dir(&self) -> PathBuf {
        self.root().join("sockets")
    }

    fn socket_link(&self, program: &str) -> PathBuf {
        self.sockets_dir().join(program)
    }
}

/// A cgroup whose sockets are to be served.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    directory: File,
    /// Its number, which links name.
    id: u64,
}

impl Cgroup {
    /// The cgroup of a directory in a file system of cgroups, version 2; or of its subdirectory `unified`, where version 1 has the rest.
    ///
    /// # Errors
    /// [`LoaderError::NotCgroup`].
    pub fn open(path: &Path) -> Result<Self, LoaderError> {
        let unified = path.join(UNIFIED);
        Self::at(path).or_else(|error| Self::at(&unified).map_err(|_| error))
    }

    fn at(path: &Path) -> Result<Self, LoaderError> {
        let refused = |error: io::Error| LoaderError::NotCgroup { path: path.to_owned(), source: Box::new(error) };
        let directory = File::open(path).map_err(refused)?;
        if fstatfs(&directory).map_err(|errno| refused(errno.into()))?.filesystem_type() != CGROUP2_SUPER_MAGIC {
            return Err(refused(io::Error::from_raw_os_error(libc::EINVAL)));
        }
        let id = directory.metadata().map_err(refused)?.ino();
        Ok(Self { path: path.to_owned(), directory, id })
    }

    /// Where the file system of cgroups, version 2, is mounted, of the lines of /proc/self/mounts: at /sys/fs/cgroup rather than elsewhere.
    pub fn mount_of(mounts: &str) -> Option<PathBuf> {
        let points = mounts.lines().filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (point, kind) = (fields.next()?, fields.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(point))
        });
        // Not the shortest path: a hybrid has it at /sys/fs/cgroup/unified.
        points.min_by_key(|point| !point.starts_with("/sys/fs/cgroup"))
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The cookie of the calling thread's network namespace.
///
/// # Errors
/// [`LoaderError::NoNamespaceCookie`] where the kernel does not tell it.
pub(crate) fn namespace_cookie() -> Result<u64, LoaderError> {
    let refused = |error: io::Error| LoaderError::NoNamespaceCookie { source: Box::new(error) };
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).map_err(|errno| refused(errno.into()))?;
    let (mut cookie, mut length) = (0_u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: the kernel writes at most `length` bytes to the one number, and their count to the other.
    let answer =
        unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, (&raw mut cookie).cast(), &raw mut length) };
    if answer == 0 { Ok(cookie) } else { Err(refused(io::Error::last_os_error())) }
}

/// Whether a program at a socket may say with which error a call fails.
pub(crate) fn says_error() -> bool {
    is_helper_supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval).unwrap_or_else(|error| {
        tracing::debug!(error = %error, "the kernel does not tell whether a socket's program may say an error");
        false
    })
}

/// Loads the programs, where they are not loaded yet.
pub(crate) fn load(programs: &mut Ebpf) -> Result<(), LoaderError> {
    for name in PROGRAMS {
        let program = of(programs, name)?;
        if program.fd().is_err() {
            verify(|| program.load()).map_err(|error| load_refused(error, &format!("the program {name}")))?;
        }
    }
    Ok(())
}

/// Whether programs of ours are at a cgroup, or some of them.
pub(crate) fn is_attached(pin: &PinDir) -> Result<bool, LoaderError> {
    Ok(!pin.names(&pin.sockets_dir())?.is_empty())
}

/// Whether all programs are at a cgroup that is there.
pub(crate) fn is_whole(pin: &PinDir) -> Result<bool, LoaderError> {
    for name in PROGRAMS {
        if cgroup_of(pin, &pin.socket_link(name))?.is_none_or(|id| id == 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Attaches the loaded programs to a cgroup, or puts them in the place of those that are there.
pub(crate) fn attach(pin: &PinDir, programs: &mut Ebpf, cgroup: &Cgroup) -> Result<(), LoaderError> {
    let directory = pin.sockets_dir();
    fs::create_dir_all(&directory).map_err(|error| pin.failed("create", &directory, error))?;
    for name in pin.names(&directory)?.iter().filter(|name| name.ends_with(NEXT)) {
        pin.remove(&directory.join(name))?;
    }
    PROGRAMS.into_iter().try_for_each(|name| attach_one(pin, of(programs, name)?, name, cgroup))
}

fn attach_one(pin: &PinDir, program: &mut CgroupSockAddr, name: &'static str, cgroup: &Cgroup) -> Result<(), LoaderError> {
    let path = pin.socket_link(name);
    if cgroup_of(pin, &path)? == Some(cgroup.id) && replace(pin, program, &path)? {
        return Ok(());
    }
    let failed = |source: crate::error::Cause| LoaderError::AttachToCgroup { program: name, path: cgroup.path.clone(), source };
    // Programs of others stay: a link lets several be at one cgroup, whatever it is told.
    let id = program.attach(&cgroup.directory, CgroupAttachMode::Single).map_err(|error| failed(Box::new(error)))?;
    let link: FdLink =
        program.take_link(id).map_err(|error| failed(Box::new(error)))?.try_into().map_err(|error| failed(Box::new(error)))?;
    // A link that is pinned is at another cgroup, or at none any more.
    let next = pin.sockets_dir().join(format!("{name}{NEXT}"));
    link.pin(&next).map_err(|error| failed(Box::new(error)))?;
    fs::rename(&next, &path).map_err(|error| pin.failed("rename the new link to", &path, error))
}

/// Puts the loaded programs in the place of those that are attached. Where that fails the old one is taken away: it might go on reading
/// maps in which nobody writes any more.
pub(crate) fn replace_all(pin: &PinDir, programs: &mut Ebpf) -> Result<(), LoaderError> {
    for name in PROGRAMS {
        let path = pin.socket_link(name);
        if !path.exists() {
            continue;
        }
        let reason = match of(programs, name).and_then(|program| replace(pin, program, &path)) {
            Ok(true) => continue,
            Ok(false) => "its cgroup is gone".to_owned(),
            Err(error) => error.to_string(),
        };
        tracing::warn!(pin = %path.display(), reason, "the program of sockets is taken away");
        pin.remove(&path)?;
    }
    Ok(())
}

/// Takes the programs away, first what leads sockets to backends; fine when there are none.
pub(crate) fn detach(pin: &PinDir) -> Result<(), LoaderError> {
    for name in PROGRAMS.into_iter().rev() {
        pin.remove(&pin.socket_link(name))?;
    }
    for name in pin.names(&pin.sockets_dir())? {
        pin.remove(&pin.sockets_dir().join(name))?;
    }
    pin.remove(&pin.sockets_dir()).map(drop)
}

fn of<'a>(programs: &'a mut Ebpf, name: &str) -> Result<&'a mut CgroupSockAddr, LoaderError> {
    let missing = || LoaderError::Object { what: format!("it has no program {name} of a socket") };
    programs.program_mut(name).and_then(|program| program.try_into().ok()).ok_or_else(missing)
}

/// Puts a program in the place of a pinned link's; false where the link's cgroup is gone.
fn replace(pin: &PinDir, program: &CgroupSockAddr, path: &Path) -> Result<bool, LoaderError> {
    let link = open(path).map_err(|error| pin.failed("open", path, error))?;
    let failed = |error: io::Error| pin.failed("replace the program of", path, error);
    let new = program.fd().map_err(|error| failed(io::Error::from_raw_os_error(os_error(&error).unwrap_or(libc::EBADF))))?;
    // link_fd, new_prog_fd, flags, old_prog_fd
    let attributes = [link.as_raw_fd() as u32, new.as_fd().as_raw_fd() as u32, 0, 0];
    match bpf(BPF_LINK_UPDATE, &attributes) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(false),
        Err(error) => Err(failed(error)),
    }
}

/// The number of the cgroup that a pinned link is at, as the kernel shows it of an open link; `None` where there is no pin, and 0 where
/// the cgroup is gone.
fn cgroup_of(pin: &PinDir, path: &Path) -> Result<Option<u64>, LoaderError> {
    let link = match open(path) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(pin.failed("open", path, error)),
    };
    let shown = fs::read_to_string(format!("/proc/thread-self/fdinfo/{}", link.as_raw_fd()));
    let shown = shown.map_err(|error| pin.failed("look at", path, error))?;
    Ok(shown.lines().find_map(|line| line.strip_prefix("cgroup_id:")).and_then(|number| number.trim().parse().ok()))
}

// aya replaces the programs of interfaces' links alone, and does not give the descriptor of a pinned one.
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_LINK_UPDATE: libc::c_int = 29;

/// Opens a pin.
fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let [low, high] = [path.as_ptr() as u64 as u32, (path.as_ptr() as u64 >> 32) as u32];
    let pointer = if cfg!(target_endian = "big") { [high, low] } else { [low, high] };
    // pathname, bpf_fd, file_flags
    let fd = bpf(BPF_OBJ_GET, &[pointer[0], pointer[1], 0, 0])?;
    // SAFETY: the kernel has just given it to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A call of bpf(2) with sixteen bytes of attributes. Of those of `BPF_OBJ_GET` the first eight are a pointer to a text that lives until the
/// call is over.
fn bpf(command: libc::c_int, attributes: &[u32; 4]) -> io::Result<libc::c_int> {
    // SAFETY: the kernel reads the attributes, whose size it is told, and what they point to; it writes neither.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes)) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer as libc::c_int) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_of_cgroups_is_found_and_the_usual_place_preferred() {
        let of = |mounts: &str| Cgroup::mount_of(mounts).map(|path| path.display().to_string());
        assert_eq!(of("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n").as_deref(), Some("/sys/fs/cgroup"));
        let hybrid =
            "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncgroup2 /run/cgroup cgroup2 rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(of(hybrid).as_deref(), Some("/sys/fs/cgroup/unified"));
        assert_eq!(of("cgroup2 /run/cgroup cgroup2 rw 0 0\n").as_deref(), Some("/run/cgroup"));
        assert_eq!(of("tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /c cgroup rw 0 0\nshort\n"), None);
    }

    #[test]
    fn a_directory_of_something_else_is_no_cgroup() {
        let error = Cgroup::open(Path::new("/proc")).unwrap_err();
        assert!(matches!(&error, LoaderError::NotCgroup { path, .. } if path == Path::new("/proc")), "{error}");
    }
}
