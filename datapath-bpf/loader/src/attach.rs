use std::{
    collections::BTreeSet,
    fmt, fs, io,
    os::fd::AsRawFd,
    thread,
    time::{Duration, Instant},
};

use aya::programs::{
    Link, LinkOrder, MultiProgLink, ProgramError, SchedClassifier, TcAttachType,
    links::{FdLink, LinkError, PinnedLink},
    tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact},
};
use nix::{
    fcntl::FlockArg,
    libc::{EEXIST, EINVAL, ENODEV, ENOENT, ENOLINK, ENXIO},
    net::if_::{if_indextoname, if_nametoindex},
};
use palisade_datapath_core::abi::Hook;

use crate::{
    LoaderError, PinDir,
    error::{Cause, os_error, refuse},
    filter,
    pin::Role,
};

/// How the programs are attached to an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AttachKind {
    /// A link of its own, pinned; Linux 6.6 and later.
    Tcx,
    /// A filter of the clsact qdisc.
    Clsact,
}

impl fmt::Display for AttachKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        })
    }
}

/// Before every other filter: a filter that runs earlier could send a packet on its way unjudged.
const PRIORITY: u16 = 1;
/// "PAL1", so that our filters are told from others of the same priority.
const HANDLE: TcHandle = TcHandle::new(0x5041, 0x4c31);

const fn attach_type(hook: Hook) -> TcAttachType {
    match hook {
        Hook::FromPod | Hook::FromNet | Hook::FromOverlay => TcAttachType::Ingress,
        Hook::ToPod | Hook::ToNet | Hook::ToOverlay => TcAttachType::Egress,
    }
}

/// How this kernel lets programs be attached. Asks the kernel, not its version.
///
/// # Errors
/// [`LoaderError::Permission`] where the caller may not ask.
pub fn supported_kind() -> Result<AttachKind, LoaderError> {
    // `lo` has an index in every network namespace; the query changes nothing.
    match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
        Ok(_) => Ok(AttachKind::Tcx),
        // The kernel has listed programs of others; looking at them takes CAP_SYS_ADMIN.
        Err(ProgramError::SyscallError(error)) if error.call != "bpf_prog_query" => Ok(AttachKind::Tcx),
        Err(error) if os_error(&error) == Some(EINVAL) => Ok(AttachKind::Clsact),
        Err(error) => Err(refuse(
            error,
            || "to ask the kernel for TCX".to_owned(),
            |source| LoaderError::Query { interface: "lo".to_owned(), source },
        )),
    }
}

/// Attaches the pinned programs to both directions of an endpoint's host-side interface: [`attach`] with [`Role::Endpoint`].
///
/// # Errors
/// As [`attach`].
pub fn attach_endpoint(pin: &PinDir, host_interface: &str, host_index: u32) -> Result<AttachKind, LoaderError> {
    attach(pin, Role::Endpoint, host_interface, host_index)
}

/// Attaches the pinned programs of a role to both directions of an interface, which must be in the calling thread's
/// network namespace. What is attached already is replaced in place, without a gap.
///
/// On an error one of the programs may be attached; [`detach`] undoes it.
///
/// # Errors
/// [`LoaderError::ProgramsMissing`] where the agent has not pinned any; [`LoaderError::InterfaceMissing`]; [`LoaderError::Attach`].
pub fn attach(pin: &PinDir, role: Role, interface: &str, index: u32) -> Result<AttachKind, LoaderError> {
    let kind = supported_kind()?;
    attach_with(pin, kind, role, interface, index)?;
    Ok(kind)
}

/// As [`attach`], by the given way; what was attached the other way is removed afterwards.
///
/// # Errors
/// As [`attach`].
pub fn attach_with(pin: &PinDir, kind: AttachKind, role: Role, interface: &str, index: u32) -> Result<(), LoaderError> {
    if if_nametoindex(interface).ok() != Some(index) {
        return Err(LoaderError::InterfaceMissing { interface: interface.to_owned(), index });
    }
    let _lock = pin.lock(FlockArg::LockShared)?;
    let links = pin.links_dir();
    for hook in role.hooks() {
        let mut program = pinned_program(pin, hook)?;
        match kind {
            AttachKind::Tcx => attach_link(pin, &mut program, hook, interface, index)?,
            AttachKind::Clsact => {
                let mark = pin.clsact_mark(index, role);
                fs::create_dir_all(&mark).map_err(|error| pin.failed("create", &links, error))?;
                attach_filter(&mut program, hook, interface)?;
            }
        }
    }
    match kind {
        AttachKind::Tcx => remove_filters(pin, role, index),
        AttachKind::Clsact => remove_links(pin, role, index),
    }
}

/// Removes our programs from an endpoint's interface: [`detach`] with [`Role::Endpoint`].
///
/// # Errors
/// As [`detach`].
pub fn detach_endpoint(pin: &PinDir, host_index: u32) -> Result<(), LoaderError> {
    detach(pin, Role::Endpoint, host_index)
}

/// Removes the programs of a role from an interface, or what is left of them once the interface is gone; fine when nothing is there.
///
/// A link ends with its last reference: the kernel may run the program for a moment after this returns. The clsact qdisc stays,
/// others may have filters on it.
///
/// # Errors
/// [`LoaderError::Detach`], [`LoaderError::Pin`].
pub fn detach(pin: &PinDir, role: Role, index: u32) -> Result<(), LoaderError> {
    let _lock = pin.lock(FlockArg::LockShared)?;
    remove_links(pin, role, index)?;
    remove_filters(pin, role, index)
}

/// Whether both programs are attached to an endpoint's interface: [`is_attached`] with [`Role::Endpoint`].
///
/// # Errors
/// As [`is_attached`].
pub fn endpoint_attached(pin: &PinDir, host_interface: &str, host_index: u32) -> Result<bool, LoaderError> {
    is_attached(pin, Role::Endpoint, host_interface, host_index)
}

/// Whether both programs of a role are attached to an interface of the calling thread's network namespace.
///
/// # Errors
/// [`LoaderError::Query`] where the kernel does not answer.
pub fn is_attached(pin: &PinDir, role: Role, interface: &str, index: u32) -> Result<bool, LoaderError> {
    if if_nametoindex(interface).ok() != Some(index) {
        return Ok(false);
    }
    let _lock = pin.lock(FlockArg::LockShared)?;
    let [ingress, egress] = role.hooks();
    if pin.clsact_mark(index, role).exists() {
        return Ok(has_filter(index, ingress)? && has_filter(index, egress)?);
    }
    for hook in role.hooks() {
        let link = match PinnedLink::from_pin(pin.link(index, hook)) {
            Ok(link) => link,
            Err(error) if link_error(&error) == Some(ENOENT) => return Ok(false),
            Err(error) => return Err(query(interface, error)),
        };
        if interface_of(link.into()).map_err(|error| query(interface, error))? != Some(index) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The indices of the interfaces that have programs of a role pinned, attached to them or left over.
///
/// # Errors
/// [`LoaderError::Pin`] where the directory cannot be read.
pub fn pinned_links(pin: &PinDir, role: Role) -> Result<BTreeSet<u32>, LoaderError> {
    Ok(pin.pinned()?.into_iter().filter(|(_, pinned)| pinned.role() == role).map(|(index, _)| index).collect())
}

fn pinned_program(pin: &PinDir, hook: Hook) -> Result<SchedClassifier, LoaderError> {
    let path = pin.program(hook);
    SchedClassifier::from_pin(&path).map_err(|error| match os_error(&error) {
        Some(ENOENT) => LoaderError::ProgramsMissing { path: pin.programs_dir() },
        _ => refuse(
            error,
            || format!("to open {}", path.display()),
            |source| LoaderError::Pin { action: "open", path: path.clone(), source },
        ),
    })
}

fn query(interface: &str, error: impl std::error::Error + Send + Sync + 'static) -> LoaderError {
    refuse(
        error,
        || format!("to list the programs of {interface}"),
        |source| LoaderError::Query { interface: interface.to_owned(), source },
    )
}

fn link_error(error: &LinkError) -> Option<i32> {
    match error {
        LinkError::SyscallError(error) => error.io_error.raw_os_error(),
        other => os_error(other),
    }
}

/// The index of the interface that a link is attached to; `None` where that is gone.
///
/// The kernel shows it for an open link to anyone; to list the programs of an interface would take CAP_SYS_ADMIN,
/// which the agent does not have.
fn interface_of(link: FdLink) -> io::Result<Option<u32>> {
    let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text.to_owned());
    let link: SchedClassifierLink = link.try_into().map_err(|_| invalid("the pinned object is no TCX link"))?;
    let shown = match MultiProgLink::fd(&link) {
        Ok(fd) => fs::read_to_string(format!("/proc/thread-self/fdinfo/{}", fd.as_raw_fd()))?,
        Err(_) => return Err(invalid("the pinned object is no TCX link")),
    };
    let index = shown.lines().find_map(|line| line.strip_prefix("ifindex:")).and_then(|number| number.trim().parse().ok());
    index.map(|index| (index != 0).then_some(index)).ok_or_else(|| invalid("the kernel does not tell the interface of a link"))
}

pub(crate) fn has_filter(index: u32, hook: Hook) -> Result<bool, LoaderError> {
    let parent = match hook {
        Hook::FromPod | Hook::FromNet | Hook::FromOverlay => filter::INGRESS,
        Hook::ToPod | Hook::ToNet | Hook::ToOverlay => filter::EGRESS,
    };
    match filter::list(index, parent) {
        Ok(filters) => Ok(filters.iter().any(|filter| filter.priority == PRIORITY && filter.handle == u32::from(HANDLE))),
        Err(error) if matches!(error.raw_os_error(), Some(ENODEV | EINVAL)) => Ok(false),
        Err(error) => Err(query(&index.to_string(), error)),
    }
}

/// How long the kernel may take to let a link go whose pin was removed, and how often it is asked.
const LINK_GOES_WITHIN: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_millis(10);

/// Attaches by a pinned TCX link, or replaces the program of the one that is pinned.
fn attach_link(pin: &PinDir, program: &mut SchedClassifier, hook: Hook, interface: &str, index: u32) -> Result<(), LoaderError> {
    let failed =
        |source: Cause| LoaderError::Attach { program: hook.program(), interface: interface.to_owned(), kind: AttachKind::Tcx, source };
    let refused = |error: ProgramError| refuse(error, || format!("to attach {} to {interface}", hook.program()), failed);
    let since = Instant::now();
    let path = pin.link(index, hook);
    if path.exists() {
        // Another index, or none, is that of an interface that is gone, whose index this one was given.
        let link = PinnedLink::from_pin(&path).map_err(|error| query(interface, error))?;
        let here = interface_of(link.into()).map_err(|error| query(interface, error))? == Some(index);
        if here && replace_link(pin, program, hook, index)? {
            return Ok(());
        }
        pin.remove(&path)?;
    }
    let id = loop {
        match program.attach_with_options(interface, attach_type(hook), TcAttachOptions::TcxOrder(LinkOrder::first())) {
            // The kernel lets a link go a moment after its last pin is gone (`bpf_link_put`), and takes a program once.
            Err(error) if os_error(&error) == Some(EEXIST) && since.elapsed() < LINK_GOES_WITHIN => thread::sleep(RETRY),
            attached => break attached.map_err(refused)?,
        }
    };
    let link = program.take_link(id).map_err(refused)?;
    let link: FdLink = link.try_into().map_err(|error: LinkError| failed(Box::new(error)))?;
    link.pin(&path).map_err(|error| {
        refuse(error, || format!("to pin {}", path.display()), |source| LoaderError::Pin { action: "pin", path: path.clone(), source })
    })?;
    Ok(())
}

/// Replaces the program of a pinned link in place; false where its interface is gone.
pub(crate) fn replace_link(pin: &PinDir, program: &mut SchedClassifier, hook: Hook, index: u32) -> Result<bool, LoaderError> {
    let path = pin.link(index, hook);
    let failed = |source: Cause| LoaderError::Pin { action: "replace the program of", path: path.clone(), source };
    let action = || format!("to replace the program of {}", path.display());
    let link = PinnedLink::from_pin(&path).map_err(|error| refuse(error, action, failed))?;
    let link: SchedClassifierLink = FdLink::from(link).try_into().map_err(|error| refuse(error, action, failed))?;
    match program.attach_to_link(link) {
        Ok(id) => {
            // Dropping our reference ends nothing: the pin holds the link.
            drop(program.take_link(id).map_err(|error| refuse(error, action, failed))?);
            Ok(true)
        }
        Err(error) if os_error(&error) == Some(ENOLINK) => Ok(false),
        Err(error) => Err(refuse(error, action, failed)),
    }
}

/// Attaches by a clsact filter, or replaces the program of ours in place.
pub(crate) fn attach_filter(program: &mut SchedClassifier, hook: Hook, interface: &str) -> Result<(), LoaderError> {
    add_filter(program, hook, interface).map_err(|error| {
        refuse(
            error,
            || format!("to attach {} to {interface}", hook.program()),
            |source| LoaderError::Attach { program: hook.program(), interface: interface.to_owned(), kind: AttachKind::Clsact, source },
        )
    })
}

pub(crate) fn add_filter(program: &mut SchedClassifier, hook: Hook, interface: &str) -> Result<(), ProgramError> {
    match qdisc_add_clsact(interface) {
        Ok(()) => {}
        Err(TcError::AlreadyAttached) => {}
        Err(error) if os_error(&error) == Some(EEXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let present = SchedClassifierLink::attached(interface, attach_type(hook), PRIORITY, HANDLE, None).map_err(TcError::IoError)?;
    let id = match program.attach_to_link(present) {
        Err(error) if os_error(&error) == Some(ENOENT) => program.attach_with_options(
            interface,
            attach_type(hook),
            TcAttachOptions::Netlink(NlOptions { priority: PRIORITY, handle: HANDLE, classid: None }),
        ),
        answer => answer,
    }?;
    // The filter belongs to the interface and outlives this process; dropping it here would remove it.
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

fn remove_links(pin: &PinDir, role: Role, index: u32) -> Result<(), LoaderError> {
    for hook in role.hooks() {
        pin.remove(&pin.link(index, hook))?;
    }
    Ok(())
}

/// Removes our filters, then the mark of them, so that a run that is killed in between is done again.
fn remove_filters(pin: &PinDir, role: Role, index: u32) -> Result<(), LoaderError> {
    let mark = pin.clsact_mark(index, role);
    if !mark.exists() {
        return Ok(());
    }
    if let Some(interface) = interface_name(index) {
        for hook in role.hooks() {
            let failed = |source: Cause| LoaderError::Detach { program: hook.program(), index, source };
            let detached = SchedClassifierLink::attached(&interface, attach_type(hook), PRIORITY, HANDLE, None)
                .map_err(|error| ProgramError::from(TcError::IoError(error)))
                .and_then(Link::detach);
            match detached {
                Ok(()) => {}
                // No filter, no qdisc, or the interface went away meanwhile.
                Err(error) if matches!(os_error(&error), Some(ENOENT | EINVAL | ENODEV | ENXIO)) => {}
                Err(error) => return Err(refuse(error, || format!("to remove a filter of {interface}"), failed)),
            }
        }
    }
    pin.remove(&mark).map(drop)
}

/// The name of an interface of this thread's network namespace.
pub(crate) fn interface_name(index: u32) -> Option<String> {
    // nix 0.31 answers with an empty name where there is no such interface.
    if_indextoname(index).ok()?.into_string().ok().filter(|name| !name.is_empty())
}
