use std::io::{ErrorKind, Result};
use std::time::{Duration, Instant};

/// Longer than a program takes to begin on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(5);

/// Binds a socket to an address that a test uses again and again, and tries once more where it is in use: a program that another test starts at that
/// moment has what this process had open, also if it has been closed since, until it executes.
///
/// # Errors
/// The address is in use for good, or cannot be bound.
pub fn bound<T>(bind: impl Fn() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    loop {
        match bind() {
            Err(error) if error.kind() == ErrorKind::AddrInUse && begun.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(5))
            }
            bound => return bound,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn an_address_that_another_leaves_is_bound_once_it_has() {
        let first = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = first.local_addr().unwrap();
        let leaves = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(first);
        });
        assert_eq!(bound(|| UdpSocket::bind(address)).unwrap().local_addr().unwrap(), address);
        leaves.join().unwrap();
    }
}
