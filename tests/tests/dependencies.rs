//! The rules of `deny.toml`, checked from `cargo metadata`: licences, duplicates, wildcards, sources. `cargo deny` is not on
//! every machine, and takes long to build; advisories, which need its database, are its business alone.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

struct Package {
    name: String,
    version: String,
    licence: String,
    source: Option<String>,
    /// Dependencies by name and requirement; with a path: `None`.
    requirements: Vec<(String, Option<String>)>,
}

/// The packages that are built for the platform of `deny.toml`.
fn packages(target: &str) -> Vec<Package> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut command = Command::new(cargo);
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let output =
        command.args(["metadata", "--locked", "--format-version=1", "--filter-platform", target]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
    let used: BTreeSet<&str> = nodes.iter().map(|node| node["id"].as_str().unwrap()).collect();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = metadata["packages"].as_array().unwrap().iter().filter(|p| used.contains(p["id"].as_str().unwrap()));
    all.map(|p| Package {
        name: text(&p["name"]),
        version: text(&p["version"]),
        licence: text(&p["license"]),
        source: p["source"].as_str().map(str::to_owned),
        requirements: p["dependencies"]
            .as_array()
            .unwrap()
            .iter()
            .map(|d| (text(&d["name"]), d["path"].is_null().then(|| text(&d["req"]))))
            .collect(),
    })
    .collect()
}

fn rules() -> toml::Table {
    include_str!("../../deny.toml").parse().unwrap()
}

fn strings(rules: &toml::Table, section: &str, key: &str) -> Vec<String> {
    rules[section][key].as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned()).collect()
}

/// Whether an SPDX expression can be met with the allowed licences. `AND` binds more tightly than `OR`.
fn is_allowed(expression: &str, allowed: &[String]) -> bool {
    let expression = expression.trim();
    // The form of old manifests.
    let expression = expression.replace('/', " OR ");
    let split = |separator: &str| -> Vec<String> {
        let (mut parts, mut depth, mut rest) = (vec![String::new()], 0, expression.as_str());
        while let Some(c) = rest.chars().next() {
            depth += i32::from(c == '(') - i32::from(c == ')');
            if depth == 0 && rest.starts_with(separator) {
                parts.push(String::new());
                rest = &rest[separator.len()..];
                continue;
            }
            parts.last_mut().unwrap().push(c);
            rest = &rest[c.len_utf8()..];
        }
        parts
    };
    let (any, all) = (split(" OR "), split(" AND "));
    if any.len() > 1 {
        return any.iter().any(|part| is_allowed(part, allowed));
    }
    if all.len() > 1 {
        return all.iter().all(|part| is_allowed(part, allowed));
    }
    match expression.trim().strip_prefix('(').and_then(|e| e.strip_suffix(')')) {
        Some(inner) => is_allowed(inner, allowed),
        None => allowed.iter().any(|licence| licence == expression.trim()),
    }
}

#[test]
fn licence_expression_is_allowed_if_it_can_be_met() {
    let allowed = ["MIT".to_owned(), "Unicode-3.0".to_owned(), "Apache-2.0 WITH LLVM-exception".to_owned()];
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("GPL-3.0 OR MIT", true),
        ("GPL-3.0/MIT", true),
        ("GPL-3.0 AND MIT", false),
        ("(GPL-3.0 OR MIT) AND Unicode-3.0", true),
        ("(GPL-3.0 OR MIT) AND BSD-3-Clause", false),
        ("Apache-2.0 WITH LLVM-exception OR GPL-3.0", true),
        ("", false),
    ] {
        assert_eq!(is_allowed(expression, &allowed), expected, "{expression}");
    }
}

#[test]
fn dependencies_obey_deny_toml() {
    let rules = rules();
    let packages = packages(&strings(&rules, "graph", "targets")[0]);
    assert!(packages.len() > 100, "{} packages", packages.len());
    let mut problems = Vec::new();

    let licences = strings(&rules, "licenses", "allow");
    let registries = strings(&rules, "sources", "allow-registry");
    for package in &packages {
        let Package { name, version, licence, source, requirements } = package;
        if !is_allowed(licence, &licences) {
            problems.push(format!("{name} {version}: the licence `{licence}` is not allowed"));
        }
        if let Some(source) = source
            && !registries.iter().any(|registry| *source == format!("registry+{registry}"))
        {
            problems.push(format!("{name} {version} comes from {source}"));
        }
        let wildcards = requirements.iter().filter(|(_, requirement)| requirement.as_deref() == Some("*"));
        problems
            .extend(wildcards.filter(|_| source.is_none()).map(|(to, _)| format!("{name} takes any version of {to}")));
    }

    let skip = rules["bans"]["skip"].as_array().unwrap();
    assert!(skip.iter().all(|entry| entry["reason"].as_str().is_some_and(|reason| !reason.is_empty())));
    let mut skipped: BTreeSet<&str> = skip.iter().map(|entry| entry["crate"].as_str().unwrap()).collect();
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    packages.iter().for_each(|p| versions.entry(&p.name).or_default().push(&p.version));
    for (name, versions) in versions.into_iter().filter(|(_, versions)| versions.len() > 1) {
        let mut excused = |version: &&str| {
            let rule = skip.iter().filter_map(|entry| entry["crate"].as_str()).find(|rule| {
                rule.split_once('@')
                    .is_some_and(|(n, v)| n == name && format!("{version}.").starts_with(&format!("{v}.")))
            });
            rule.map(|rule| skipped.remove(rule)).is_some()
        };
        let left = versions.iter().filter(|version| !excused(version)).count();
        if left > 1 {
            problems.push(format!("{name} comes in the versions {}", versions.join(", ")));
        }
    }
    problems.extend(skipped.into_iter().map(|rule| format!("deny.toml excuses {rule}, which is no duplicate")));
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}
