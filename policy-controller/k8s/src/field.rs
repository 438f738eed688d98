//! Where in an object something stands.

use std::fmt;

/// The path of a field from the top of an object, e.g. `spec.ingress[0].ports[1].port`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FieldPath(Vec<Segment>);

/// One step of a [`FieldPath`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Segment {
    /// A field of an object, or a key of a map such as labels.
    Key(String),
    /// An element of a list, counted from 0.
    Index(usize),
}

impl FieldPath {
    /// The top of an object.
    pub fn root() -> Self {
        Self::default()
    }

    /// A path of field names, separated by dots: `metadata.labels`.
    pub fn of(names: &str) -> Self {
        Self(names.split('.').map(|name| Segment::Key(name.to_owned())).collect())
    }

    /// The field `name` of what this path leads to.
    pub fn key(&self, name: impl Into<String>) -> Self {
        self.then(Segment::Key(name.into()))
    }

    /// Element `index` of the list that this path leads to.
    pub fn index(&self, index: usize) -> Self {
        self.then(Segment::Index(index))
    }

    /// This path, followed by `rest`.
    pub fn join(&self, rest: &FieldPath) -> Self {
        Self(self.0.iter().chain(&rest.0).cloned().collect())
    }

    /// The steps from the top.
    pub fn segments(&self) -> &[Segment] {
        &self.0
    }

    fn then(&self, segment: Segment) -> Self {
        Self(self.0.iter().cloned().chain([segment]).collect())
    }
}

impl FromIterator<Segment> for FieldPath {
    fn from_iter<I: IntoIterator<Item = Segment>>(segments: I) -> Self {
        Self(segments.into_iter().collect())
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Index(index) => write!(f, "[{index}]")?,
                // A label's key may hold dots; quoted, it stays one step.
                Segment::Key(key) if key.is_empty() || key.contains(['.', '[', ']']) => write!(f, "[{key:?}]")?,
                Segment::Key(key) if position == 0 => f.write_str(key)?,
                Segment::Key(key) => write!(f, ".{key}")?,
            }
        }
        Ok(())
    }
}
