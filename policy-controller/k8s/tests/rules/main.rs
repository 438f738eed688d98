//! What Kubernetes objects mean, by rule. One program, because the types are large and take their time to compile.

mod convert;
mod index;
mod manifest;
