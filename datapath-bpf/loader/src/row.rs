use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A key or value as the kernel copies it.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct Row<T>(pub(crate) T);

// SAFETY: aya reads a `Pod` as bytes and makes one of any bytes that the kernel gives. `IntoBytes` says that every
// byte of `T` is initialised (no padding), `FromBytes` that every pattern of bytes is a `T`, `Immutable` that no
// byte changes behind a shared reference; `transparent` gives `Row<T>` the layout of `T`.
unsafe impl<T: Copy + FromBytes + IntoBytes + Immutable + 'static> aya::Pod for Row<T> {}
