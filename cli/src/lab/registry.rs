//! The labs that run on this machine, for the commands that ask one of them.
//!
//! One file per lab, locked by the process that started it: a lock that can be taken belongs to a lab that is gone,
//! however it ended, and its file is swept by whoever sees it first.

use super::outside::{self, Nodes};
use super::paths;
use crate::error::CliError;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A running lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lab {
    /// The process that the user started.
    pub pid: i32,
    /// The first process inside of it, as this PID namespace numbers it.
    pub first: i32,
    /// The directory of its manifests, absolute.
    pub directory: PathBuf,
}

impl Lab {
    /// A path inside the lab's file system, as seen from here.
    pub fn inside(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.first));
        root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// How many nodes it has.
    pub fn nodes(&self) -> Nodes {
        if self.inside(&paths::nodes()).is_dir() { Nodes::Several } else { Nodes::One }
    }

    /// The name of a node: of the one named, of the only one else.
    pub fn node(&self, named: Option<&str>) -> Result<String, CliError> {
        let names: Vec<String> = match self.nodes() {
            Nodes::One => vec![outside::NODE.to_owned()],
            Nodes::Several => {
                let entries = std::fs::read_dir(self.inside(&paths::nodes())).into_iter().flatten().flatten();
                let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
                names.sort();
                names
            }
        };
        let listed = || names.join(", ");
        match (named, &names[..]) {
            (Some(name), _) if names.iter().any(|known| known == name) => Ok(name.to_owned()),
            (Some(name), _) => {
                Err(CliError::Input(format!("the lab of {} has no node {name}: there are {}", self.directory.display(), listed())))
            }
            (None, [only]) => Ok(only.clone()),
            (None, _) => Err(CliError::Input(format!("the lab has several nodes, say which with --node NAME: {}", listed()))),
        }
    }
}

/// An entry of the registry, which ends with the value.
#[derive(Debug)]
pub struct Entry {
    path: PathBuf,
    _lock: Flock<File>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        // Swept by the next lab where this fails.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Makes the directory of the registry, which is also where a lab mounts its own file system.
pub fn prepare() -> Result<(), CliError> {
    std::fs::create_dir_all(paths::ROOT)
        .and_then(|()| std::fs::set_permissions(paths::ROOT, Permissions::from_mode(0o755)))
        .map_err(|error| CliError::Environment(format!("cannot make {}: {error}", paths::ROOT)))
}

/// Enters a lab.
pub fn enter(lab: &Lab) -> Result<Entry, CliError> {
    let failed = |error: std::io::Error| CliError::Environment(format!("cannot write the registry of labs in {}: {error}", paths::ROOT));
    // Nobody reads the file before it is locked and whole: it gets its name last.
    let path = Path::new(paths::ROOT).join(format!("{}.json", lab.pid));
    let unfinished = path.with_extension("new");
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(&unfinished).map_err(failed)?;
    let mut lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| failed(errno.into()))?;
    lock.write_all(&serde_json::to_vec(lab).map_err(|error| failed(error.into()))?).map_err(failed)?;
    std::fs::rename(&unfinished, &path).map_err(failed)?;
    Ok(Entry { path, _lock: lock })
}

/// The labs that run, by process id. Sweeps what is left of others.
pub fn running() -> Vec<Lab> {
    let Ok(directory) = std::fs::read_dir(paths::ROOT) else { return Vec::new() };
    let mut labs: Vec<Lab> = directory.flatten().filter_map(|file| alive(&file.path())).collect();
    labs.sort_by_key(|lab| lab.pid);
    labs
}

fn alive(path: &Path) -> Option<Lab> {
    let ending = path.extension()?;
    if ending != "json" && ending != "new" {
        return None;
    }
    let file = File::open(path).ok()?;
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        // Nobody holds it: the lab is gone. A file that is about to be locked for the first time ends in `new` and is younger.
        Ok(_free) => {
            let age = path.metadata().and_then(|meta| meta.modified()).ok().and_then(|time| time.elapsed().ok()).unwrap_or_default();
            if ending == "json" || age > std::time::Duration::from_secs(60) {
                let _ = std::fs::remove_file(path);
            }
            None
        }
        Err(_) if ending == "json" => serde_json::from_slice(&std::fs::read(path).ok()?).ok(),
        Err(_) => None,
    }
}

/// The lab that `name` (a directory or a process id) means; without a name, the only one that runs.
pub fn find(name: Option<&str>) -> Result<Lab, CliError> {
    choose(running(), name)
}

fn choose(labs: Vec<Lab>, name: Option<&str>) -> Result<Lab, CliError> {
    let listed = || labs.iter().map(|lab| format!("{} (pid {})", lab.directory.display(), lab.pid)).collect::<Vec<_>>().join(", ");
    if labs.is_empty() {
        return Err(CliError::Environment(
            "no lab is running: start one with `palisade lab DIR --keep` (or --watch) in another terminal".into(),
        ));
    }
    let found: Vec<&Lab> = match name {
        None => labs.iter().collect(),
        Some(name) => {
            let directory = std::fs::canonicalize(name).unwrap_or_else(|_| name.into());
            labs.iter().filter(|lab| lab.directory == directory || [Ok(lab.pid), Ok(lab.first)].contains(&name.parse())).collect()
        }
    };
    match found[..] {
        [lab] => Ok(lab.clone()),
        [] => Err(CliError::Input(format!("no running lab is {}: there are {}", name.unwrap_or_default(), listed()))),
        _ => Err(CliError::Input(format!("several labs are running, say which with --lab=DIR or --lab=PID: {}", listed()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lab(pid: i32, directory: &str) -> Lab {
        Lab { pid, first: pid + 100, directory: directory.into() }
    }

    #[test]
    fn the_only_lab_needs_no_name_and_several_do() {
        assert_eq!(choose(vec![lab(7, "/a")], None).unwrap().pid, 7);
        let both = vec![lab(7, "/a"), lab(8, "/b")];
        assert!(choose(both.clone(), None).unwrap_err().to_string().contains("/a (pid 7), /b (pid 8)"));
        assert_eq!(choose(both.clone(), Some("/b")).unwrap().pid, 8);
        assert_eq!(choose(both.clone(), Some("7")).unwrap().pid, 7);
        assert_eq!(choose(both.clone(), Some("108")).unwrap().pid, 8, "by its first process");
        assert!(choose(both, Some("/c")).is_err());
        assert!(choose(vec![], None).unwrap_err().to_string().contains("--keep"));
    }

    #[test]
    fn a_path_inside_a_lab_goes_through_its_first_process() {
        assert_eq!(lab(7, "/a").inside(Path::new("/run/x")), Path::new("/proc/107/root/run/x"));
    }
}
