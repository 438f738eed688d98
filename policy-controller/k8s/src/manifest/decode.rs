//! Documents to Kubernetes types, strictly: a field that the kind does not have is an error. A typo in a policy
//! would otherwise widen it in silence.

use super::yaml::Node;
use crate::field::{FieldPath, Segment};
use crate::problem::{FieldError, Problem};
use serde::de::DeserializeOwned;

/// A document as an object of a kind.
///
/// # Errors
/// Fields that the kind does not have, or one value of a wrong type.
pub(super) fn decode<T: DeserializeOwned>(node: &Node, kind: &str) -> Result<T, Vec<FieldError>> {
    let mut unknown = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let json = node.to_json();
    let decoded: Result<T, serde_json::Error> =
        serde_ignored::deserialize(serde_path_to_error::Deserializer::new(json, &mut track), |path| {
            unknown.push(FieldError::new(ignored(&path), Problem::UnknownField(kind.to_owned())));
        });
    match decoded {
        Ok(object) if unknown.is_empty() => Ok(object),
        Ok(_) => Err(unknown),
        Err(error) => {
            unknown.push(FieldError::new(failed(&track.path()), Problem::WrongType(error.to_string())));
            Err(unknown)
        }
    }
}

fn ignored(path: &serde_ignored::Path) -> FieldPath {
    use serde_ignored::Path;
    match path {
        Path::Root => FieldPath::root(),
        Path::Seq { parent, index } => ignored(parent).index(*index),
        Path::Map { parent, key } => ignored(parent).key(key),
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => ignored(parent),
    }
}

fn failed(path: &serde_path_to_error::Path) -> FieldPath {
    use serde_path_to_error::Segment as Step;
    let step = |step: &Step| match step {
        Step::Seq { index } => Some(Segment::Index(*index)),
        Step::Map { key } => Some(Segment::Key(key.clone())),
        Step::Enum { .. } | Step::Unknown => None,
    };
    path.iter().filter_map(step).collect()
}
