//! What the binary is: copied onto hosts of which nothing is known, started for every pod.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const BINARY: &str = env!("CARGO_BIN_EXE_palisade-cni");
/// In bytes.
const LARGEST: u64 = 5 << 20;

#[test]
fn it_is_smaller_than_5_mib() {
    let size = std::fs::metadata(BINARY).unwrap().len();
    assert!(size < LARGEST, "{size} bytes");
}

#[test]
fn it_is_static_and_stripped() {
    let bytes = std::fs::read(BINARY).unwrap();
    assert_eq!(&bytes[..5], b"\x7fELF\x02", "a 64-bit ELF file");
    let u16_at = |offset: usize| u16::from_le_bytes(bytes[offset..offset + 2].try_into().unwrap());
    let u64_at = |offset: usize| u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap()) as usize;
    let u32_at = |offset: usize| u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap());
    // ELF header: e_phoff 32, e_shoff 40, e_phentsize 54, e_phnum 56, e_shentsize 58, e_shnum 60.
    let segments: Vec<u32> = (0..u16_at(56)).map(|n| u32_at(u64_at(32) + usize::from(n * u16_at(54)))).collect();
    const PT_INTERP: u32 = 3;
    assert!(!segments.contains(&PT_INTERP), "it asks for a dynamic loader");
    let sections: Vec<u32> = (0..u16_at(60)).map(|n| u32_at(u64_at(40) + usize::from(n * u16_at(58)) + 4)).collect();
    const SHT_SYMTAB: u32 = 2;
    assert!(!sections.contains(&SHT_SYMTAB), "it carries a symbol table");
}

#[test]
fn it_starts_in_milliseconds() {
    let start = || {
        let begin = Instant::now();
        let mut command = Command::new(BINARY);
        command.env_clear().env("CNI_COMMAND", "VERSION").stdin(Stdio::null()).stdout(Stdio::null());
        assert!(command.status().unwrap().success());
        begin.elapsed()
    };
    // The best of many: the machine may be busy with something else.
    let best = (0..20).map(|_| start()).min().unwrap();
    assert!(best < Duration::from_millis(50), "{best:?}");
}
