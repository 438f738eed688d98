//! What tells that an outer packet was too long for somebody on its way.

use crate::kernel::{Kernel, KernelHandle};
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::Notify;

/// How often it is asked whether somebody has complained of an outer packet, and how long such a complaint is followed by no other look: anybody
/// may send complaints.
const COMPLAINTS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// Tells of each new complaint of an outer packet that was too long for somebody on the way, for ever: the kernel tells nobody what it has learned from it.
/// Beside the one who is told, who may be busy with other changes.
pub async fn follow(kernel: &KernelHandle, new: &Notify) -> Infallible {
    let mut before = None;
    loop {
        // Where the datapath is not open it sends nothing past the stack either.
        let counted = kernel.run(Kernel::outer_errors).await.ok();
        let is_new = counted.is_some_and(|counted| before.replace(counted).is_some_and(|before| before != counted));
        if is_new {
            new.notify_one();
        }
        tokio::time::sleep(if is_new { COMPLAINTS.1 } else { COMPLAINTS.0 }).await;
    }
}
