/// The BPF object that this build carries, as an ELF file.
pub fn object() -> &'static [u8] {
    OBJECT
}

pub(crate) static OBJECT: &[u8] = &ALIGNED.0;

/// The headers of an ELF file are read in place, as numbers of up to 8 bytes.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

static ALIGNED: &Aligned<[u8]> = &Aligned(*include_bytes!(env!("PALISADE_BPF_OBJECT")));

/// The BPF object of the program `redirect_only`: the least that takes a packet from one pod to another. Its map
/// `LOCAL_V4` is the table `local` for IPv4. `from_pod` is measured against it, and it is what is loaded where only the loading
/// counts.
pub fn redirect_object() -> &'static [u8] {
    static ALIGNED: &Aligned<[u8]> = &Aligned(*include_bytes!(env!("PALISADE_REDIRECT_OBJECT")));
    &ALIGNED.0
}
