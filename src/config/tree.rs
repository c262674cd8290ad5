//! A TOML text as a tree that remembers where each key and value stood, and the layers such trees come from.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use super::problems::{Place, Problem};
use super::units::Scalar;

/// A value and where it was written.
#[derive(Clone, Debug)]
pub struct Node {
    pub value: Tree,
    /// The bytes of the value in its text; empty for what did not come from a text.
    pub at: Range<usize>,
    /// The bytes of its key.
    pub key_at: Range<usize>,
    /// What was given, before it was taken for a TOML value; only outside files.
    pub raw: Option<String>,
    /// Its number in its list as written; refused items are taken out, so it may stand further to the front by now.
    pub index: usize,
}

#[derive(Clone, Debug)]
pub enum Tree {
    Scalar(Scalar),
    /// TOML has dates; no setting does.
    Date(String),
    Array(Vec<Node>),
    Table(BTreeMap<String, Node>),
}

impl Tree {
    /// What it is, for "… where … was expected".
    pub fn kind(&self) -> &'static str {
        match self {
            Tree::Scalar(Scalar::Boolean(_)) => "a boolean",
            Tree::Scalar(Scalar::Integer(_)) => "a whole number",
            Tree::Scalar(Scalar::Float(_)) => "a number",
            Tree::Scalar(Scalar::Text(_)) => "text",
            Tree::Date(_) => "a date",
            Tree::Array(_) => "a list",
            Tree::Table(_) => "a table",
        }
    }
}

impl Node {
    pub fn new(value: Tree) -> Self {
        Node { value, at: 0..0, key_at: 0..0, raw: None, index: 0 }
    }

    /// Wraps the node into the tables of a dotted key: `policy.cpu` around `high = …`.
    pub fn under(self, keys: &[String]) -> Node {
        keys.iter().rev().fold(self, |inner, key| Node::new(Tree::Table(BTreeMap::from([(key.clone(), inner)]))))
    }

    fn from_toml(value: &toml::Spanned<DeValue<'_>>, key_at: Range<usize>) -> Node {
        let tree = match value.get_ref() {
            DeValue::String(text) => Tree::Scalar(Scalar::Text(text.to_string())),
            DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => Tree::Scalar(Scalar::Integer(number)),
                // Too long for an integer: as a float it is refused for its size, with its place.
                Err(_) => Tree::Scalar(Scalar::Float(f64::MAX)),
            },
            DeValue::Float(number) => Tree::Scalar(Scalar::Float(number.as_str().parse().unwrap_or(f64::NAN))),
            DeValue::Boolean(value) => Tree::Scalar(Scalar::Boolean(*value)),
            DeValue::Datetime(date) => Tree::Date(date.to_string()),
            DeValue::Array(items) => Tree::Array(numbered(items.iter().map(|item| Node::from_toml(item, item.span())))),
            DeValue::Table(table) => Tree::Table(Node::entries(table)),
        };
        Node { value: tree, at: value.span(), key_at, raw: None, index: 0 }
    }

    fn entries(table: &DeTable<'_>) -> BTreeMap<String, Node> {
        table.iter().map(|(key, value)| (key.get_ref().to_string(), Node::from_toml(value, key.span()))).collect()
    }

    /// One value given outside a file: as TOML when it reads as TOML, else as the text it is.
    pub fn from_text(raw: &str) -> Node {
        let value = match DeValue::parse(raw) {
            Ok(value) => Node::from_toml(&value, 0..0).value,
            Err(_) => Tree::Scalar(Scalar::Text(raw.to_owned())),
        };
        Node { value, at: 0..0, key_at: 0..0, raw: Some(raw.to_owned()), index: 0 }
    }
}

/// Items with their numbers.
pub fn numbered(items: impl Iterator<Item = Node>) -> Vec<Node> {
    items.enumerate().map(|(index, item)| Node { index, ..item }).collect()
}

/// The text of a file, its name for people, and the parts of it that are nobody's business.
#[derive(Debug)]
pub struct Source {
    pub name: String,
    pub text: String,
    /// Bytes that are never shown: the values of workers' variables and whatever was meant as a key.
    pub secret: Vec<Range<usize>>,
}

impl Source {
    /// Reads a text; every mistake of syntax in it is a problem.
    pub fn parse(name: &str, text: String) -> (Arc<Source>, Node, Vec<Problem>) {
        let (table, errors) = DeTable::parse_recoverable(&text);
        let root = Node { value: Tree::Table(Node::entries(table.get_ref())), at: 0..0, key_at: 0..0, raw: None, index: 0 };
        let mut mistakes: Vec<(Range<usize>, String)> =
            errors.iter().map(|error| (error.span().unwrap_or(0..0), error.message().trim().replace('\n', "; "))).collect();
        drop(table);
        mistakes.sort_by_key(|(span, _)| span.start);
        let mut secret = Vec::new();
        collect_secrets(&root, "", &mut secret);
        let source = Arc::new(Source { name: name.to_owned(), text, secret });
        let origin = Origin::File(Arc::clone(&source));
        let mut problems: Vec<Problem> = Vec::new();
        let mut last: Option<usize> = None;
        for (span, message) in mistakes {
            // One slip often trips the parser several times on the same line.
            let same_line = last.and_then(|last| source.text.get(last..span.start)).is_some_and(|between| !between.contains('\n'));
            last = Some(span.start);
            if !same_line {
                problems.push(Problem { key: String::new(), place: origin.place(&span), message, allowed: None, suggestion: None });
            }
        }
        (source, root, problems)
    }
}

fn collect_secrets(node: &Node, path: &str, secret: &mut Vec<Range<usize>>) {
    match &node.value {
        // The names of variables may be seen.
        Tree::Table(entries) => {
            for (name, entry) in entries {
                collect_secrets(entry, &join(path, name), secret);
            }
        }
        _ if is_secret(path) => secret.push(node.at.clone()),
        _ => {}
    }
}

/// True for keys whose values are never shown: the API key and the variables of workers.
pub fn is_secret(path: &str) -> bool {
    let mut keys = path.split('.');
    let first = [keys.next(), keys.next(), keys.next()];
    matches!(first, [Some("http"), Some("api_key"), None] | [Some("workers"), Some(_), Some("env")])
}

/// A key below a dotted path.
pub fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// Who gave a value.
#[derive(Clone, Debug)]
pub enum Origin {
    BuiltIn,
    File(Arc<Source>),
    /// A variable of the environment, by its name.
    Variable(String),
    /// A `--set` argument, by its key.
    Argument(String),
    /// The command after `--`.
    Command,
}

impl Origin {
    /// Where bytes `at` of this origin are, for people.
    pub fn place(&self, at: &Range<usize>) -> Place {
        match self {
            Origin::BuiltIn => Place::Nowhere,
            Origin::File(source) => Place::in_text(source, at),
            Origin::Variable(name) => Place::Variable(name.clone()),
            Origin::Argument(key) => Place::Argument(key.clone()),
            Origin::Command => Place::Command,
        }
    }

    pub fn is_file(&self) -> bool {
        matches!(self, Origin::File(_) | Origin::BuiltIn)
    }
}

/// One source of settings. Later layers win, key by key; a list wins as a whole.
#[derive(Clone, Debug)]
pub struct Layer {
    pub origin: Origin,
    pub root: Node,
}

enum Found<'a> {
    Node(&'a Node),
    /// Nothing here; an earlier layer may have it.
    Absent,
    /// This layer's own list stands in the way of all earlier ones.
    Hidden,
}

/// The keys of a dotted path, each with the number of the item meant below it. A variable's name is one key, whatever is in it.
fn steps(path: &str) -> Vec<(&str, Option<usize>)> {
    let mut steps = Vec::new();
    let mut rest = Some(path);
    while let Some(path) = rest {
        if matches!(steps.as_slice(), [("workers", None), (_, None), ("env", None)]) {
            steps.push((path, None));
            break;
        }
        let (step, after) = path.split_once('.').map_or((path, None), |(step, after)| (step, Some(after)));
        steps.push(match step.strip_suffix(']').and_then(|step| step.split_once('[')) {
            Some((key, index)) => (key, index.parse().ok()),
            None => (step, None),
        });
        rest = after;
    }
    steps
}

fn find<'a>(root: &'a Node, path: &str) -> Found<'a> {
    let mut node = root;
    let mut in_list = false;
    for (key, index) in steps(path) {
        let Tree::Table(entries) = &node.value else { return Found::Hidden };
        let Some(entry) = entries.get(key) else { return if in_list { Found::Hidden } else { Found::Absent } };
        node = entry;
        if let Some(index) = index {
            let Tree::Array(items) = &node.value else { return Found::Hidden };
            let Some(item) = items.iter().find(|item| item.index == index) else { return Found::Hidden };
            node = item;
            in_list = true;
        }
    }
    Found::Node(node)
}

/// The layer that decides `path` and its node there.
pub fn locate<'a>(layers: &'a [Layer], path: &str) -> Option<(&'a Layer, &'a Node)> {
    for layer in layers.iter().rev() {
        match find(&layer.root, path) {
            Found::Node(node) => return Some((layer, node)),
            Found::Absent => {}
            Found::Hidden => return None,
        }
    }
    None
}

impl figment::Provider for Layer {
    fn metadata(&self) -> figment::Metadata {
        figment::Metadata::named(match &self.origin {
            Origin::BuiltIn => "built-in".to_owned(),
            Origin::File(source) => source.name.clone(),
            Origin::Variable(name) => format!("environment {name}"),
            Origin::Argument(key) => format!("--set {key}"),
            Origin::Command => "command line".to_owned(),
        })
    }

    fn data(&self) -> Result<figment::value::Map<figment::Profile, figment::value::Dict>, figment::Error> {
        let dict = match &self.root.value {
            Tree::Table(entries) => entries.iter().map(|(key, node)| (key.clone(), to_figment(node))).collect(),
            _ => figment::value::Dict::new(),
        };
        Ok(figment::value::Map::from([(figment::Profile::Default, dict)]))
    }
}

fn to_figment(node: &Node) -> figment::value::Value {
    use figment::value::Value;
    match &node.value {
        Tree::Scalar(Scalar::Boolean(value)) => Value::from(*value),
        Tree::Scalar(Scalar::Integer(value)) => Value::from(*value),
        Tree::Scalar(Scalar::Float(value)) => Value::from(*value),
        Tree::Scalar(Scalar::Text(value)) | Tree::Date(value) => Value::from(value.as_str()),
        Tree::Array(items) => Value::from(items.iter().map(to_figment).collect::<Vec<_>>()),
        Tree::Table(entries) => {
            Value::from(entries.iter().map(|(key, node)| (key.clone(), to_figment(node))).collect::<figment::value::Dict>())
        }
    }
}

/// Where a key stands in its text, as a byte offset.
pub fn position(root: &Node, path: &str) -> Option<usize> {
    match find(root, path) {
        Found::Node(node) => Some(node.key_at.start),
        _ => None,
    }
}
