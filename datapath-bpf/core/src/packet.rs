//! Reading packets: pure functions over bytes.
