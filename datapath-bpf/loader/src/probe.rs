//! Whether this kernel lets programs be attached at all.

use aya::{EbpfLoader, programs::SchedClassifier};
use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
};
use palisade_datapath_core::abi::Hook;

use crate::{
    LoaderError,
    attach::{AttachKind, add_filter, supported_kind},
    error::{Cause, refuse},
    install::{load_refused, verify},
    object::redirect_object,
};

/// How this kernel attaches programs, shown by an attempt where it cannot be asked: needs CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN.
/// Changes nothing that lasts.
///
/// # Errors
/// [`LoaderError::NoAttachKind`]; [`LoaderError::Permission`]; [`LoaderError::Load`] where the kernel takes no classifier.
pub fn probe_attach_kind() -> Result<AttachKind, LoaderError> {
    let kind = supported_kind()?;
    probe_attach_kind_of(kind)?;
    Ok(kind)
}

/// As [`probe_attach_kind`], for one way of attaching; TCX needs no attempt where [`supported_kind`] names it.
///
/// # Errors
/// As [`probe_attach_kind`].
pub fn probe_attach_kind_of(kind: AttachKind) -> Result<(), LoaderError> {
    if kind == AttachKind::Clsact {
        let what = "a classifier, to try how it is attached";
        let mut object = EbpfLoader::new().load(redirect_object()).map_err(|error| load_refused(error, what))?;
        let missing = || LoaderError::Object { what: "it has no classifier redirect_only".to_owned() };
        let program: &mut SchedClassifier =
            object.program_mut("redirect_only").and_then(|program| program.try_into().ok()).ok_or_else(missing)?;
        verify(|| program.load()).map_err(|error| load_refused(error, what))?;
        if !try_clsact(program)? {
            return Err(LoaderError::Permission { action: "to make a network namespace".to_owned(), source: Box::new(Errno::EPERM) });
        }
    }
    Ok(())
}

/// Attaches a loaded program as a clsact filter in a network namespace that ends with the attempt; `false` where the caller may
/// not make one (CAP_SYS_ADMIN), so that it is not known.
pub(crate) fn try_clsact(program: &mut SchedClassifier) -> Result<bool, LoaderError> {
    let unsupported = |source: Cause| LoaderError::NoAttachKind { source };
    std::thread::scope(|scope| {
        let attempt = scope.spawn(|| {
            if unshare(CloneFlags::CLONE_NEWNET).is_err() {
                return Ok(false);
            }
            add_filter(program, Hook::FromPod, "lo")
                .map(|()| true)
                .map_err(|error| refuse(error, || "to attach a filter".to_owned(), unsupported))
        });
        attempt.join().unwrap_or_else(|_| Err(unsupported("the attempt to attach a filter panicked".into())))
    })
}
