//! The files that ship: the built-in one, the examples and the reference made from the definitions.

use std::path::{Path, PathBuf};

use plimsoll::config::{self, Sources};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(file: Option<&Path>) -> Sources {
    Sources {
        file: file.map(Path::to_path_buf),
        env: vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())],
        working_dir: PathBuf::from("/"),
        ..Sources::default()
    }
}

#[test]
fn the_built_in_file_alone_is_enough() {
    let loaded = config::load(&sources(None)).unwrap_or_else(|problems| panic!("{problems}"));
    let settings = &loaded.settings;
    assert!(settings.workers.is_empty() && settings.policy.disks.is_empty());
    assert!(settings.http.api_key.is_none() && settings.file.is_none());
    assert!(!settings.daemon.state_dir.explicit && !settings.daemon.runtime_dir.explicit);
    assert_eq!(settings.policy.memory.rule.high, config::settings::Line::Share(0.8));
}

#[test]
fn every_example_loads() {
    let folder = root().join("config/examples");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).expect("the examples are there") {
        let path = entry.expect("a readable entry").path();
        let command = if path.ends_with("sidecar.toml") { vec!["/bin/sh".to_owned()] } else { Vec::new() };
        let given = Sources { command, ..sources(Some(&path)) };
        config::load(&given).unwrap_or_else(|problems| panic!("{problems}"));
        seen += 1;
    }
    assert!(seen >= 2, "only {seen} examples");
}

/// What the packages put into /etc/plimsoll: nobody is touched before somebody says so, and what is offered as a comment is right.
#[test]
fn the_file_of_the_packages_loads_as_it_comes_and_with_everything_it_offers() {
    let path = root().join("packaging/plimsoll.toml");
    let loaded = config::load(&sources(Some(&path))).unwrap_or_else(|problems| panic!("{problems}"));
    assert!(loaded.settings.workers.is_empty() && loaded.settings.jobs.is_empty());

    let text = std::fs::read_to_string(&path).expect("a shipped file");
    let folder = tempfile::tempdir().expect("a folder");
    let with_all = folder.path().join("plimsoll.toml");
    std::fs::write(&with_all, config::with_offers(&text)).expect("a writable folder");
    // The application it speaks of is not here.
    let given = Sources { elsewhere: true, ..sources(Some(&with_all)) };
    let loaded = config::load(&given).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!((loaded.settings.workers.len(), loaded.settings.jobs.len()), (2, 1));
}

#[test]
fn the_reference_is_made_from_the_definitions() {
    let path = root().join("docs/configuration.md");
    let made = config::reference();
    if std::env::vars_os().any(|(name, _)| name == "PLIMSOLL_BLESS") {
        std::fs::write(&path, &made).expect("docs/ is writable");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == made, "docs/configuration.md is stale: run PLIMSOLL_BLESS=1 cargo test --test shipped_config");
}

/// The keys of a TOML text that the schema does not know, found without the product's own check.
fn strangers(table: &toml::Table, schema: &serde_json::Value, path: &str, found: &mut Vec<String>) {
    for (key, value) in table {
        let here = format!("{path}.{key}");
        let known = schema
            .get("properties")
            .and_then(|known| known.get(key))
            .or_else(|| schema.get("additionalProperties").filter(|any| any.is_object()));
        match (known, value) {
            (None, _) => found.push(here),
            (Some(schema), toml::Value::Table(inner)) => strangers(inner, schema, &here, found),
            (Some(schema), toml::Value::Array(items)) => {
                for inner in items.iter().filter_map(toml::Value::as_table) {
                    strangers(inner, &schema["items"], &here, found);
                }
            }
            _ => {}
        }
    }
}

#[test]
fn shipped_files_use_only_keys_of_the_schema() {
    let schema = config::schema();
    let read = |name: &str| std::fs::read_to_string(root().join("config/examples").join(name)).expect("a shipped file");
    for text in [config::BUILT_IN.to_owned(), config::example(), read("host.toml"), read("sidecar.toml")] {
        let mut found = Vec::new();
        strangers(&text.parse().expect("TOML"), &schema, "", &mut found);
        assert_eq!(found, Vec::<String>::new());
    }
}

#[test]
fn the_built_in_file_names_every_key() {
    let table: toml::Table = config::example().parse().expect("TOML");
    // What is of use for one kind of job stands in the table of that kind.
    let names = |key: &str| if key.starts_with("jobs.") { config::EXAMPLE_JOBS.to_vec() } else { vec!["web"] };
    let has = |key: &str| names(key).iter().any(|name| has_at(&table, &key.replace('*', name)));
    let missing: Vec<String> = config::keys().into_iter().filter(|key| key != "http.api_key" && !has(key)).collect();
    assert_eq!(missing, Vec::<String>::new());
}

fn has_at(table: &toml::Table, key: &str) -> bool {
    let mut value = toml::Value::Table(table.clone());
    for part in key.replace("[]", "").split('.') {
        let value_of = |value: &toml::Value| match value {
            toml::Value::Array(items) => items.first()?.get(part).cloned(),
            other => other.get(part).cloned(),
        };
        match value_of(&value) {
            Some(inner) => value = inner,
            None => return false,
        }
    }
    true
}

#[test]
fn what_is_commented_out_shows_the_defaults() {
    let schema = config::schema();
    let table: toml::Table = config::example().parse().expect("TOML");
    let worker = table["workers"]["web"].clone();
    let disk = table["policy"]["disks"][0].clone();
    let places = [
        (worker, schema.pointer("/properties/workers/additionalProperties")),
        (disk, schema.pointer("/properties/policy/properties/disks/items")),
    ];
    let jobs = schema.pointer("/properties/jobs/additionalProperties");
    let mut compared = 0;
    for name in config::EXAMPLE_JOBS {
        let written = serde_json::to_value(table["jobs"][name].clone()).expect("plain data");
        // Each shows what is of use for its kind; `after` and `schedule` depend on that.
        let mut defined = jobs.expect("in the schema").clone();
        defined["properties"].as_object_mut().expect("a table").retain(|key, _| written.get(key).is_some() && key != "kind");
        compare(&written, &defined, &mut compared);
    }
    for (written, defined) in places {
        compare(&serde_json::to_value(written).expect("plain data"), defined.expect("in the schema"), &mut compared);
    }
    assert!(compared > 20, "only {compared} defaults were compared");
}

fn compare(written: &serde_json::Value, schema: &serde_json::Value, compared: &mut usize) {
    let Some(properties) = schema["properties"].as_object() else { return };
    for (key, property) in properties {
        if property.get("properties").is_some() {
            compare(&written[key], property, compared);
        } else if let Some(default) = property.get("default").filter(|_| key != "env") {
            assert_eq!(&written[key], default, "{key}");
            *compared += 1;
        }
    }
}

#[test]
fn every_key_is_described_and_the_schema_has_no_null() {
    fn visit(schema: &serde_json::Value, path: &str) {
        assert!(path.is_empty() || schema["description"].as_str().is_some_and(|text| text.ends_with('.')), "{path} is not described");
        for (key, inner) in schema["properties"].as_object().into_iter().flatten() {
            visit(inner, &format!("{path}.{key}"));
        }
        for inner in ["items", "additionalProperties"] {
            if schema[inner].get("properties").is_some() {
                visit(&schema[inner], &format!("{path}.*"));
            }
        }
    }
    let schema = config::schema();
    visit(&schema, "");
    let text = schema.to_string();
    assert!(!text.contains("\"null\"") && !text.contains("$ref"), "editors of TOML know neither null nor references");
    assert_eq!(schema["properties"]["policy"]["properties"]["memory"]["properties"]["critical"]["default"], "92%");
}
