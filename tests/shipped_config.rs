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
