//! What the documentation and the examples show is what the program accepts.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "a test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use palisade_cli::args::Cli;
use palisade_engine::policy::Policy;
use palisade_node::config::Config;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

fn files(folder: &str, ends_with: &str) -> Vec<PathBuf> {
    let paths = fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|p| p.to_str().unwrap().ends_with(ends_with)).collect()
}

/// The fenced blocks of a page whose fence says `language`, without the indentation of the list that they stand in.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut open: Option<(String, String)> = None;
    for line in page.lines() {
        let fence = line.trim_start().strip_prefix("```");
        match (&mut open, fence) {
            (None, Some(of)) => open = Some((of.to_owned(), String::new())),
            (Some((of, text)), Some(_)) => {
                if of == language {
                    found.push(std::mem::take(text));
                }
                open = None;
            }
            (Some((_, text)), None) => {
                text.push_str(line.trim_start());
                text.push('\n');
            }
            (None, None) => {}
        }
    }
    found
}

#[test]
fn example_configurations_are_valid() {
    let examples = files("deploy/examples", ".toml");
    assert!(examples.len() >= 3, "{examples:?}");
    for path in examples {
        let config = Config::load(&path).unwrap_or_else(|e| panic!("{e}: {:?}", e.problems()));
        assert_eq!(config.name, path.file_stem().unwrap().to_str().unwrap());
    }
    let shown = blocks(&read("README.md"), "toml");
    assert_eq!(shown.len(), 1);
    Config::parse("README.md", &shown[0]).unwrap_or_else(|e| panic!("{e}: {:?}", e.problems()));
}

#[test]
fn example_policies_are_valid_and_give_no_warnings() {
    let mut texts: Vec<(String, String)> = files("deploy/examples", ".policy")
        .into_iter()
        .map(|path| (path.display().to_string(), fs::read_to_string(&path).unwrap()))
        .collect();
    for page in ["README.md", "docs/policy.md"] {
        let policies = blocks(&read(page), "").into_iter().filter(|b| b.contains("zone ") && b.contains("accept \""));
        texts.extend(policies.map(|text| (page.to_owned(), text)));
    }
    assert!(texts.len() >= 4, "{texts:?}");
    for (name, text) in texts {
        let policy = Policy::parse(&name, &text).unwrap_or_else(|e| panic!("{}", e.render()));
        let warnings: Vec<_> = policy.warnings().iter().map(ToString::to_string).collect();
        assert!(warnings.is_empty(), "{name}: {warnings:?}");
    }
}

#[test]
fn the_policy_as_json_is_valid() {
    let shown = blocks(&read("docs/policy.md"), "json");
    assert_eq!(shown.len(), 1);
    let _: Policy = serde_json::from_str(&shown[0]).unwrap();
}

#[test]
fn links_between_pages_lead_somewhere() {
    let mut seen = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for rest in text.split("](").skip(1) {
            let target = rest.split([')', '#']).next().unwrap();
            if target.is_empty() || target.starts_with("http") {
                continue;
            }
            seen += 1;
            assert!(page.parent().unwrap().join(target).exists(), "{} links to {target}", page.display());
        }
    }
    assert!(seen > 10);
}

/// The table of `docs/cli.md` has every command.
#[test]
fn the_list_of_commands_is_complete() {
    let page = read("docs/cli.md");
    let table = page.split("\n## ").next().unwrap();
    let rows: Vec<&str> = table.lines().filter_map(|l| l.strip_prefix("| `")).collect();
    let mut known = Vec::new();
    for noun in Cli::command().get_subcommands() {
        let verbs: Vec<_> = noun.get_subcommands().filter(|verb| verb.get_name() != "help").collect();
        match verbs.as_slice() {
            [] => known.push(noun.get_name().to_owned()),
            verbs => known.extend(verbs.iter().map(|verb| format!("{} {}", noun.get_name(), verb.get_name()))),
        }
    }
    for command in &known {
        let shown = |row: &&str| row.split('|').next().unwrap().contains(command.as_str());
        assert!(rows.iter().any(shown), "docs/cli.md lacks `{command}`");
    }
}

/// The unit starts the program that the README installs, with the file that it has written.
#[test]
fn the_systemd_unit_is_what_the_readme_installs() {
    let unit = read("deploy/systemd/palisade.service");
    let start = unit.lines().find_map(|l| l.strip_prefix("ExecStart=")).unwrap();
    let readme = read("README.md");
    for path in start.split(' ').filter(|word| word.starts_with('/')) {
        assert!(readme.contains(path), "the README does not mention {path}");
    }
}

/// All pages for readers: README, ARCHITECTURE, `docs/` and the decisions.
fn pages() -> Vec<PathBuf> {
    let mut pages = vec![root().join("README.md"), root().join("ARCHITECTURE.md")];
    pages.extend(files("docs", ".md"));
    pages.extend(files("docs/decisions", ".md"));
    pages
}

/// All files of the crates' sources, tests and deployment, as paths from the root.
fn sources() -> Vec<String> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            match entry.file_type().unwrap().is_dir() {
                true if entry.file_name() == "target" => {}
                true => walk(&path, found),
                false => found.push(path),
            }
        }
    }
    let mut found = Vec::new();
    for folder in ["engine", "raft-store", "proto", "metrics", "node", "cli", "lab", "tests", "deploy", "docs", ".ci"] {
        walk(&root().join(folder), &mut found);
    }
    found.iter().map(|path| path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned()).collect()
}

/// What stands between backticks on a page, without its code blocks.
fn code_spans(page: &str) -> Vec<String> {
    let mut in_block = false;
    let outside = page.lines().filter(|line| {
        in_block ^= line.trim_start().starts_with("```");
        !in_block
    });
    let spans = |line: &str| line.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    outside.flat_map(spans).collect()
}

#[test]
fn source_files_named_on_pages_exist() {
    let sources = sources();
    let mut seen = 0;
    for page in pages() {
        for span in code_spans(&fs::read_to_string(&page).unwrap()) {
            let path = span.starts_with(|c: char| c.is_ascii_lowercase())
                && span.ends_with(".rs")
                && span.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c));
            if path {
                seen += 1;
                let exists = sources.iter().any(|s| *s == span || s.ends_with(&format!("/{span}")));
                assert!(exists, "{} names {span}, which does not exist", page.display());
            }
        }
    }
    assert!(seen > 50, "{seen}");
}

#[test]
fn tests_named_on_pages_exist() {
    let sources = sources();
    let code: Vec<(&String, String)> = sources.iter().filter(|s| s.ends_with(".rs")).map(|s| (s, read(s))).collect();
    let mut seen = 0;
    for page in pages() {
        for span in code_spans(&fs::read_to_string(&page).unwrap()) {
            let plain = |c: char| c.is_ascii_alphanumeric() || "_:".contains(c);
            let Some((_, last)) = span.rsplit_once("tests::").filter(|_| span.chars().all(plain)) else { continue };
            seen += 1;
            let name = last.rsplit("::").next().unwrap();
            let exists = code
                .iter()
                .any(|(path, text)| path.ends_with(&format!("/{name}.rs")) || text.contains(&format!("fn {name}(")));
            assert!(exists, "{} names the test {span}, which does not exist", page.display());
        }
    }
    assert!(seen > 10, "{seen}");
}

/// `docs/dependencies.md` has a row for each dependency in `Cargo.toml`, and no other row.
#[test]
fn dependencies_each_have_a_row() {
    let page = read("docs/dependencies.md");
    let rows: BTreeSet<&str> =
        page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`').map(|(name, _)| name)).collect();
    let manifest = read("Cargo.toml");
    let table = manifest.split_once("[workspace.dependencies]").unwrap().1.split("\n[").next().unwrap();
    let known: BTreeSet<&str> = table
        .lines()
        .filter_map(|line| line.split_once(" = "))
        .filter(|(name, spec)| !name.starts_with('#') && !spec.contains("path = "))
        .map(|(name, _)| name)
        .collect();
    assert!(known.len() > 40, "{known:?}");
    assert_eq!(rows, known, "left: docs/dependencies.md, right: Cargo.toml");
}

/// `docs/settings.md` has a row for each setting, with its default and the bounds that errors name.
#[test]
fn settings_each_have_a_row() {
    use palisade_engine::replica::SettingKey;
    let page = read("docs/settings.md");
    let rows: Vec<Vec<&str>> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .map(|row| row.trim_end_matches(" |").split(" | ").collect())
        .collect();
    assert_eq!(rows.len(), SettingKey::ALL.len());
    for (row, key) in rows.iter().zip(SettingKey::ALL) {
        let default = format!("`{}`", key.text(key.default()));
        assert_eq!((row[0].trim_end_matches('`'), row[2]), (key.name(), default.as_str()));
        let bounds = key.expected();
        let bounds = bounds.split("from ").nth(1).unwrap().split([',', ' ']).collect::<Vec<_>>();
        assert!(row[1].contains(&format!("{} to {}", bounds[0], bounds[2])), "{}: {bounds:?}", row[1]);
    }
}
