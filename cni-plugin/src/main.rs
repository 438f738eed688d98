//! `palisade-cni`: started by a container runtime, once for each verb.

use std::process::ExitCode;

fn main() -> ExitCode {
    // What is no UTF-8 fails the checks of names later, with a message.
    let text = |value: std::ffi::OsString| value.to_string_lossy().into_owned();
    let variables = std::env::vars_os().map(|(name, value)| (text(name), text(value)));
    ExitCode::from(palisade_cni::command::run(variables, std::io::stdin().lock(), std::io::stdout().lock()))
}
