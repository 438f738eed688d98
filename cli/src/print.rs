//! Standard output: whole pieces of text, errors as values.

use std::io::{Error, Write};

/// Writes `text` to standard output at once.
pub fn text(text: &str) -> Result<(), Error> {
    let mut output = std::io::stdout().lock();
    output.write_all(text.as_bytes())?;
    output.flush()
}

/// Writes `value` as indented JSON and a newline.
pub fn json(value: &impl serde::Serialize) -> Result<(), Error> {
    text(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// Writes `value` as one line of JSON.
pub fn json_line(value: &impl serde::Serialize) -> Result<(), Error> {
    text(&(serde_json::to_string(value)? + "\n"))
}
