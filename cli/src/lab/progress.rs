//! A line on standard error when something takes its time.

use std::future::Future;
use std::time::Duration;

/// What is quicker than this needs no word.
const QUIET: Duration = Duration::from_secs(2);

/// Waits for `work`; says what is going on when it takes over two seconds.
pub async fn step<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    tokio::select! {
        biased;
        result = &mut work => return result,
        () = tokio::time::sleep(QUIET) => say(&format!("{what} ...")),
    }
    work.await
}

/// A line on standard error. A closed one is no reason to stop.
pub fn say(line: &str) {
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("palisade lab: {line}\n").as_bytes());
}
