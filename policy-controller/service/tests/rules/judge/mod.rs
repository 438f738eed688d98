//! How the tests ask the maps, and how they write services.

pub mod kernel;
pub mod world;
