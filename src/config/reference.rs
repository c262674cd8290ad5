//! The schema of the file, and the reference made from it.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value as Schema};

use super::file::File;
use super::layers::{ALIASES, BUILT_IN};
use super::shape::{range, value_or_table, words};
use super::tree::{Node, Source, Tree, join};
use super::units::Scalar;

/// The JSON Schema of the settings file, for editors: draft 7 without references, which is what TOML editors understand.
pub fn schema() -> Schema {
    let mut schema = definition();
    // Only ever in the environment, so no editor should offer it.
    if let Some(Schema::Object(http)) = schema.pointer_mut("/properties/http/properties") {
        http.remove("api_key");
    }
    schema
}

/// Everything that can be set, wherever: the schema the layers are checked against.
pub(super) fn definition() -> Schema {
    let settings = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<File>().to_value();
    tidy(&mut schema);
    let (_, built_in, _) = Source::parse("built-in", BUILT_IN.to_owned());
    fill_defaults(&mut schema, &built_in);
    if let Some(map) = schema.as_object_mut() {
        map.insert("title".to_owned(), Schema::from("Plimsoll settings"));
    }
    schema
}

/// TOML has no null, every key has a default, and line breaks of the source are not part of a description.
fn tidy(schema: &mut Schema) {
    match schema {
        Schema::Object(map) => {
            // Asked for by type, because a property may have such a name too: `log.format`.
            for (word, goes) in
                [("required", Schema::is_array as fn(&Schema) -> bool), ("default", Schema::is_null), ("format", Schema::is_string)]
            {
                if map.get(word).is_some_and(goes) {
                    map.remove(word);
                }
            }
            if let Some(words) = map.get("oneOf").and_then(constants) {
                map.remove("oneOf");
                map.insert("type".to_owned(), Schema::from("string"));
                map.insert("enum".to_owned(), Schema::from(words));
            }
            if let Some(Schema::Array(types)) = map.get_mut("type") {
                types.retain(|name| name != "null");
                if let [only] = types.as_slice() {
                    let only = only.clone();
                    map.insert("type".to_owned(), only);
                }
            }
            if let Some(Schema::String(text)) = map.get_mut("description") {
                *text = text.split_whitespace().collect::<Vec<_>>().join(" ");
            }
            map.values_mut().for_each(tidy);
        }
        Schema::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}

/// The words of an enumeration some of whose variants have a description; `auto` first, as the one to begin with.
fn constants(variants: &Schema) -> Option<Vec<String>> {
    let mut words = Vec::new();
    for variant in variants.as_array()? {
        match (variant.get("const"), variant.get("enum").and_then(Schema::as_array)) {
            (Some(word), _) => words.push(word.as_str()?.to_owned()),
            (None, Some(list)) => words.extend(list.iter().filter_map(Schema::as_str).map(str::to_owned)),
            (None, None) => return None,
        }
    }
    words.sort_by_key(|word| word != "auto");
    Some(words)
}

/// Defaults of the sections are what the built-in file says.
fn fill_defaults(schema: &mut Schema, node: &Node) {
    let Tree::Table(entries) = &node.value else { return };
    for (key, entry) in entries {
        let Some(property) = schema.get_mut("properties").and_then(|properties| properties.get_mut(key)) else { continue };
        if matches!(entry.value, Tree::Table(_)) {
            fill_defaults(property, entry);
        } else if let Some(map) = property.as_object_mut() {
            map.insert("default".to_owned(), to_json(entry));
        }
    }
}

fn to_json(node: &Node) -> Schema {
    match &node.value {
        Tree::Scalar(Scalar::Boolean(value)) => Schema::from(*value),
        Tree::Scalar(Scalar::Integer(value)) => Schema::from(*value),
        Tree::Scalar(Scalar::Float(value)) => Schema::from(*value),
        Tree::Scalar(Scalar::Text(value)) | Tree::Date(value) => Schema::from(value.as_str()),
        Tree::Array(items) => items.iter().map(to_json).collect(),
        Tree::Table(entries) => Schema::Object(entries.iter().map(|(key, node)| (key.clone(), to_json(node))).collect()),
    }
}

/// Every key there is, as `policy.disks[].path` and `workers.*.command`, in the order of the built-in file.
pub fn keys() -> Vec<String> {
    let schema = definition();
    let mut keys = Vec::new();
    leaves(&schema, "", &order(), &mut |key, _| keys.push(key.to_owned()));
    keys
}

/// The built-in file with everything taken in: keys are listed in its order.
fn order() -> Node {
    Source::parse("example", example()).1
}

fn leaves<'a>(schema: &'a Schema, path: &str, order: &Node, visit: &mut impl FnMut(&str, &'a Schema)) {
    let item = schema.get("items").filter(|items| items.get("properties").is_some());
    let any = schema.get("additionalProperties").filter(|any| any.get("properties").is_some());
    if let Some(item) = item {
        leaves(item, &format!("{path}[]"), order, visit);
    } else if let Some(any) = any {
        leaves(any, &join(path, "*"), order, visit);
    } else if let Some(properties) = schema.get("properties").and_then(Schema::as_object) {
        for (key, inner) in ordered(properties, path, order) {
            leaves(inner, &join(path, key), order, visit);
        }
    } else {
        visit(path, schema);
    }
}

/// The jobs of the built-in file.
pub const EXAMPLE_JOBS: [&str; 3] = ["audio-cleanup", "session-cleanup", "backup"];

/// In the order the built-in file introduces them; what it does not name comes last.
fn ordered<'a>(properties: &'a Map<String, Schema>, path: &str, order: &Node) -> Vec<(&'a String, &'a Schema)> {
    // Each kind of job has a table of its own there, with what is of use for it.
    let names: &[&str] = if path.starts_with("jobs.") { &EXAMPLE_JOBS } else { &["web"] };
    let paths: Vec<String> = names.iter().map(|name| path.replace("[]", "[0]").replace('*', name)).collect();
    let place = |key: &str| paths.iter().find_map(|path| super::tree::position(order, &join(path, key))).unwrap_or(usize::MAX);
    let mut list: Vec<(&String, &Schema)> = properties.iter().collect();
    list.sort_by_key(|(key, _)| place(key));
    list
}

/// The built-in file with every key that is commented out taken in.
pub fn example() -> String {
    with_offers(BUILT_IN)
}

/// A file with every key and table taken in that it offers as a comment: those have the `#` at once, words a space after it.
pub fn with_offers(text: &str) -> String {
    text.lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => rest,
            _ => line,
        })
        .collect::<Vec<_>>()
        .join("\n")
}

/// One table of the file.
#[derive(Clone, Debug)]
pub struct Section {
    /// As it is written: `[policy.memory]`, `[[policy.disks]]`.
    pub title: String,
    pub description: String,
    pub keys: Vec<Key>,
}

/// One key of a table; code in its texts stands between backticks.
#[derive(Clone, Debug)]
pub struct Key {
    pub name: String,
    /// As TOML, where there is one.
    pub default: Option<String>,
    pub allowed: String,
    pub description: String,
}

/// Every table with its keys, in the order of the built-in file.
pub fn sections() -> Vec<Section> {
    let schema = definition();
    let mut sections: Vec<Section> = Vec::new();
    let mut table_of_last: Option<String> = None;
    // Values that may be a table have sections of their own, after the one they stand in.
    let mut tables = Vec::new();
    let last_part = |path: &str| path.rsplit_once('.').map_or(path, |(_, name)| name).to_owned();
    leaves(&schema, "", &order(), &mut |path, leaf| {
        let table = path.rsplit_once('.').map_or("", |(table, _)| table);
        if table_of_last.as_deref() != Some(table) {
            sections.append(&mut tables);
            sections.push(section(table, &schema));
            table_of_last = Some(table.to_owned());
        }
        if let Some(section) = sections.last_mut() {
            section.keys.push(key(last_part(path), leaf));
        }
        if let Some((_, inner)) = value_or_table(leaf) {
            let mut own = section(path, &schema);
            leaves(inner, path, &order(), &mut |path, leaf| {
                own.keys.push(key(last_part(path), leaf));
            });
            tables.push(own);
        }
    });
    sections.append(&mut tables);
    sections
}

/// `docs/configuration.md`.
pub fn reference() -> String {
    let mut out = String::from(HEAD);
    for section in sections() {
        out.push_str(&format!("\n## `{}`\n\n{}\n\n| key | default | allowed | |\n|---|---|---|---|\n", section.title, section.description));
        section.keys.iter().for_each(|key| out.push_str(&row(key)));
    }
    out.push_str(ENVIRONMENT);
    for (name, meaning) in ALIASES {
        out.push_str(&format!("| `{name}` | {meaning} |\n"));
    }
    out
}

/// What stands above the tables, as Markdown.
pub const HEAD: &str = "# Settings

<!-- Made from src/config/file.rs and config/plimsoll.toml. To change it, change those and run
     PLIMSOLL_BLESS=1 cargo test --test shipped_config -->

One TOML file, of which only what differs from the defaults needs to be written. Layers, later ones win key by key:

1. the built-in file, [config/plimsoll.toml](../config/plimsoll.toml): every key at its default, explained;
2. the file named with `-c`, else by `PLIMSOLL_CONFIG`, else `./plimsoll.toml`, else `/etc/plimsoll/plimsoll.toml`;
3. the plain names in the environment at the end of this page;
4. `PLIMSOLL_SECTION__KEY` in the environment: `PLIMSOLL_POLICY__MEMORY__HIGH=75%`, `PLIMSOLL_WORKERS__WEB__REPLICAS=2`. Lists are
   written with commas or as in TOML;
5. `--set policy.memory.high=75%`.

Unknown keys and values that do not fit are errors. `plimsoll check` names all of them with file, line and column; `plimsoll run` refuses
to start (exit code 78), and a reload leaves the old settings running. `plimsoll config show --origin` shows what holds and who said so.
`plimsoll config schema` prints the JSON Schema for editors.

A relative path in a file or a variable starts in the folder the daemon was started in.
";

const ENVIRONMENT: &str = "
## Plain names in the environment

Applications of the kind looked after here already have these; they count below the `PLIMSOLL_…` names.

| variable | means |
|---|---|
";

fn section(table: &str, schema: &Schema) -> Section {
    let title = match table.strip_suffix("[]") {
        Some(table) => format!("[[{table}]]"),
        None => format!("[{}]", table.replace('*', "NAME")),
    };
    let mut inner = Some(schema);
    for part in table.split('.') {
        inner = inner.and_then(|schema| {
            let (name, list) = part.strip_suffix("[]").map_or((part, false), |name| (name, true));
            let found = if name == "*" { schema.get("additionalProperties") } else { schema.get("properties")?.get(name) };
            let found = if list { found?.get("items") } else { found };
            found.map(|found| value_or_table(found).map_or(found, |(_, table)| table))
        });
    }
    let description = inner.and_then(|schema| schema.get("description")).and_then(Schema::as_str).unwrap_or("").to_owned();
    Section { title, description, keys: Vec::new() }
}

fn key(name: String, schema: &Schema) -> Key {
    Key {
        name,
        default: schema.get("default").map(super::text::toml_text),
        allowed: allowed(schema),
        description: schema.get("description").and_then(Schema::as_str).unwrap_or("").to_owned(),
    }
}

fn row(key: &Key) -> String {
    let cell = |text: &str| text.replace('|', "\\|");
    let default = key.default.as_ref().map_or("–".to_owned(), |default| format!("`{default}`"));
    format!("| `{}` | {} | {} | {} |\n", key.name, cell(&default), cell(&key.allowed), cell(&key.description))
}

fn allowed(schema: &Schema) -> String {
    if let Some((least, most)) = range(schema) {
        let never = if schema.get("x-unit").and_then(Schema::as_str) == Some("every") { ", or `\"never\"`" } else { "" };
        return format!("a duration, `{least}` to `{most}`{never}");
    }
    if let Some(allowed) = schema.get("x-allowed").and_then(Schema::as_str) {
        return allowed.to_owned();
    }
    let listed = |words: &[&str]| words.iter().map(|word| format!("`\"{word}\"`")).collect::<Vec<_>>().join(", ");
    if let Some(words) = words(schema) {
        return listed(&words);
    }
    if let Some((value, _)) = value_or_table(schema) {
        return format!("{}, or a table with the keys below", allowed(value));
    }
    match schema.get("type").and_then(Schema::as_str) {
        Some("boolean") => "`true`, `false`".to_owned(),
        Some("integer") => {
            let bound = |name: &str| schema.get(name).and_then(Schema::as_i64);
            format!("a whole number, {} to {}", bound("minimum").unwrap_or(0), bound("maximum").unwrap_or(i64::from(i32::MAX)))
        }
        Some("array") => match schema.get("items") {
            Some(items) => format!("a list of {}", allowed(items)),
            None => "a list".to_owned(),
        },
        Some("object") => "a table of names and values".to_owned(),
        _ => "text".to_owned(),
    }
}
