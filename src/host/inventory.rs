//! What kind of place this is.

use std::path::Path;

/// The platform, by what it puts into the environment (`lookup`) or the root folder: the label of
/// `plimsoll_environment_info{platform}`.
pub fn platform(lookup: &dyn Fn(&str) -> Option<String>) -> &'static str {
    let set = |name: &str| lookup(name).is_some_and(|value| !value.is_empty());
    let by_variable = [
        ("RAILWAY_ENVIRONMENT", "railway"),
        ("RAILWAY_PROJECT_ID", "railway"),
        ("RENDER", "render"),
        ("FLY_APP_NAME", "fly"),
        ("KUBERNETES_SERVICE_HOST", "kubernetes"),
    ];
    if let Some((_, platform)) = by_variable.iter().find(|(name, _)| set(name)) {
        return platform;
    }
    if Path::new("/.dockerenv").exists() {
        return "docker";
    }
    if Path::new("/run/.containerenv").exists() || set("container") {
        return "container";
    }
    if set("INVOCATION_ID") { "systemd" } else { "host" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_platform_is_known_by_its_variables() {
        for (name, expected) in [("RENDER", "render"), ("KUBERNETES_SERVICE_HOST", "kubernetes"), ("RAILWAY_PROJECT_ID", "railway")] {
            assert_eq!(platform(&|asked| (asked == name).then(|| "1".to_owned())), expected);
        }
    }
}
