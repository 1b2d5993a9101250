//! Reads fields from YAML nodes: every error has a position, and every unread field becomes a warning.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::error::{ManifestError, Problem};
use super::expand::expand;
use super::yaml::{Node, Value};

/// By how many bytes expanding variables may grow the texts of a stream, in total.
pub(super) const MOST_GROWTH: usize = 4 << 20;

/// A field that has no effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Path of the field, as in `spec.containers[0].stdin`.
    pub field: String,
    /// Its line in the stream, from 1.
    pub line: usize,
    /// Why it has no effect.
    pub message: String,
}

/// State shared by all fields of a document.
#[derive(Debug)]
pub(crate) struct Source {
    /// Number of the document, from 1.
    pub document: usize,
    warnings: RefCell<Vec<Warning>>,
    /// The remainder of [`MOST_GROWTH`].
    room: Cell<usize>,
}

/// A node and the path to it.
#[derive(Debug, Clone)]
pub(crate) struct Field<'a> {
    source: &'a Source,
    path: String,
    node: &'a Node,
}

/// A mapping that is being read. Absent fields and `null` are the same.
pub(crate) struct Object<'a> {
    field: Field<'a>,
    /// Fields that have not been read yet.
    rest: Vec<(&'a str, &'a Arc<Node>)>,
}

type Result<T> = std::result::Result<T, ManifestError>;

impl Source {
    pub fn new(document: usize) -> Self {
        Self::with_room(document, MOST_GROWTH)
    }

    /// The next document of a stream.
    pub(super) fn with_room(document: usize, room: usize) -> Self {
        Self {
            document,
            warnings: RefCell::default(),
            room: Cell::new(room),
        }
    }

    /// The remaining budget for the next document.
    pub(super) fn room(&self) -> usize {
        self.room.get()
    }

    /// The warnings since the last call.
    pub fn take_warnings(&self) -> Vec<Warning> {
        self.warnings.take()
    }
}

impl<'a> Field<'a> {
    /// The root of a document, or of an item of a list.
    pub fn root(source: &'a Source, path: String, node: &'a Node) -> Self {
        Self { source, path, node }
    }

    pub fn node(&self) -> &'a Node {
        self.node
    }

    /// An error at this field.
    pub fn error(&self, problem: impl Into<String>) -> ManifestError {
        self.problem(Problem::Other(problem.into()))
    }

    pub fn problem(&self, problem: Problem) -> ManifestError {
        ManifestError {
            problem,
            document: self.source.document,
            line: self.node.line,
            field: self.path.clone(),
        }
    }

    /// Warns the client that this field has no effect.
    pub fn warn(&self, message: impl Into<String>) {
        self.source.warnings.borrow_mut().push(Warning {
            field: self.path.clone(),
            line: self.node.line,
            message: message.into(),
        });
    }

    /// The text as written; `null` is empty.
    pub fn string(&self) -> Result<String> {
        match &self.node.value {
            // No value it can become (argument, variable, path, name) may contain NUL.
            Value::Scalar { text, .. } if text.contains('\0') => Err(self.error("must not contain a NUL character")),
            Value::Scalar { text, .. } => Ok(text.clone()),
            Value::Null => Ok(String::new()),
            _ => Err(self.error("must be a string")),
        }
    }

    /// The text of this field with references to known variables expanded.
    pub(super) fn expand(&self, text: &str, known: &HashMap<String, String>) -> Result<String> {
        let room = self.source.room.get();
        let expanded = expand(text, known, text.len().saturating_add(room)).ok_or_else(|| {
            let problem = "references to variables make the manifest longer than 4 MiB; write less of them";
            self.error(problem)
        })?;
        self.source
            .room
            .set(room.saturating_sub(expanded.len().saturating_sub(text.len())));
        Ok(expanded)
    }

    pub fn boolean(&self) -> Result<bool> {
        match self.plain().map(str::to_ascii_lowercase).as_deref() {
            Some("true" | "yes" | "on") => Ok(true),
            Some("false" | "no" | "off") => Ok(false),
            _ => Err(self.error("must be true or false")),
        }
    }

    /// An unquoted integer in decimal digits.
    pub fn integer(&self, range: RangeInclusive<i64>) -> Result<i64> {
        let number = self.plain().and_then(|text| text.parse::<i64>().ok());
        match number {
            Some(number) if range.contains(&number) => Ok(number),
            _ => {
                let (least, most) = (range.start(), range.end());
                let range = match (*least, *most) {
                    (least, i64::MAX) => format!("from {least} on"),
                    (least, most) => format!("from {least} to {most}"),
                };
                Err(self.error(format!("must be a whole number {range}")))
            }
        }
    }

    pub fn items(&self) -> Result<Vec<Field<'a>>> {
        let Value::List(items) = &self.node.value else {
            return Err(self.error("must be a list"));
        };
        let item = |(at, node): (usize, &'a Arc<Node>)| Field {
            source: self.source,
            path: format!("{}[{at}]", self.path),
            node,
        };
        Ok(items.iter().enumerate().map(item).collect())
    }

    /// Reads a mapping. Fields that `read` does not read become warnings.
    pub fn object<T>(&self, read: impl FnOnce(&mut Object<'a>) -> Result<T>) -> Result<T> {
        let mut object = Object {
            field: self.clone(),
            rest: self.entries()?.iter().map(|(key, node)| (key.as_str(), node)).collect(),
        };
        let value = read(&mut object)?;
        let rest = std::mem::take(&mut object.rest);
        for (key, node) in rest.into_iter().filter(|(_, node)| node.value != Value::Null) {
            object.child(key, node).warn("is not supported and has no effect");
        }
        Ok(value)
    }

    /// A mapping with arbitrary keys, in the order of the text.
    pub fn mapping(&self) -> Result<Vec<(&'a str, Field<'a>)>> {
        let entry = |(key, node): &'a (String, Arc<Node>)| {
            let field = Field {
                source: self.source,
                path: format!("{}.{key}", self.path),
                node,
            };
            (key.as_str(), field)
        };
        Ok(self.entries()?.iter().map(entry).collect())
    }

    /// A mapping from strings to strings.
    pub fn string_map(&self) -> Result<BTreeMap<String, String>> {
        let entry = |(key, field): (&str, Field<'_>)| Ok((key.to_owned(), field.string()?));
        self.mapping()?.into_iter().map(entry).collect()
    }

    pub fn is_mapping(&self) -> bool {
        matches!(self.node.value, Value::Map(_))
    }

    pub fn is_list(&self) -> bool {
        matches!(self.node.value, Value::List(_))
    }

    pub fn strings(&self) -> Result<Vec<String>> {
        self.items()?.iter().map(Field::string).collect()
    }

    /// Whether it is empty: `null`, `false`, an empty value.
    pub fn is_nothing(&self) -> bool {
        match &self.node.value {
            Value::Null => true,
            Value::Scalar { text, .. } => text.is_empty() || (self.boolean() == Ok(false)),
            Value::List(items) => items.is_empty(),
            Value::Map(entries) => entries.is_empty(),
        }
    }

    /// The text of an unquoted scalar.
    pub fn plain(&self) -> Option<&'a str> {
        match &self.node.value {
            Value::Scalar { text, quoted: false } => Some(text),
            _ => None,
        }
    }

    fn entries(&self) -> Result<&'a [(String, Arc<Node>)]> {
        match &self.node.value {
            Value::Map(entries) => Ok(entries),
            _ => Err(self.error("must be a mapping")),
        }
    }
}

impl<'a> Object<'a> {
    /// The mapping itself, for errors about several of its fields or a missing one.
    pub fn whole(&self) -> &Field<'a> {
        &self.field
    }

    /// A field that is present and not `null`.
    pub fn field(&mut self, name: &str) -> Option<Field<'a>> {
        let at = self.rest.iter().position(|(key, _)| *key == name)?;
        let (key, node) = self.rest.swap_remove(at);
        (node.value != Value::Null).then(|| self.child(key, node))
    }

    /// Like [`Object::field`], converted by `read`; the default value if it is absent.
    pub fn get<T: Default>(&mut self, name: &str, read: impl FnOnce(&Field<'a>) -> Result<T>) -> Result<T> {
        self.field(name).map_or_else(|| Ok(T::default()), |field| read(&field))
    }

    pub fn optional<T>(&mut self, name: &str, read: impl FnOnce(&Field<'a>) -> Result<T>) -> Result<Option<T>> {
        self.field(name).map(|field| read(&field)).transpose()
    }

    pub fn string(&mut self, name: &str) -> Result<String> {
        self.get(name, Field::string)
    }

    pub fn items(&mut self, name: &str) -> Result<Vec<Field<'a>>> {
        self.get(name, Field::items)
    }

    /// Refuses unsupported fields that would change what runs, unless they are empty.
    pub fn refuse(&mut self, names: &[&str]) -> Result<()> {
        for name in names {
            if let Some(field) = self.field(name).filter(|field| !field.is_nothing()) {
                return Err(field.error(format!(
                    "{name} is not supported, and would change what runs; remove it"
                )));
            }
        }
        Ok(())
    }

    /// Whether the field is present, even if it is `null`. Does not count as reading it.
    pub fn has(&self, name: &str) -> bool {
        self.rest.iter().any(|(key, _)| *key == name)
    }

    /// Warns the client about the consequence of a missing field.
    pub fn warn_of_missing(&self, name: &str, message: impl Into<String>) {
        Field {
            path: self.path_of(name),
            ..self.field.clone()
        }
        .warn(message);
    }

    /// The position of a missing field.
    pub fn missing(&self, name: &str, problem: impl Into<String>) -> ManifestError {
        let mut error = self.field.error(problem);
        error.field = self.path_of(name);
        error
    }

    fn child(&self, name: &str, node: &'a Node) -> Field<'a> {
        Field {
            source: self.field.source,
            path: self.path_of(name),
            node,
        }
    }

    fn path_of(&self, name: &str) -> String {
        match &self.field.path[..] {
            "" => name.to_owned(),
            path => format!("{path}.{name}"),
        }
    }
}
