//! What can be wrong with a directory of manifests.

use crate::problem::FieldError;
use std::path::{Path, PathBuf};

/// Where something stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// The line, counted from 1; absent where the whole file is meant.
    pub line: Option<usize>,
}

impl Place {
    /// A whole file.
    pub fn file(file: &Path) -> Self {
        Self { file: file.to_owned(), line: None }
    }

    /// A line of a file, counted from 1.
    pub fn line(file: &Path, line: usize) -> Self {
        Self { file: file.to_owned(), line: Some(line) }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let file = tame(&self.file.display().to_string());
        match self.line {
            Some(line) => write!(f, "{file}:{line}"),
            None => f.write_str(&file),
        }
    }
}

/// A line with text from a file, or a file's name: what would steer a terminal, or turn what stands beside it, is escaped.
pub(super) fn tame(line: &str) -> String {
    let steers = |c: char| c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut tamed = String::with_capacity(line.len());
    for c in line.chars() {
        if steers(c) {
            tamed.extend(c.escape_default());
        } else {
            tamed.push(c);
        }
    }
    tamed
}

/// Everything that is wrong with a directory; nothing of it was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestErrors(
    /// In the order of files and lines; never empty.
    pub Vec<ManifestError>,
);

impl std::error::Error for ManifestErrors {}

impl std::fmt::Display for ManifestErrors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            let end = if index == 0 { "" } else { "\n" };
            write!(f, "{end}{error}")?;
        }
        Ok(())
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestError {
    /// Where.
    pub place: Place,
    /// In which object, e.g. `NetworkPolicy backend/allow-frontend`; absent where no object could be read.
    pub object: Option<String>,
    /// What.
    pub problem: ManifestProblem,
}

impl std::error::Error for ManifestError {}

impl std::fmt::Display for ManifestError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let object = self.object.as_ref().map(|object| format!("{object}: ")).unwrap_or_default();
        f.write_str(&tame(&format!("{}: {object}{}", self.place, self.problem)))
    }
}

/// What can be wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestProblem {
    /// The operating system does not let it be read.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// It has the name of a manifest, and is a pipe, a socket or a device.
    #[error("is no regular file: it is named as a manifest is, and cannot be read as one")]
    NotAFile,
    /// The file is not text.
    #[error("is not UTF-8 text")]
    NotUtf8,
    /// The directory holds no manifest.
    #[error("holds no manifest: files that end in .yaml, .yml or .json are read")]
    NoFiles,
    /// The text is no YAML.
    #[error("{0}")]
    Syntax(String),
    /// A file that is one document holds none, or several.
    #[error("holds {0} documents where one is needed")]
    NotOneDocument(usize),
    /// The document is no Kubernetes object.
    #[error("the document is no Kubernetes object: {0} is missing")]
    NotAnObject(&'static str),
    /// A kind that is known, of a version that is not.
    #[error("apiVersion {found:?} of this kind is not known: write {expected}")]
    UnknownVersion {
        /// What was written.
        found: String,
        /// What is known.
        expected: &'static str,
    },
    /// A field is wrong.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// Two objects of one kind have one name.
    #[error("this name is taken already, at {first}")]
    Duplicate {
        /// Where the other one stands.
        first: Place,
    },
    /// An object lives in a namespace that is nowhere declared.
    #[error("metadata.namespace: there is no namespace {0:?}: declare it with kind: Namespace")]
    NoNamespace(String),
}
