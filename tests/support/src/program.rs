use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A directory that every user may enter, with a copy of `program` in it that every user may run: those that tests
/// build lie where root alone may go. The copy is named as its original.
pub fn for_every_user(program: &Path) -> (TempDir, PathBuf) {
    let directory = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir().expect("a directory");
    let copy = directory.path().join(program.file_name().expect("a program has a name"));
    // Not fs::copy: a test beside this one may fork while the copy is open for writing here, and until its child
    // executes something, the copy is "text file busy" (execve(2), ETXTBSY). By a command that busybox has, too.
    let status = Command::new("cp").arg(program).arg(&copy).status().expect("cp starts");
    assert!(status.success(), "cp {} {}: {status}", program.display(), copy.display());
    std::fs::set_permissions(&copy, Permissions::from_mode(0o755)).expect("our own copy");
    (directory, copy)
}
