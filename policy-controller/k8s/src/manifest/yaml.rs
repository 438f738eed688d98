//! YAML text to documents that know their lines.
//!
//! Plain scalars are read as kubectl reads them (YAML 1.1: `yes` and `on` are booleans, `010` is eight), so that
//! what is taken here is taken there. Duplicate keys are errors: the second of two `matchLabels` must not silently
//! replace the first.

use crate::field::{FieldPath, Segment};
use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput, Tag};
use serde_json::{Number, Value as Json};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Aliases can blow a small file up; nothing that a person writes comes near this.
const MOST_NODES: usize = 1_000_000;
/// How deep nodes may be nested.
const MOST_DEPTH: usize = 100;

/// A node of a document.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    /// The line on which it begins, counted from 1.
    pub line: usize,
    shape: Shape,
}

/// What stands in a node.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Shape {
    /// Null, a boolean, a number or a text.
    Scalar(Json),
    List(Vec<Node>),
    /// In the order of the text; no key stands twice.
    Map(Vec<Entry>),
}

/// A key and its value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub key: String,
    /// The line of the key, counted from 1.
    pub line: usize,
    pub value: Node,
}

/// A text that is no YAML, or none that is read here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SyntaxError {
    pub line: usize,
    pub message: String,
}

/// The documents of a text; empty ones are left out.
pub(super) fn documents(text: &str) -> Result<Vec<Node>, SyntaxError> {
    let mut composer = Composer { events: Parser::new_from_str(text), anchors: BTreeMap::new(), nodes: 0 };
    let mut documents = Vec::new();
    loop {
        match composer.next()? {
            (Event::StreamEnd, _) => return Ok(documents),
            (Event::DocumentStart(_), _) => {
                composer.anchors.clear();
                let (event, span) = composer.next()?;
                let document = composer.node(event, span, 0)?;
                if document.shape != Shape::Scalar(Json::Null) {
                    documents.push(document);
                }
            }
            _ => {}
        }
    }
}

impl Node {
    /// What stands in it.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The value of a key, where this is a map that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        let Shape::Map(entries) = &self.shape else { return None };
        entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value)
    }

    /// The text, where this is one.
    pub fn text(&self) -> Option<&str> {
        match &self.shape {
            Shape::Scalar(Json::String(text)) => Some(text),
            _ => None,
        }
    }

    /// The elements, where this is a list.
    pub fn items(&self) -> Option<&[Node]> {
        match &self.shape {
            Shape::List(items) => Some(items),
            _ => None,
        }
    }

    /// This map without `key`.
    pub fn without(&self, key: &str) -> Node {
        let mut node = self.clone();
        if let Shape::Map(entries) = &mut node.shape {
            entries.retain(|entry| entry.key != key);
        }
        node
    }

    /// This map with `key`, unless it has it.
    pub fn with_default(&self, key: &str, text: &str) -> Node {
        let mut node = self.clone();
        if let Shape::Map(entries) = &mut node.shape
            && !entries.iter().any(|entry| entry.key == key)
        {
            let value = Node { line: self.line, shape: Shape::Scalar(Json::String(text.to_owned())) };
            entries.push(Entry { key: key.to_owned(), line: self.line, value });
        }
        node
    }

    /// The line of a field: that of its key, or of what would hold it where it is missing.
    pub fn line_of(&self, field: &FieldPath) -> usize {
        let (mut node, mut line) = (self, self.line);
        for segment in field.segments() {
            match (segment, &node.shape) {
                (Segment::Key(key), Shape::Map(entries)) => {
                    let Some(entry) = entries.iter().find(|entry| entry.key == *key) else { break };
                    (node, line) = (&entry.value, entry.line);
                }
                (Segment::Index(index), Shape::List(items)) => {
                    let Some(item) = items.get(*index) else { break };
                    (node, line) = (item, item.line);
                }
                _ => break,
            }
        }
        line
    }

    /// Number of nodes in this one, itself included.
    fn size(&self) -> usize {
        1 + match &self.shape {
            Shape::Scalar(_) => 0,
            Shape::List(items) => items.iter().map(Node::size).sum(),
            Shape::Map(entries) => entries.iter().map(|entry| entry.value.size()).sum(),
        }
    }
}

struct Composer<'a> {
    events: Parser<'a, StrInput<'a>>,
    anchors: BTreeMap<usize, Node>,
    nodes: usize,
}

impl<'a> Composer<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), SyntaxError> {
        match self.events.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => Err(SyntaxError {
                line: error.marker().line(),
                message: format!("no valid YAML: {} (column {})", error.info(), error.marker().col() + 1),
            }),
            None => Err(SyntaxError { line: 1, message: "no valid YAML: the text ends in a document".to_owned() }),
        }
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Node, SyntaxError> {
        let line = span.start.line();
        let wrong = |message: String| SyntaxError { line, message };
        self.nodes += 1;
        if depth > MOST_DEPTH || self.nodes > MOST_NODES {
            return Err(wrong("too large or too deep for a manifest".to_owned()));
        }
        let (anchor, shape) = match event {
            Event::Scalar(text, style, anchor, tag) => (anchor, Shape::Scalar(scalar(text, style, tag.as_deref()).map_err(wrong)?)),
            Event::SequenceStart(anchor, tag) => {
                check_tag(tag.as_deref(), "seq").map_err(wrong)?;
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, _) => break (anchor, Shape::List(items)),
                        (event, span) => items.push(self.node(event, span, depth + 1)?),
                    }
                }
            }
            Event::MappingStart(anchor, tag) => {
                check_tag(tag.as_deref(), "map").map_err(wrong)?;
                (anchor, Shape::Map(self.entries(depth)?))
            }
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor) else {
                    return Err(wrong("an alias stands inside its own anchor".to_owned()));
                };
                let node = node.clone();
                self.nodes += node.size();
                return Ok(node);
            }
            other => return Err(wrong(format!("no valid YAML: unexpected {other:?}"))),
        };
        let node = Node { line, shape };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn entries(&mut self, depth: usize) -> Result<Vec<Entry>, SyntaxError> {
        let mut entries: Vec<Entry> = Vec::new();
        loop {
            let (event, span) = self.next()?;
            let line = span.start.line();
            let fail = |message: String| Err(SyntaxError { line, message });
            let key = match event {
                Event::MappingEnd => return Ok(entries),
                Event::Scalar(text, ScalarStyle::Plain, ..) if text == "<<" => {
                    return fail("merge keys (<<) are not read: write the fields out".to_owned());
                }
                Event::Scalar(text, style, ..) if !text.is_empty() || style != ScalarStyle::Plain => text.into_owned(),
                _ => return fail("a key must be a text".to_owned()),
            };
            if let Some(first) = entries.iter().find(|entry| entry.key == key) {
                return fail(format!("{key:?} stands here a second time; the first is in line {}", first.line));
            }
            let (event, span) = self.next()?;
            let value = self.node(event, span, depth + 1)?;
            entries.push(Entry { key, line, value });
        }
    }
}

fn check_tag(tag: Option<&Tag>, name: &str) -> Result<(), String> {
    match tag {
        None => Ok(()),
        Some(tag) if tag.is_yaml_core_schema() && tag.suffix == name => Ok(()),
        Some(tag) => Err(format!("the tag {tag} is not read here")),
    }
}

fn scalar(text: Cow<'_, str>, style: ScalarStyle, tag: Option<&Tag>) -> Result<Json, String> {
    match tag {
        None if style != ScalarStyle::Plain => Ok(Json::String(text.into_owned())),
        None => plain(&text),
        Some(tag) if tag.is_yaml_core_schema() && tag.suffix == "str" => Ok(Json::String(text.into_owned())),
        Some(tag) if tag.is_yaml_core_schema() => match (plain(&text)?, tag.suffix.as_str()) {
            (value @ Json::Null, "null") | (value @ Json::Bool(_), "bool") | (value @ Json::Number(_), "int" | "float") => Ok(value),
            (_, kind) => Err(format!("{text:?} is no {kind}")),
        },
        Some(tag) => Err(format!("the tag {tag} is not read here")),
    }
}

/// A plain scalar as YAML 1.1 has it.
fn plain(text: &str) -> Result<Json, String> {
    Ok(match text {
        "" | "~" | "null" | "Null" | "NULL" => Json::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => Json::Bool(true),
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => Json::Bool(false),
        _ => match number(text) {
            Some(number) => Json::Number(number),
            None if is_not_finite(text) => return Err(format!("{text} is no number that an object can hold")),
            None => Json::String(text.to_owned()),
        },
    })
}

fn is_not_finite(text: &str) -> bool {
    matches!(text.trim_start_matches(['+', '-']).to_ascii_lowercase().as_str(), ".inf" | ".nan")
}

fn number(text: &str) -> Option<Number> {
    let (sign, digits) = match text.strip_prefix(['+', '-']) {
        Some(digits) => (if text.starts_with('-') { "-" } else { "" }, digits),
        None => ("", text),
    };
    if !digits.starts_with(|first: char| first.is_ascii_digit() || first == '.') {
        return None;
    }
    let digits = digits.replace('_', "");
    let whole = |digits: &str, radix| i64::from_str_radix(&format!("{sign}{digits}"), radix).ok().map(Number::from);
    let all = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if let Some((digits, radix)) =
        [("0x", 16), ("0o", 8), ("0b", 2)].iter().find_map(|(prefix, radix)| Some((digits.strip_prefix(prefix)?, radix)))
    {
        return if all(digits) { whole(digits, *radix) } else { None };
    }
    if digits.len() > 1
        && digits.starts_with('0')
        && let Some(octal) = whole(&digits, 8)
    {
        return Some(octal);
    }
    if digits.bytes().all(|byte| byte.is_ascii_digit())
        && let Some(decimal) = whole(&digits, 10)
    {
        return Some(decimal);
    }
    let float = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-');
    if digits.bytes().any(|byte| byte.is_ascii_digit()) && digits.bytes().all(float) {
        return format!("{sign}{digits}").parse().ok().and_then(Number::from_f64);
    }
    None
}
