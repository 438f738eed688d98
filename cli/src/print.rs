//! Standard output: whole pieces of text, errors as values.

use crate::arguments::Output;
use crate::error::CliError;
use crate::table::Paint;
use std::io::{Error, Write};

/// Writes `text` to standard output at once.
pub fn text(text: &str) -> Result<(), Error> {
    let mut output = std::io::stdout().lock();
    output.write_all(text.as_bytes())?;
    output.flush()
}

/// Writes a line to standard error, where it is in the way of no answer. A closed one is no reason to stop.
pub fn aside(line: &str) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Writes `value` as indented JSON and a newline.
pub fn json(value: &impl serde::Serialize) -> Result<(), Error> {
    text(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// Writes an answer as the user wants it: as JSON, or as `rendered` has it.
pub fn answer(output: Output, value: &impl serde::Serialize, rendered: impl FnOnce(Paint) -> String) -> Result<(), CliError> {
    match output {
        Output::Json => json(value)?,
        Output::Table => text(&rendered(Paint::for_stdout()))?,
    }
    Ok(())
}

/// Writes `value` as one line of JSON.
pub fn json_line(value: &impl serde::Serialize) -> Result<(), Error> {
    text(&(serde_json::to_string(value)? + "\n"))
}
