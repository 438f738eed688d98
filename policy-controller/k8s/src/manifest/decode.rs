//! Documents to Kubernetes types, strictly: a field that the type does not have is an error. A typo in a policy
//! would otherwise widen it in silence.
//!
//! A deserializer of our own, because an error must know its field, and unknown fields are to be found without
//! compiling every type once for each of several wrappers.

use super::yaml::{Node, Shape};
use crate::field::{FieldPath, Segment};
use crate::problem::{FieldError, Problem};
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, Error, IntoDeserializer, MapAccess, SeqAccess, Visitor, value::StringDeserializer,
};
use serde::forward_to_deserialize_any;
use serde_json::Value as Json;
use std::cell::RefCell;
use std::fmt;

/// A document as an object of a kind.
///
/// # Errors
/// Fields that the kind does not have, or one value of a wrong type.
pub(super) fn decode<T: DeserializeOwned>(node: &Node, kind: &str) -> Result<T, Vec<FieldError>> {
    let walk = Walk::default();
    let decoded = T::deserialize(Typed { node, walk: &walk });
    let unknown = walk.unknown.into_inner().into_iter();
    let mut errors: Vec<_> = unknown.map(|field| FieldError::new(field, Problem::UnknownField(kind.to_owned()))).collect();
    match decoded {
        Ok(object) if errors.is_empty() => Ok(object),
        Ok(_) => Err(errors),
        Err(wrong) => {
            let field = wrong.inside_out.into_iter().rev().collect();
            errors.push(FieldError::new(field, Problem::WrongType(wrong.message)));
            Err(errors)
        }
    }
}

/// What a decoding has come by.
#[derive(Default)]
struct Walk {
    at: RefCell<Vec<Segment>>,
    unknown: RefCell<Vec<FieldPath>>,
}

/// A value of the wrong type, and where: the path gathers on the way up.
#[derive(Debug)]
struct Wrong {
    message: String,
    inside_out: Vec<Segment>,
}

impl std::error::Error for Wrong {}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Wrong {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { message: message.to_string(), inside_out: Vec::new() }
    }
}

/// A node on its way to become a value.
#[derive(Clone, Copy)]
struct Typed<'a> {
    node: &'a Node,
    walk: &'a Walk,
}

impl<'a> Typed<'a> {
    /// Decodes a node below this one.
    fn child<'de, S: DeserializeSeed<'de>>(self, segment: Segment, node: &'a Node, seed: S) -> Result<S::Value, Wrong> {
        self.walk.at.borrow_mut().push(segment);
        let decoded = seed.deserialize(Typed { node, walk: self.walk });
        let segment = self.walk.at.borrow_mut().pop();
        decoded.map_err(|mut wrong| {
            wrong.inside_out.extend(segment);
            wrong
        })
    }
}

impl<'de> Deserializer<'de> for Typed<'_> {
    type Error = Wrong;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match self.node.shape() {
            Shape::Scalar(Json::Null) => visitor.visit_unit(),
            Shape::Scalar(Json::Bool(value)) => visitor.visit_bool(*value),
            Shape::Scalar(Json::Number(number)) => match (number.as_u64(), number.as_i64()) {
                (Some(number), _) => visitor.visit_u64(number),
                (None, Some(number)) => visitor.visit_i64(number),
                (None, None) => visitor.visit_f64(number.as_f64().unwrap_or(f64::NAN)),
            },
            Shape::Scalar(scalar) => visitor.visit_str(scalar.as_str().unwrap_or_default()),
            Shape::List(items) => visitor.visit_seq(Items { of: self, rest: items.iter().enumerate() }),
            Shape::Map(entries) => visitor.visit_map(Fields { of: self, rest: entries.iter(), value: None }),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        if matches!(self.node.shape(), Shape::Scalar(Json::Null)) { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Wrong> {
        visitor.visit_newtype_struct(self)
    }

    /// A choice is written as its name.
    fn deserialize_enum<V: Visitor<'de>>(self, _: &'static str, _: &'static [&'static str], visitor: V) -> Result<V::Value, Wrong> {
        match self.node.text() {
            Some(name) => visitor.visit_enum(IntoDeserializer::<Wrong>::into_deserializer(name)),
            None => self.deserialize_any(visitor),
        }
    }

    /// Types ask for this where they have no place for a field.
    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        self.walk.unknown.borrow_mut().push(self.walk.at.borrow().iter().cloned().collect());
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map struct identifier
    }
}

struct Items<'a> {
    of: Typed<'a>,
    rest: std::iter::Enumerate<std::slice::Iter<'a, Node>>,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Wrong;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Wrong> {
        let Some((index, node)) = self.rest.next() else { return Ok(None) };
        self.of.child(Segment::Index(index), node, seed).map(Some)
    }
}

struct Fields<'a> {
    of: Typed<'a>,
    rest: std::slice::Iter<'a, super::yaml::Entry>,
    value: Option<&'a super::yaml::Entry>,
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = Wrong;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Wrong> {
        self.value = self.rest.next();
        let Some(entry) = self.value else { return Ok(None) };
        let key: StringDeserializer<Wrong> = entry.key.clone().into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Wrong> {
        let entry = self.value.take().ok_or_else(|| Wrong::custom("a value before its key"))?;
        self.of.child(Segment::Key(entry.key.clone()), &entry.value, seed)
    }
}
