use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A lock between processes: the kernel opens it when its holder ends, however that happens.
#[derive(Debug)]
pub(crate) struct FileLock {
    path: PathBuf,
    /// Whether the file goes with the lock.
    remove: bool,
    _lock: Flock<File>,
}

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    #[error("another palisade-cni has held {} for {} s; is it stopped or stuck?", .path.display(), .waited.as_secs())]
    Busy { path: PathBuf, waited: Duration },
    #[error("cannot lock {}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl FileLock {
    /// Waits for a lock whose file stays.
    pub(crate) fn keep(path: PathBuf, patience: Duration) -> Result<Self, LockError> {
        Self::acquire(path, false, patience)
    }

    /// Waits for a lock whose file goes with it: there would be one for every container that ever was.
    pub(crate) fn temporary(path: PathBuf, patience: Duration) -> Result<Self, LockError> {
        Self::acquire(path, true, patience)
    }

    fn acquire(path: PathBuf, remove: bool, patience: Duration) -> Result<Self, LockError> {
        const PAUSE: Duration = Duration::from_millis(2);
        let start = Instant::now();
        loop {
            match try_lock(&path) {
                Ok(Some(lock)) => return Ok(Self { path, remove, _lock: lock }),
                Ok(None) if start.elapsed() >= patience => return Err(LockError::Busy { path, waited: patience }),
                Ok(None) => std::thread::sleep(PAUSE),
                Err(source) => return Err(LockError::Io { path, source }),
            }
        }
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        if self.remove {
            // Before the lock is given back: whoever waits on the old file sees that it is gone and opens a new one.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// `None`: somebody else has it, or the file was removed while it was waited for.
fn try_lock(path: &Path) -> io::Result<Option<Flock<File>>> {
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((_, Errno::EWOULDBLOCK | Errno::EINTR)) => return Ok(None),
        Err((_, errno)) => return Err(errno.into()),
    };
    let ours = lock.metadata()?;
    match std::fs::metadata(path) {
        Ok(current) if (current.dev(), current.ino()) == (ours.dev(), ours.ino()) => Ok(Some(lock)),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn one_holder_at_a_time_even_though_the_file_comes_and_goes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("locks/a");
        let (inside, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let _lock = FileLock::temporary(path.clone(), Duration::from_secs(60)).unwrap();
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        std::thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                        done.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(done.into_inner(), 160);
        assert!(!path.exists());
    }

    #[test]
    fn patience_ends_with_the_name_of_the_lock() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        let _held = FileLock::keep(path.clone(), Duration::ZERO).unwrap();
        let error = FileLock::keep(path.clone(), Duration::from_millis(20)).unwrap_err();
        assert!(matches!(error, LockError::Busy { .. }) && error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
}
