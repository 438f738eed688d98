//! What tells that an outer packet was too long for somebody on its way.

use crate::kernel::{Kernel, KernelHandle};
use std::time::{Duration, Instant};

/// How often it is asked whether somebody has complained of an outer packet, and how long such a complaint is followed by no other look: anybody
/// may send complaints.
const COMPLAINTS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// Complaints of outer packets that were too long for somebody on the way. The kernel tells nobody what it has learned from them.
#[derive(Default)]
pub struct Complaints {
    /// What the datapath had counted when it was asked last.
    counted: Option<u32>,
    /// When that was.
    asked: Option<Instant>,
    /// When the last one was told.
    told: Option<Instant>,
}

impl Complaints {
    /// Ends when there is a new one.
    pub async fn next(&mut self, kernel: &KernelHandle) {
        loop {
            let rest = |since: Option<Instant>, gap: Duration| since.map_or(Duration::ZERO, |since| gap.saturating_sub(since.elapsed()));
            tokio::time::sleep(rest(self.asked, COMPLAINTS.0).max(rest(self.told, COMPLAINTS.1))).await;
            self.asked = Some(Instant::now());
            // Where the datapath is not open it sends nothing past the stack either.
            let Ok(counted) = kernel.run(Kernel::outer_errors).await else { continue };
            if self.counted.replace(counted).is_some_and(|before| before != counted) {
                self.told = Some(Instant::now());
                return;
            }
        }
    }
}
