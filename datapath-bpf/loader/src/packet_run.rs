use std::time::Duration;

use aya::{TestRun as _, TestRunOptions, programs::SchedClassifier};
use palisade_datapath_core::abi::Hook;

use crate::{LoaderError, error::refuse};

/// Where a packet of a test run comes from, as the program reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketContext {
    /// Index of the interface that the program runs at; it must exist in the calling thread's network namespace. 1 is `lo`.
    pub ifindex: u32,
    /// Index of the interface by which the packet came to this node; 0 for a packet of the node's own.
    pub ingress_ifindex: u32,
    /// Its mark (`skb->mark`).
    pub mark: u32,
    /// How often the program runs over the packet; the changes of one run are the next one's input.
    pub repeat: u32,
}

impl Default for PacketContext {
    fn default() -> Self {
        Self { ifindex: 1, ingress_ifindex: 0, mark: 0, repeat: 1 }
    }
}

/// What a program made of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestRun {
    /// What the program returned (`TC_ACT_*`). A redirect (7) is not carried out.
    pub action: i32,
    /// The packet afterwards.
    pub packet: Vec<u8>,
    /// Its mark afterwards (`skb->mark`).
    pub mark: u32,
    /// Mean time of one run, in whole nanoseconds.
    pub duration: Duration,
}

/// Offsets in the kernel's `struct __sk_buff`, which may grow at its end only.
mod context {
    pub const MARK: usize = 8;
    pub const INGRESS_IFINDEX: usize = 36;
    pub const IFINDEX: usize = 40;
    pub const SIZE: usize = 44;
    /// Room for all of it: the kernel gives the whole or an error.
    pub const WHOLE: usize = 512;
}

/// Room for what a program may add to a packet.
const HEADROOM: usize = 256;

pub(crate) fn run(program: &SchedClassifier, hook: Hook, packet: &[u8], context: &PacketContext) -> Result<TestRun, LoaderError> {
    let mut bytes = [0; context::SIZE];
    bytes[context::MARK..][..4].copy_from_slice(&context.mark.to_ne_bytes());
    bytes[context::INGRESS_IFINDEX..][..4].copy_from_slice(&context.ingress_ifindex.to_ne_bytes());
    bytes[context::IFINDEX..][..4].copy_from_slice(&context.ifindex.to_ne_bytes());
    let mut context_out = [0; context::WHOLE];
    let mut out = vec![0; packet.len() + HEADROOM];
    let options = TestRunOptions {
        data_in: Some(packet),
        data_out: Some(&mut out),
        ctx_in: Some(&bytes),
        ctx_out: Some(&mut context_out),
        repeat: context.repeat,
        ..TestRunOptions::default()
    };
    let result = program.test_run(options).map_err(|error| {
        refuse(
            error,
            || format!("to run {}", hook.program()),
            |source| LoaderError::TestRun { program: hook.program(), length: packet.len(), ifindex: context.ifindex, source },
        )
    })?;
    out.truncate(result.data_size_out as usize);
    let mut mark = [0; 4];
    mark.copy_from_slice(&context_out[context::MARK..][..4]);
    Ok(TestRun { action: result.return_value as i32, packet: out, mark: u32::from_ne_bytes(mark), duration: result.duration })
}
