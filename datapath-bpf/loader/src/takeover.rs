//! Taking over what an earlier agent has pinned.

use std::{
    fs,
    path::{Path, PathBuf},
};

use aya::programs::SchedClassifier;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use palisade_datapath_core::abi::{ABI_VERSION, Hook};

use crate::{
    LoaderError, PinDir, Role,
    attach::{attach_filter, has_filter, interface_name, replace_link},
    pin::Pinned,
};

/// A pin with this ending waits to be renamed to its own name. bpffs allows no dot in a name.
const NEXT: &str = "-next";

impl PinDir {
    pub(crate) fn map(&self, name: &str) -> PathBuf {
        self.maps_dir().join(name)
    }

    /// Where a larger map waits to take the place of the one that is pinned.
    pub(crate) fn next_map(&self, name: &str) -> PathBuf {
        self.maps_dir().join(format!("{name}{NEXT}"))
    }

    /// Where a program waits to take the place of the one that is pinned.
    pub(crate) fn next_program(&self, hook: Hook) -> PathBuf {
        self.programs_dir().join(format!("{}{NEXT}", hook.program()))
    }

    /// Checks that the directory lies on a BPF file system and that no newer version has pinned state beside it.
    pub(crate) fn check(&self) -> Result<(), LoaderError> {
        let existing = self.root().ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let kind = statfs(existing).map_err(|errno| self.failed("look at", existing, errno.into()))?.filesystem_type();
        if kind != BPF_FS_MAGIC {
            return Err(LoaderError::NotBpffs { path: existing.to_owned() });
        }
        let Some(base) = self.root().parent() else { return Ok(()) };
        for name in self.names(base)? {
            let Some(found) = name.strip_prefix('v').and_then(|number| number.parse::<u32>().ok()) else { continue };
            if found > ABI_VERSION {
                return Err(LoaderError::NewerAbi { path: base.join(name), found, ours: ABI_VERSION });
            }
            if found < ABI_VERSION {
                tracing::warn!(directory = %base.join(name).display(), "state of an older version is pinned; it is left untouched");
            }
        }
        Ok(())
    }

    /// Makes the directories that are missing.
    pub(crate) fn prepare(&self) -> Result<(), LoaderError> {
        for directory in [self.maps_dir(), self.programs_dir(), self.links_dir()] {
            fs::create_dir_all(&directory).map_err(|error| self.failed("create", &directory, error))?;
        }
        Ok(())
    }

    /// Removes what a run that was killed has left half done. The caller holds the lock alone.
    pub(crate) fn remove_leftovers(&self) -> Result<(), LoaderError> {
        for directory in [self.maps_dir(), self.programs_dir()] {
            for name in self.names(&directory)?.iter().filter(|name| name.ends_with(NEXT)) {
                self.remove(&directory.join(name))?;
            }
        }
        Ok(())
    }
}

/// Gives every interface that has a program the new one, in place, and removes the pins of interfaces that are gone. Which were given them
/// stands in `replaced`, also after an error.
pub(crate) fn replace_all(
    pin: &PinDir,
    hook: Hook,
    program: &mut SchedClassifier,
    replaced: &mut Vec<(u32, Pinned)>,
) -> Result<(), LoaderError> {
    for (index, pinned) in pin.pinned()? {
        let alive = match pinned {
            Pinned::Link(of) if of != hook => continue,
            Pinned::Clsact(role) if role != Role::of(hook) => continue,
            // Only where our filter is: the index may be another interface's by now.
            Pinned::Clsact(_) if interface_name(index).is_some() && !has_filter(index, hook)? => {
                tracing::warn!(index, program = hook.program(), "the interface is marked as ours but has no filter of ours");
                continue;
            }
            _ => replace(pin, hook, program, index, pinned)?,
        };
        if alive {
            replaced.push((index, pinned));
        } else {
            let path = match pinned {
                Pinned::Clsact(role) => pin.clsact_mark(index, role),
                Pinned::Link(hook) => pin.link(index, hook),
            };
            tracing::info!(pin = %path.display(), "its interface is gone");
            pin.remove(&path)?;
        }
    }
    Ok(())
}

/// Gives one interface a program in place of the one that it has; false where its interface is gone.
pub(crate) fn replace(pin: &PinDir, hook: Hook, program: &mut SchedClassifier, index: u32, pinned: Pinned) -> Result<bool, LoaderError> {
    match (pinned, interface_name(index)) {
        (Pinned::Link(_), _) => replace_link(pin, program, hook, index),
        (Pinned::Clsact(_), Some(interface)) => attach_filter(program, hook, &interface).map(|()| true),
        (Pinned::Clsact(_), None) => Ok(false),
    }
}
