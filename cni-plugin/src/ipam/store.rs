use super::records::{NoAddress, Records};
use super::{COOL_DOWN, Owner};
use crate::lock::{FileLock, LockError};
use ipnet::IpNet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const FILE: &str = "addresses.json";
const UNFINISHED: &str = "addresses.json.unfinished";
const LOCK: &str = "lock";
/// A holder of the lock needs milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// The addresses of a node's pods, in a directory.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    cool_down: Duration,
    /// After which step of writing the process "crashes", for tests.
    #[cfg(test)]
    pub(super) crash: std::cell::Cell<Option<Step>>,
}

/// The steps of writing the file, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    /// Half of the new file is written.
    Torn,
    /// The new file is written.
    Written,
    /// The new file is on the disk.
    Synced,
    /// The new file has the place of the old one.
    Renamed,
}

/// Why there are no addresses.
#[derive(Debug, thiserror::Error)]
pub enum IpamError {
    /// The agent named no range.
    #[error(
        "this node has no pod range yet: with Kubernetes, see spec.podCIDRs of the node and --allocate-node-cidrs of the controller manager"
    )]
    NoRange,
    /// All addresses are taken.
    #[error("the pod range {range} is full, with {taken} taken; remove pods from this node, or give it a larger range")]
    Full {
        /// The range.
        range: IpNet,
        /// Addresses taken in it.
        taken: usize,
    },
    /// An address that was asked for is in none of the node's ranges, or no pod can have it.
    #[error(
        "the address {address} was asked for, but it is none that a pod of this node can have: its ranges are {ranges}, less the first two addresses of each and the last of an IPv4 range, where it has more than two"
    )]
    NotUsable {
        /// The address.
        address: IpAddr,
        /// The ranges, with commas.
        ranges: String,
    },
    /// An address is another one's.
    #[error("the address {address} is taken: {holder} has it; DEL that one first, or take another")]
    Taken {
        /// The address.
        address: IpAddr,
        /// Who has it.
        holder: Owner,
    },
    /// All addresses that are not taken were given back a moment ago.
    #[error("{of} rests, so that nobody takes its next holder for its last: try again in {seconds} s")]
    Resting {
        /// What was asked for: an address, or whatever is free of a range.
        of: String,
        /// When the first one is ready.
        seconds: u64,
    },
    /// The file cannot be understood. It is left as it is: to guess could give an address to two pods.
    #[error(
        "the address store {} is damaged ({reason}) and was left untouched: drain this node, so that no pod has an address of it, and remove the file",
        .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Another process holds the lock.
    #[error("the address store is locked: {0}")]
    Busy(String),
    /// Reading or writing failed.
    #[error("address store: cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
}

impl Store {
    /// The store in a directory, which is made when it is first written to.
    pub fn new(directory: PathBuf) -> Self {
        Self::with_cool_down(directory, COOL_DOWN)
    }

    /// As [`Store::new`], with another time for which addresses rest (whole seconds).
    pub fn with_cool_down(directory: PathBuf, cool_down: Duration) -> Self {
        Self {
            directory,
            cool_down,
            #[cfg(test)]
            crash: std::cell::Cell::new(None),
        }
    }

    /// Gives an owner one address of each range: of those that are asked for, the one of the range. One that has such addresses
    /// already keeps them: an ADD that was killed is done again with the same. On the disk before it returns.
    pub fn lease(&self, owner: &Owner, ranges: &[IpNet], asked: &[IpAddr], now: SystemTime) -> Result<Vec<IpAddr>, IpamError> {
        if ranges.is_empty() {
            return Err(IpamError::NoRange);
        }
        self.change(now, |records, now, cool_down| {
            records.lease(owner, ranges, asked, now, cool_down).map_err(|reason| match reason {
                NoAddress::Full { range, taken } => IpamError::Full { range, taken },
                NoAddress::Resting { range, taken, resting, seconds } => IpamError::Resting {
                    of: format!("every free address of the pod range {range} ({resting}; {taken} are in use)"),
                    seconds,
                },
                NoAddress::AskedRests { address, seconds } => {
                    IpamError::Resting { of: format!("the address {address}, which was asked for,"), seconds }
                }
                NoAddress::AskedTaken { address, holder } => IpamError::Taken { address, holder },
                NoAddress::AskedNotUsable { address } => {
                    let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
                    IpamError::NotUsable { address, ranges: ranges.join(", ") }
                }
            })
        })
    }

    /// Writes down which addresses another IPAM plugin gave an owner, so that nobody is given them here, CHECK knows them and GC
    /// finds whose they are.
    pub fn adopt(&self, owner: &Owner, addresses: &[IpAddr], delegated: bool, now: SystemTime) -> Result<(), IpamError> {
        self.change(now, |records, now, _| {
            records.adopt(owner, addresses, delegated, now).map_err(|(address, holder)| IpamError::Taken { address, holder })
        })
    }

    /// Takes an owner's addresses back. False: it had none.
    pub fn release(&self, owner: &Owner, now: SystemTime) -> Result<bool, IpamError> {
        // Not even a lock file is made for nothing.
        if !self.exists() {
            return Ok(false);
        }
        self.change(now, |records, now, _| Ok(records.release(owner, now)))
    }

    /// As [`Store::release`], where no packet of these addresses can have been: they may be given out again at once.
    pub fn release_unused(&self, owner: &Owner, now: SystemTime) -> Result<bool, IpamError> {
        if !self.exists() {
            return Ok(false);
        }
        self.change(now, |records, now, cool_down| Ok(records.release_unused(owner, now, cool_down)))
    }

    /// The addresses that an owner has; empty when it has none.
    pub fn addresses(&self, owner: &Owner) -> Result<Vec<IpAddr>, IpamError> {
        Ok(self.read()?.lease_of(owner).map(|lease| lease.addresses.clone()).unwrap_or_default())
    }

    /// Whether anything was ever written.
    pub fn exists(&self) -> bool {
        self.file().exists()
    }

    /// Whether another plugin gave an owner its addresses; false when it has none.
    pub fn is_delegated(&self, owner: &Owner) -> Result<bool, IpamError> {
        Ok(self.read()?.lease_of(owner).is_some_and(|lease| lease.delegated))
    }

    /// Everybody who has addresses.
    pub fn owners(&self) -> Result<Vec<Owner>, IpamError> {
        Ok(self.read()?.leases.into_iter().map(|lease| lease.owner).collect())
    }

    fn change<T>(&self, now: SystemTime, work: impl FnOnce(&mut Records, u64, u64) -> Result<T, IpamError>) -> Result<T, IpamError> {
        let _lock = FileLock::keep(self.directory.join(LOCK), PATIENCE).map_err(|error| match error {
            LockError::Busy { .. } => IpamError::Busy(error.to_string()),
            LockError::Io { path, source } => IpamError::Io { action: "lock", path, source },
        })?;
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let old = self.read()?;
        let mut records = old.clone();
        records.tidy(now, self.cool_down.as_secs());
        let answer = work(&mut records, now, self.cool_down.as_secs())?;
        if records != old {
            self.write(&records)?;
        }
        Ok(answer)
    }

    /// Reads the file. No lock is needed for that: it is only ever replaced as a whole.
    fn read(&self) -> Result<Records, IpamError> {
        let path = self.file();
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Records { version: Records::VERSION, ..Records::default() });
            }
            other => other.map_err(|source| IpamError::Io { action: "read", path: path.clone(), source })?,
        };
        let records: Result<Records, String> = serde_json::from_slice(&bytes).map_err(|error| error.to_string());
        records.and_then(|records| records.check().map(|()| records)).map_err(|reason| IpamError::Damaged { path, reason })
    }

    /// Puts a new file in the place of the old one, so that at every moment one of them is whole and on the disk.
    fn write(&self, records: &Records) -> Result<(), IpamError> {
        let unfinished = self.directory.join(UNFINISHED);
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| IpamError::Io { action, path, source }
        };
        let bytes = serde_json::to_vec_pretty(records).map_err(|error| failed("write", &unfinished)(io::Error::other(error)))?;
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory).map_err(failed("make", &self.directory))?;
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&unfinished)
            .map_err(failed("make", &unfinished))?;
        let (first, second) = bytes.split_at(bytes.len() / 2);
        file.write_all(first).map_err(failed("write", &unfinished))?;
        self.step(Step::Torn)?;
        file.write_all(second).map_err(failed("write", &unfinished))?;
        self.step(Step::Written)?;
        file.sync_all().map_err(failed("write", &unfinished))?;
        self.step(Step::Synced)?;
        std::fs::rename(&unfinished, self.file()).map_err(failed("rename", &unfinished))?;
        self.step(Step::Renamed)?;
        File::open(&self.directory).and_then(|directory| directory.sync_all()).map_err(failed("write", &self.directory))
    }

    fn file(&self) -> PathBuf {
        self.directory.join(FILE)
    }

    #[cfg(not(test))]
    fn step(&self, _: Step) -> Result<(), IpamError> {
        Ok(())
    }

    #[cfg(test)]
    fn step(&self, step: Step) -> Result<(), IpamError> {
        let crashes = self.crash.get() == Some(step);
        if crashes { Err(IpamError::Busy("crash".into())) } else { Ok(()) }
    }
}
