/// The BPF object that this build carries, as an ELF file.
pub fn object() -> &'static [u8] {
    OBJECT
}

pub(crate) static OBJECT: &[u8] = &ALIGNED.0;

/// The headers of an ELF file are read in place, as numbers of up to 8 bytes.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

static ALIGNED: &Aligned<[u8]> = &Aligned(*include_bytes!(env!("PALISADE_BPF_OBJECT")));
