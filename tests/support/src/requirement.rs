use std::io::Write;

/// Whether the calling test may go on: it needs root, for namespaces, links and BPF. When it may not, says so where
/// the test harness cannot hide it: `skipped: needs root: NAME`.
pub fn requires_root() -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    let thread = std::thread::current();
    // The harness swallows what `eprintln!` writes in a test that passes, but not this.
    let _ = writeln!(std::io::stderr(), "skipped: needs root: {}", thread.name().unwrap_or("a test"));
    false
}
