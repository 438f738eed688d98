use std::io::Write;

/// Whether the calling test may go on: it needs root, for namespaces, links and BPF. When it may not, says so: see
/// [`skipped`].
pub fn requires_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        skipped("needs root");
    }
    root
}

/// Says that the calling test, or a part of it, is not run, where the test harness cannot hide it: `skipped: REASON: NAME`.
pub fn skipped(reason: &str) {
    let thread = std::thread::current();
    let line = format!("skipped: {reason}: {}\n", thread.name().unwrap_or("a test"));
    // The harness swallows what `eprintln!` writes in a test that passes, but not this. One write: tests run side by side.
    let _ = std::io::stderr().write_all(line.as_bytes());
}
