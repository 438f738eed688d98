//! New programs, and larger maps with them, in the place of what is attached and pinned.
//!
//! The order keeps every packet judged by whole rows. What takes the place is made beside what is there, under names that end in
//! `-next`: the larger maps, with the rows of those that they replace, and the programs over them. Then each attached endpoint is given
//! its new program in place. Until that moment its old program reads the old maps, which hold the same rows: nobody writes any
//! before the end. Then the maps are given their names, and last the programs, each by a rename. The lock of the directory is held
//! all the while, so that the CNI plugin attaches what is there before or after.
//!
//! A run that is killed between two steps leaves endpoints with old programs and such with new ones, over maps with the same rows.
//! Nobody writes rows before the next run, which removes what still waits for its name, loads programs over what is
//! pinned, and gives them to every endpoint.

use std::{collections::BTreeMap, fs, time::Duration};

use aya::{
    Ebpf, EbpfLoader,
    programs::{ProgramError, SchedClassifier},
};
use palisade_datapath_core::{abi::Hook, packet::connection::Lifetimes};

use crate::{
    LoaderError, PinDir, Sizes, cgroup,
    copy::copy,
    error::refuse,
    layout::{self, Larger, Layout},
    object::OBJECT,
    pin::{Pinned, hooks},
    takeover,
};

/// The constant of the programs that says how long flows may be silent.
const LIFETIMES: &str = "LIFETIMES";

/// A step of replacing maps and programs that has just been made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstallStep {
    /// The larger maps are made and pinned beside those that they replace, empty.
    Made,
    /// A map's rows are copied.
    Copied(&'static str),
    /// The programs are loaded over the larger maps.
    Loaded,
    /// Every interface has the new program of a hook.
    Attached(Hook),
    /// A larger map has its name.
    MapNamed(&'static str),
    /// The new program of a hook has its name.
    ProgramNamed(Hook),
}

/// Told of each step. A panic in it leaves what a process leaves that is killed there.
pub(crate) type Watch<'a> = &'a mut dyn FnMut(InstallStep);

/// Programs that are loaded, and not attached yet.
pub(crate) struct Installation {
    pub(crate) programs: Ebpf,
    /// The maps that are replaced, each with the number of rows that were copied.
    pub(crate) larger: Vec<(Larger, usize)>,
    replaced: Vec<(Hook, u32, Pinned)>,
}

impl Installation {
    /// Makes the maps that are missing, those that are too small anew, and loads the programs over all of them. The caller holds the lock alone.
    pub(crate) fn prepare(
        pin: &PinDir,
        sizes: &Sizes,
        lifetimes: &Lifetimes,
        wanted: &[(&'static str, u32)],
        watch: Watch<'_>,
    ) -> Result<Self, LoaderError> {
        pin.remove_leftovers()?;
        let mut layouts = layout::declared(OBJECT, sizes)?;
        let larger = layout::reconcile(pin, sizes, wanted, &mut layouts)?;
        let mut programs = load(pin, &layouts, &larger, lifetimes)?;
        watch(InstallStep::Made);
        let mut copied = Vec::with_capacity(larger.len());
        for larger in larger {
            copied.push((larger, copy(pin, larger.map)?));
            watch(InstallStep::Copied(larger.map));
        }
        for hook in hooks() {
            let program = classifier(&mut programs, hook)?;
            verify(|| program.load()).map_err(|error| load_refused(error, &format!("the program {}", hook.program())))?;
        }
        if cgroup::is_attached(pin)?
            && let Err(error) = cgroup::load(&mut programs)
        {
            // Pods do not need them. Those that are attached are taken away when the time comes.
            tracing::warn!(error = &error as &dyn std::error::Error, "the programs of sockets are not loaded");
        }
        watch(InstallStep::Loaded);
        Ok(Self { programs, larger: copied, replaced: Vec::new() })
    }

    /// Gives every attached endpoint the programs. Returns how many were.
    pub(crate) fn attach(&mut self, pin: &PinDir, watch: Watch<'_>) -> Result<usize, LoaderError> {
        for hook in hooks() {
            let mut replaced = Vec::new();
            let answer = takeover::replace_all(pin, hook, classifier(&mut self.programs, hook)?, &mut replaced);
            self.replaced.extend(replaced.into_iter().map(|(index, pinned)| (hook, index, pinned)));
            answer?;
            watch(InstallStep::Attached(hook));
        }
        cgroup::replace_all(pin, &mut self.programs)?;
        // An old program that still runs would find new rows in a map that is the same, and none in one that was replaced.
        await_programs();
        Ok(self.replaced.len())
    }

    /// Gives the endpoints that were given these programs those that they had before.
    pub(crate) fn detach(self, pin: &PinDir, before: &mut Ebpf) -> Result<(), LoaderError> {
        for (hook, index, pinned) in self.replaced {
            takeover::replace(pin, hook, classifier(before, hook)?, index, pinned)?;
        }
        cgroup::replace_all(pin, before)?;
        pin.remove_leftovers()
    }

    /// Gives maps and programs their names.
    pub(crate) fn name(&mut self, pin: &PinDir, watch: Watch<'_>) -> Result<(), LoaderError> {
        for (Larger { map, .. }, _) in &self.larger {
            let path = pin.map(map);
            fs::rename(pin.next_map(map), &path).map_err(|error| pin.failed("rename the larger map to", &path, error))?;
            watch(InstallStep::MapNamed(map));
        }
        for hook in hooks() {
            pin_program(pin, hook, classifier(&mut self.programs, hook)?)?;
            watch(InstallStep::ProgramNamed(hook));
        }
        Ok(())
    }
}

/// A program runs for microseconds; the machine may stop it in between.
const LONG_AFTER: Duration = Duration::from_millis(50);

/// Waits until every program that runs now has ended: programs run on the read side of RCU, and membarrier(2) with MEMBARRIER_CMD_GLOBAL waits
/// for a grace period. Where the kernel refuses it (nohz_full, a filter of system calls), it is waited for much longer than a program runs.
pub(crate) fn await_programs() {
    // SAFETY: the call takes three integers and touches no memory of this process.
    let waited = unsafe { nix::libc::syscall(nix::libc::SYS_membarrier, nix::libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if waited != 0 {
        tracing::debug!(error = %std::io::Error::last_os_error(), "membarrier is refused");
        std::thread::sleep(LONG_AFTER);
    }
}

/// Makes the maps that are not pinned yet, pins them, and relocates the programs to all of them.
fn load(pin: &PinDir, layouts: &BTreeMap<String, Layout>, larger: &[Larger], lifetimes: &Lifetimes) -> Result<Ebpf, LoaderError> {
    let mut loader = EbpfLoader::new();
    let lifetimes = lifetimes.to_array();
    loader.override_global(LIFETIMES, &lifetimes, true);
    let says_error = u32::from(cgroup::says_error());
    loader.override_global(cgroup::SAYS_ERROR, &says_error, true);
    for (name, layout) in layouts {
        let path = if larger.iter().any(|larger| larger.map == name) { pin.next_map(name) } else { pin.map(name) };
        // aya maps the ring by the size that the object declares, so it is told that of a pinned one too.
        loader.map_pin_path(name, path).map_max_entries(name, layout.max_entries);
    }
    loader.load(OBJECT).map_err(|error| load_refused(error, "the maps of the datapath"))
}

/// Pins a program under its name; one that is pinned already is replaced without a moment in between.
fn pin_program(pin: &PinDir, hook: Hook, program: &mut SchedClassifier) -> Result<(), LoaderError> {
    let (next, path) = (pin.next_program(hook), pin.program(hook));
    program.pin(&next).map_err(|error| {
        refuse(error, || format!("to pin {}", next.display()), |source| LoaderError::Pin { action: "pin", path: next.clone(), source })
    })?;
    fs::rename(&next, &path).map_err(|error| pin.failed("rename the new program to", &path, error))
}

/// How often a program is given to the kernel that was interrupted while it looked at it.
const ATTEMPTS: usize = 5;

/// Loads a program. Where a signal comes meanwhile, the verifier gives up and wants to be asked again (EAGAIN).
pub(crate) fn verify(load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    attempt(load, |error| matches!(error, ProgramError::LoadError { io_error, .. } if io_error.kind() == std::io::ErrorKind::WouldBlock))
}

fn attempt<E>(mut load: impl FnMut() -> Result<(), E>, was_interrupted: impl Fn(&E) -> bool) -> Result<(), E> {
    for _ in 1..ATTEMPTS {
        match load() {
            Err(error) if was_interrupted(&error) => {}
            done => return done,
        }
    }
    load()
}

pub(crate) fn load_refused(error: impl std::error::Error + Send + Sync + 'static, what: &str) -> LoaderError {
    refuse(error, || format!("to load {what}"), |source| LoaderError::Load { what: what.to_owned(), source })
}

pub(crate) fn program_missing(hook: Hook) -> LoaderError {
    LoaderError::Object { what: format!("it has no classifier {}", hook.program()) }
}

pub(crate) fn classifier(programs: &mut Ebpf, hook: Hook) -> Result<&mut SchedClassifier, LoaderError> {
    programs.program_mut(hook.program()).and_then(|program| program.try_into().ok()).ok_or_else(|| program_missing(hook))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_loaded_again_where_it_was_interrupted_and_not_where_it_is_refused() {
        let failing = |error: &'static str, times| {
            let mut asked = 0;
            let load = || {
                asked += 1;
                if asked > times { Ok(()) } else { Err(error) }
            };
            let result = attempt(load, |error| *error == "interrupted");
            (result.is_ok(), asked)
        };
        assert_eq!(failing("interrupted", 2), (true, 3));
        assert_eq!(failing("interrupted", 9), (false, ATTEMPTS));
        assert_eq!(failing("refused", 1), (false, 1));
    }
}
