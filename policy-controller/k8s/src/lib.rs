//! Kubernetes objects: conversion into the model, the index of what was seen, and the reader of manifest files.
//!
//! The only crate that knows Kubernetes types and what the API server makes of them. It knows no compiler, no
//! kernel and no client: the agent's runtime feeds an [`Index`](index::Index) from a watch or from a directory.
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod api;
pub mod convert;
pub mod endpoints;
pub mod index;
pub mod manifest;
pub mod report;
pub mod status;
pub mod sum;
pub mod survey;

mod field;
mod problem;

pub use field::{FieldPath, Segment};
pub use problem::{FieldError, NameRule, Problem, Refusal};
