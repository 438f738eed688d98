//! `cargo xtask plugin`: builds the plugin as it is installed, and checks what it is: copied onto hosts of which nothing is known.

use crate::product::builder;
use anyhow::{Context, Result, bail, ensure};
use object::Endianness;
use object::elf::{FileHeader64, PT_INTERP, SHT_SYMTAB};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};
use std::path::Path;
use std::process::Stdio;

/// In bytes.
const LARGEST: usize = 5 << 20;

/// Builds and checks it.
pub fn run(root: &Path) -> Result<()> {
    let output = builder()
        .args(["build", "--release", "--locked", "--package", "palisade-cni", "--message-format", "json-render-diagnostics"])
        .current_dir(root)
        .stderr(Stdio::inherit())
        .output()
        .context("starting cargo")?;
    ensure!(output.status.success(), "the plugin does not build; what the compiler says stands above");
    let messages = String::from_utf8(output.stdout)?;
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let Some(path) = messages.filter_map(|message| message["executable"].as_str().map(str::to_owned)).next() else {
        bail!("cargo reported no executable");
    };
    check(&std::fs::read(&path)?).with_context(|| path.clone())?;
    println!("{path}: static, stripped, smaller than {} MiB", LARGEST >> 20);
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
    fn what_is_no_program_or_has_symbols_or_a_loader_is_refused() {
        assert!(check(b"#!/bin/sh").is_err());
        assert!(check(&vec![0; LARGEST]).is_err());
        // A library of this machine's C compiler: one that every dynamic program asks for.
        let dynamic = std::fs::read("/bin/sh").unwrap();
        assert!(check(&dynamic).unwrap_err().to_string().contains("dynamic loader"));
    }
}
