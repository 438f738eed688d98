//! `cargo xtask plugin`: builds the plugin as it is installed, and checks what it is: copied onto hosts of which nothing is known.

use crate::product;
use anyhow::{Context, Result, bail, ensure};
use object::Endianness;
use object::elf::{FileHeader64, PT_INTERP, SHT_SYMTAB};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};
use std::path::Path;

/// In bytes.
const LARGEST: usize = 5 << 20;

/// Builds and checks it.
pub fn run(root: &Path) -> Result<()> {
    let executables = product::executables(root, "release", &["palisade-cni"])?;
    let [path] = executables.as_slice() else { bail!("cargo reported {} executables, not one", executables.len()) };
    check(&std::fs::read(path)?).with_context(|| path.display().to_string())?;
    println!("{}: static, stripped, smaller than {} MiB", path.display(), LARGEST >> 20);
    Ok(())
}

/// What a host may expect.
fn check(file: &[u8]) -> Result<()> {
    ensure!(file.len() < LARGEST, "it has {} bytes", file.len());
    let header = FileHeader64::<Endianness>::parse(file)?;
    let endian = header.endian()?;
    let interpreter = header.program_headers(endian, file)?.iter().any(|segment| segment.p_type(endian) == PT_INTERP);
    ensure!(!interpreter, "it asks for a dynamic loader");
    let symbols = header.section_headers(endian, file)?.iter().any(|section| section.sh_type(endian) == SHT_SYMTAB);
    ensure!(!symbols, "it carries a symbol table");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_large_or_no_program_or_asks_for_a_loader_is_refused() {
        let why = |file: &[u8]| check(file).unwrap_err().to_string();
        assert!(why(&vec![0; LARGEST]).contains("bytes"));
        assert!(check(b"#!/bin/sh").is_err());
        // A program of this machine, which has its C library beside it.
        assert!(why(&std::fs::read("/bin/sh").unwrap()).contains("dynamic loader"));
    }
}
