//! Do the keys exist and do the values fit: one layer against the schema that `file.rs` gives.
//!
//! Figment and serde stop at the first mistake and know no lines, so the layers are looked through here first. What is refused is
//! taken out of the layer, so that the rest can still be merged and judged: one run names everything that is wrong.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value as Schema;

use super::problems::Problem;
use super::tree::{Layer, Node, Origin, Tree, is_secret, join, numbered};
use super::units::{self, Scalar, Span, Unfit, Unit as _, Variable, nearest};

/// True for a value that asks for nothing.
type AsksNothing = fn(&Tree) -> bool;

/// Keys of the design that this version does not carry out yet, and the values of theirs that are taken nevertheless.
const LATER: [(&str, AsksNothing); 1] = [("gateway", is_empty)];

fn is_empty(value: &Tree) -> bool {
    match value {
        Tree::Array(items) => items.is_empty(),
        Tree::Table(entries) => entries.is_empty(),
        _ => false,
    }
}

/// Takes everything out of `layer` that does not fit; the keys taken out go to `spoiled`.
pub fn examine(layer: &mut Layer, schema: &Schema, problems: &mut Vec<Problem>, spoiled: &mut BTreeSet<String>) {
    let mut examination = Examination { origin: &layer.origin, problems, spoiled };
    examination.fits(&mut layer.root, schema, "");
}

struct Examination<'a> {
    origin: &'a Origin,
    problems: &'a mut Vec<Problem>,
    spoiled: &'a mut BTreeSet<String>,
}

impl Examination<'_> {
    /// False when the node must go.
    fn fits(&mut self, node: &mut Node, schema: &Schema, path: &str) -> bool {
        if path == "http.api_key" && !matches!(self.origin, Origin::Variable(_)) {
            let message = "a key does not belong here, where others can read it".to_owned();
            self.refuse(path, &node.at, message, Some("http.api_key_file, or PLIMSOLL_HTTP__API_KEY in the environment".to_owned()));
            return false;
        }
        if schema.get("x-unit").is_some() {
            return self.unit_fits(node, schema, path, "");
        }
        if let Some(words) = words(schema) {
            return self.word_fits(node, &words, path, "");
        }
        if let Some((value, table)) = value_or_table(schema) {
            let or_table = format!(", or a table with {}", properties(table).join(", "));
            return match (&node.value, words(value)) {
                (Tree::Table(_), _) => self.table_fits(node, table, path),
                (_, Some(words)) => self.word_fits(node, &words, path, &or_table),
                (_, None) => self.unit_fits(node, value, path, &or_table),
            };
        }
        match schema.get("type").and_then(Schema::as_str) {
            Some("object") => self.table_fits(node, schema, path),
            Some("array") => self.list_fits(node, schema, path),
            Some("boolean") if matches!(node.value, Tree::Scalar(Scalar::Boolean(_))) => true,
            Some("boolean") => self.wrong(node, path, "true or false"),
            Some("integer") => self.integer_fits(node, schema, path),
            _ => self.text_fits(node, schema, path),
        }
    }

    fn table_fits(&mut self, node: &mut Node, schema: &Schema, path: &str) -> bool {
        let Tree::Table(entries) = &mut node.value else {
            let names = properties(schema).join(", ");
            let allowed = if names.is_empty() { "a table".to_owned() } else { format!("a table with {names}") };
            return self.wrong(node, path, &allowed);
        };
        let mut kept = BTreeMap::new();
        for (name, mut entry) in std::mem::take(entries) {
            let inner = join(path, &name);
            let told = self.problems.len();
            let known = schema.get("properties").and_then(|properties| properties.get(&name));
            let any = schema.get("additionalProperties").filter(|any| any.is_object());
            let fits = match known.or(any) {
                Some(inner_schema) if known.is_some() || self.name_fits(&entry, path, &name) => self.fits(&mut entry, inner_schema, &inner),
                Some(_) => false,
                None => self.stray(&entry, schema, path, &name),
            };
            if fits {
                kept.insert(name, entry);
            } else if self.problems.len() > told {
                self.spoiled.insert(inner);
            }
        }
        *entries = kept;
        true
    }

    /// The names of workers, of jobs and of variables are the user's own, within limits.
    fn name_fits(&mut self, entry: &Node, path: &str, name: &str) -> bool {
        let (good, allowed) = if ["workers", "jobs"].contains(&path) {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            (!name.is_empty() && name.len() <= 64 && name.chars().all(plain), "letters, digits, - and _, at most 64 of them")
        } else {
            (!name.is_empty() && !name.contains(['=', '\0']), "any text without \"=\"")
        };
        if !good {
            self.refuse(&join(path, name), &entry.key_at, format!("\"{name}\" cannot be a name here"), Some(allowed.to_owned()));
        }
        good
    }

    /// A key nobody knows, or nobody knows yet.
    fn stray(&mut self, entry: &Node, schema: &Schema, path: &str, name: &str) -> bool {
        let key = join(path, name);
        if let Some((_, asks_nothing)) = LATER.iter().find(|(pattern, _)| *pattern == pattern_of(&key)) {
            if !asks_nothing(&entry.value) {
                self.refuse(&key, &entry.key_at, "not available in this version yet".to_owned(), None);
            }
            return false;
        }
        let names = properties(schema);
        let suggestion = nearest(name, names.iter().copied()).map(str::to_owned);
        let allowed = suggestion.is_none().then(|| names.join(", "));
        let place = self.origin.place(&entry.key_at);
        let message = if path.is_empty() { "unknown section".to_owned() } else { "unknown key".to_owned() };
        self.problems.push(Problem { key, place, message, allowed, suggestion });
        false
    }

    fn list_fits(&mut self, node: &mut Node, schema: &Schema, path: &str) -> bool {
        let Some(items) = schema.get("items") else { return true };
        if let (Tree::Scalar(_), false) = (&node.value, self.origin.is_file()) {
            // In the environment a list of plain words is written with commas; arguments of a command may hold commas.
            let parts = match &node.raw {
                Some(raw) if items.get("x-unit").is_some() => numbered(raw.split(',').map(|part| Node::from_text(part.trim()))),
                _ => vec![node.clone()],
            };
            node.value = Tree::Array(parts);
        }
        let Tree::Array(entries) = &mut node.value else {
            let written = match &node.value {
                // A command is one word for each argument; anything else is one entry.
                Tree::Scalar(Scalar::Text(text)) if text.contains(['"', '\'', '\\']) || text.trim().is_empty() => None,
                Tree::Scalar(Scalar::Text(text)) if path.ends_with("command") => Some(text.split_whitespace().collect::<Vec<_>>()),
                Tree::Scalar(Scalar::Text(text)) => Some(vec![text.as_str()]),
                _ => None,
            };
            let allowed = written.map_or("a list, in [ ]".to_owned(), |entries| format!("a list, in [ ]: {entries:?}"));
            return self.wrong(node, path, &allowed);
        };
        let mut kept = Vec::new();
        for (index, mut entry) in std::mem::take(entries).into_iter().enumerate() {
            let inner = format!("{path}[{index}]");
            if !self.fits(&mut entry, items, &inner) {
                self.spoiled.insert(inner);
                continue;
            }
            kept.push(entry);
        }
        *entries = kept;
        true
    }

    /// `besides` is what else may stand there, for people.
    fn unit_fits(&mut self, node: &mut Node, schema: &Schema, path: &str, besides: &str) -> bool {
        let allowed = format!("{}{besides}", schema.get("x-allowed").and_then(Schema::as_str).unwrap_or(""));
        let name = schema.get("x-unit").and_then(Schema::as_str).unwrap_or("");
        if name == Variable::NAME {
            as_given(node);
        }
        let Tree::Scalar(value) = &node.value else { return self.wrong(node, path, &allowed) };
        if let Err(Unfit { why, meant }) = units::judge(name, value) {
            let place = self.origin.place(&node.at);
            let message = format!("{} {why}", shown(node, path));
            self.problems.push(Problem { key: path.to_owned(), place, message, allowed: Some(allowed), suggestion: meant });
            return false;
        }
        if let (Some((least, most)), Ok(span)) = (range(schema), Span::read(value))
            && !(least..=most).contains(&span)
        {
            let message = format!("{} is out of range", shown(node, path));
            self.refuse(path, &node.at, message, Some(format!("{least} to {most}")));
            return false;
        }
        true
    }

    /// `besides` is what else may stand there, for people.
    fn word_fits(&mut self, node: &Node, words: &[&str], path: &str, besides: &str) -> bool {
        let allowed = words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ") + besides;
        let Tree::Scalar(Scalar::Text(text)) = &node.value else { return self.wrong(node, path, &allowed) };
        if words.contains(&text.as_str()) {
            return true;
        }
        let suggestion = nearest(text, words.iter().copied()).map(str::to_owned);
        let place = self.origin.place(&node.at);
        let message = format!("{} is not one of them", shown(node, path));
        self.problems.push(Problem { key: path.to_owned(), place, message, allowed: Some(allowed), suggestion });
        false
    }

    fn integer_fits(&mut self, node: &Node, schema: &Schema, path: &str) -> bool {
        let bound = |name: &str| schema.get(name).and_then(Schema::as_i64);
        let (least, most) = (bound("minimum").unwrap_or(0), bound("maximum").unwrap_or(i64::from(i32::MAX)));
        let allowed = format!("a whole number from {least} to {most}");
        match node.value {
            Tree::Scalar(Scalar::Integer(number)) if (least..=most).contains(&number) => true,
            Tree::Scalar(Scalar::Integer(_)) => {
                self.refuse(path, &node.at, format!("{} is out of range", shown(node, path)), Some(allowed));
                false
            }
            _ => self.wrong(node, path, &allowed),
        }
    }

    fn text_fits(&mut self, node: &mut Node, schema: &Schema, path: &str) -> bool {
        as_given(node);
        match &node.value {
            Tree::Scalar(Scalar::Text(text)) if text.contains('\0') => {
                self.refuse(path, &node.at, "holds a NUL byte".to_owned(), None);
                false
            }
            Tree::Scalar(Scalar::Text(text)) if text.is_empty() && schema.get("minLength").is_some() => {
                self.refuse(path, &node.at, "is empty".to_owned(), None);
                false
            }
            Tree::Scalar(Scalar::Text(_)) => true,
            _ => self.wrong(node, path, "text, in quotes"),
        }
    }

    /// The value is of the wrong kind altogether.
    fn wrong(&mut self, node: &Node, path: &str, allowed: &str) -> bool {
        let kind = node.value.kind();
        let message = match &node.value {
            Tree::Scalar(_) | Tree::Date(_) => format!("{} is {kind}", shown(node, path)),
            _ => format!("is {kind}"),
        };
        self.refuse(path, &node.at, message, Some(allowed.to_owned()));
        false
    }

    fn refuse(&mut self, path: &str, at: &std::ops::Range<usize>, message: String, allowed: Option<String>) {
        let place = self.origin.place(at);
        self.problems.push(Problem { key: path.to_owned(), place, message, allowed, suggestion: None });
    }
}

/// `--set workers.web.directory=1_000` means the text, whatever it looks like.
fn as_given(node: &mut Node) {
    if let (Tree::Scalar(Scalar::Boolean(_) | Scalar::Integer(_) | Scalar::Float(_)) | Tree::Date(_), Some(raw)) = (&node.value, &node.raw)
    {
        node.value = Tree::Scalar(Scalar::Text(raw.clone()));
    }
}

/// The value as it may be shown: in short, and not at all where it is secret.
fn shown(node: &Node, path: &str) -> String {
    if is_secret(path) {
        return "(secret)".to_owned();
    }
    let text = match &node.value {
        Tree::Scalar(Scalar::Text(text)) => format!("{text:?}"),
        Tree::Scalar(Scalar::Integer(number)) => number.to_string(),
        Tree::Scalar(Scalar::Float(number)) => number.to_string(),
        Tree::Scalar(Scalar::Boolean(value)) => value.to_string(),
        Tree::Date(date) => date.clone(),
        other => other.kind().to_owned(),
    };
    if text.chars().count() <= 80 { text } else { text.chars().take(79).chain(['…']).collect() }
}

/// `workers.web.listen` is `workers.*.listen`.
fn pattern_of(key: &str) -> String {
    match key.strip_prefix("workers.").and_then(|rest| rest.split_once('.')) {
        Some((_, rest)) => format!("workers.*.{rest}"),
        None => key.to_owned(),
    }
}

fn properties(schema: &Schema) -> Vec<&str> {
    schema.get("properties").and_then(Schema::as_object).map(|map| map.keys().map(String::as_str).collect()).unwrap_or_default()
}

/// The words of an enumeration.
pub fn words(schema: &Schema) -> Option<Vec<&str>> {
    Some(schema.get("enum")?.as_array()?.iter().filter_map(Schema::as_str).collect())
}

/// What may be one value, a word or a unit, or a table: the schema of either.
pub fn value_or_table(schema: &Schema) -> Option<(&Schema, &Schema)> {
    let choices = schema.get("anyOf")?.as_array()?;
    let table = choices.iter().find(|choice| choice.get("properties").is_some())?;
    Some((choices.iter().find(|choice| words(choice).is_some() || choice.get("x-unit").is_some())?, table))
}

/// The shortest and the longest a duration may be.
pub fn range(schema: &Schema) -> Option<(Span, Span)> {
    let bound = |index: usize| {
        let text = schema.get("x-range")?.get(index)?.as_str()?;
        Span::read(&Scalar::Text(text.to_owned())).ok()
    };
    Some((bound(0)?, bound(1)?))
}
