/// The BPF object that this build carries, as an ELF file.
pub fn object() -> &'static [u8] {
    OBJECT
}

pub(crate) static OBJECT: &[u8] = &[];
