//! What a scenario needs of the place where it runs, and what is said where that is missing: as `palisade-test-support` says it, which builds on
//! the product. Scenarios share no code with what they judge.

use std::io::Write;
use std::os::unix::fs::MetadataExt;

/// Says that the calling test, or a part of it, is not run, where the test harness cannot hide it: `skipped: REASON: NAME`.
pub fn skipped(reason: &str) {
    let thread = std::thread::current();
    skipped_of(thread.name().unwrap_or("a test"), reason);
}

/// The same of a test that has no thread of its own to be named by.
pub fn skipped_of(test: &str, reason: &str) {
    let line = format!("skipped: {reason}: {test}\n");
    // The harness swallows what `eprintln!` writes in a test that passes, but not this. One write: tests run side by side.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Whether the calling test may change this machine's routes and open raw sockets. Where it may not, says so, and what is not shown.
pub fn requires_root(what: &str) -> bool {
    let root = std::fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0);
    if !root {
        skipped(&format!("{what} needs root"));
    }
    root
}
