//! The effective settings and who said so, for `config show`.

use serde_json::{Map, Value};

use super::load::Loaded;
use super::text::{key_text, toml_text};
use super::tree::{Origin, is_secret, join, locate};

/// One effective setting.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Effective {
    /// The dotted key.
    pub key: String,
    /// As it would be written in the file; `(secret)` where it is one.
    pub value: String,
    /// `built-in`, `plimsoll.toml:12:1`, `environment PLIMSOLL_POLICY__CPU__HIGH`, `--set policy.cpu.high`, `command line`,
    /// or which other key it follows.
    pub origin: String,
}

const HIDDEN: &str = "(secret)";

impl Loaded {
    /// Every setting that holds, in the order of the keys; keys without a value are left out.
    pub fn effective(&self) -> Vec<Effective> {
        let mut list = Vec::new();
        self.visit(&self.written(), "", &mut list);
        list
    }

    /// The effective settings as a JSON value, without secrets.
    pub fn to_json(&self) -> Value {
        hide(self.written(), "")
    }

    /// The effective settings as a TOML file, without secrets; with `origins` each line says where its value came from.
    pub fn to_toml(&self, origins: bool) -> String {
        let mut out = String::new();
        let mut section = String::new();
        for Effective { key, value, origin } in self.effective() {
            let (table, name) = split(&key);
            if table != section {
                let blank = if out.is_empty() { "" } else { "\n" };
                let opening = if table.ends_with(']') {
                    format!("{blank}[[{}]]\n", table.split('[').next().unwrap_or(""))
                } else {
                    format!("{blank}[{table}]\n")
                };
                out.push_str(&opening);
                section = table.to_owned();
            }
            let value = if value == HIDDEN { format!("{HIDDEN:?}") } else { value };
            let comment = if origins { format!("  # {origin}") } else { String::new() };
            out.push_str(&format!("{} = {value}{comment}\n", key_text(name)));
        }
        out
    }

    fn written(&self) -> Value {
        // Plain data with text keys always has a JSON form.
        serde_json::to_value(&self.file).unwrap_or_default()
    }

    fn visit(&self, value: &Value, path: &str, list: &mut Vec<Effective>) {
        match value {
            Value::Object(entries) => {
                // A table's own keys come before its inner tables, as TOML wants it.
                let is_table = |value: &Value| value.is_object() || list_of_tables(value);
                for (key, value) in entries.iter().filter(|(_, value)| !is_table(value)) {
                    self.visit(value, &join(path, key), list);
                }
                for (key, value) in entries.iter().filter(|(_, value)| is_table(value)) {
                    self.visit(value, &join(path, key), list);
                }
            }
            Value::Array(items) if list_of_tables(value) => {
                for (index, item) in items.iter().enumerate() {
                    self.visit(item, &format!("{path}[{index}]"), list);
                }
            }
            Value::Null => {}
            _ => {
                let text = if is_secret(path) { HIDDEN.to_owned() } else { toml_text(value) };
                list.push(Effective { key: path.to_owned(), value: text, origin: self.origin(path) });
            }
        }
    }

    /// Where the value of a key came from.
    pub fn origin(&self, key: &str) -> String {
        if let Some(followed) = self.follows.get(key) {
            return format!("follows {followed}");
        }
        match locate(&self.layers, key) {
            None => "built-in".to_owned(),
            Some((layer, node)) => match &layer.origin {
                Origin::BuiltIn => "built-in".to_owned(),
                origin => origin.place(&node.key_at).to_string(),
            },
        }
    }
}

fn split(key: &str) -> (&str, &str) {
    match key.split_once(".env.") {
        Some((worker, name)) if worker.starts_with("workers.") => (key.get(..worker.len() + 4).unwrap_or(worker), name),
        _ => key.rsplit_once('.').unwrap_or(("", key)),
    }
}

fn list_of_tables(value: &Value) -> bool {
    value.as_array().is_some_and(|items| items.first().is_some_and(Value::is_object))
}

fn hide(value: Value, path: &str) -> Value {
    match value {
        Value::Object(entries) => Value::Object(
            entries
                .into_iter()
                .map(|(key, value)| {
                    let inner = join(path, &key);
                    (key, hide(value, &inner))
                })
                .collect::<Map<_, _>>(),
        ),
        _ if is_secret(path) => Value::from(HIDDEN),
        other => other,
    }
}
