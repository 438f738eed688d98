//! Tells the linker how to write out copies of memory.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "bpf") {
        // Else bpf-linker has LLVM call `memset` even for three bytes: a loop that every packet runs, and that the
        // verifier walks byte by byte at every call.
        println!("cargo:rustc-link-arg-bins=--disable-expand-memcpy-in-order");
    }
}
