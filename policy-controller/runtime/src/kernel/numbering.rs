//! `numbers.json`: what the numbers in the rows stand for, written before the rows.

use crate::record::replace_file;
use palisade_policy::Numbers;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// The numbers in use, and the file that they outlive this process in.
#[derive(Debug)]
pub struct Numbering {
    /// The numbers.
    pub numbers: Numbers,
    path: PathBuf,
    /// What the file holds, where that is known.
    saved: Option<Arc<Numbers>>,
}

impl Numbering {
    /// The numbering of a run directory, not read yet.
    pub fn new(path: PathBuf) -> Self {
        Self { numbers: Numbers::default(), path, saved: None }
    }

    /// Reads the file. Where it is missing or not readable, numbering begins anew: [`palisade_policy::plan`] passes over the
    /// numbers that the kernel's rows use, and replaces those rows.
    pub fn load(&mut self) -> io::Result<()> {
        let text = match std::fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        match serde_json::from_slice::<Numbers>(&text) {
            Ok(numbers) => {
                self.numbers = numbers.clone();
                self.saved = Some(Arc::new(numbers));
            }
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "the numbering cannot be read; all rows are written anew");
            }
        }
        Ok(())
    }

    /// Writes the file, if the numbers are others than those in it.
    pub fn save(&mut self) -> io::Result<()> {
        if self.saved.as_deref() == Some(&self.numbers) {
            return Ok(());
        }
        let text = serde_json::to_vec(&self.numbers).map_err(io::Error::other)?;
        replace_file(&self.path, &text)?;
        self.saved = Some(Arc::new(self.numbers.clone()));
        Ok(())
    }

    /// The numbers as they were last written down.
    pub fn shared(&self) -> Arc<Numbers> {
        self.saved.clone().unwrap_or_default()
    }
}
