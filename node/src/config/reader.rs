//! Reading TOML with all errors at once: a table hands out its keys one by one, remembers which were asked for, and
//! reports the rest as unknown when it is finished.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use miette::{Diagnostic, NamedSource, SourceSpan};
use palisade_engine::duration::{self, Unit};
use palisade_engine::policy::Prefix;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The units of durations in a `node.toml`.
const DURATION_UNITS: [Unit; 4] = [Unit::Millisecond, Unit::Second, Unit::Minute, Unit::Hour];

/// Everything that is wrong in a `node.toml`.
#[derive(Debug, thiserror::Error, Diagnostic)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{name} cannot be read: {cause}")]
    #[diagnostic(help("check the path and its permissions; docs/config.md describes the file"))]
    Unreadable {
        /// Its name.
        name: String,
        /// Why.
        cause: std::io::Error,
    },
    /// What it says is wrong.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Invalid(Invalid),
}

/// The errors in a file, at least one.
#[derive(Debug, thiserror::Error, Diagnostic)]
#[error("{}: {} {}", text.name(), problems.len(), if problems.len() == 1 { "error" } else { "errors" })]
#[diagnostic(help("docs/config.md lists every key"))]
pub struct Invalid {
    #[source_code]
    text: NamedSource<String>,
    /// Each error, in the order of the file.
    #[related]
    problems: Vec<Problem>,
}

impl ConfigError {
    pub(super) fn new(name: &str, text: &str, mut problems: Vec<Problem>) -> ConfigError {
        for p in &mut problems {
            p.line = 1 + text.as_bytes().iter().take(p.span.offset()).filter(|b| **b == b'\n').count();
        }
        problems.sort_by_key(|p| p.span.offset());
        let text = NamedSource::new(name, text.to_owned()).with_language("TOML");
        ConfigError::Invalid(Invalid { text, problems })
    }

    /// Each error, in the order of the file; none if it could not be read.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        match self {
            ConfigError::Unreadable { .. } => &[],
            ConfigError::Invalid(invalid) => &invalid.problems,
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, Diagnostic)]
pub struct Problem {
    /// The key's full path, such as `datapath.mode`; empty for errors of TOML itself.
    pub path: String,
    /// Its line, from 1.
    pub line: usize,
    /// What was expected.
    pub expected: String,
    /// What was there instead; empty if that says nothing more.
    pub found: String,
    /// What to do.
    #[help]
    pub help: String,
    #[label("here")]
    span: SourceSpan,
}

impl Problem {
    fn new(path: &str, span: Range<usize>, wrong: Wrong) -> Problem {
        Problem {
            path: path.to_owned(),
            line: 0,
            expected: wrong.expected,
            found: wrong.found,
            help: wrong.help,
            span: (span.start, span.end.saturating_sub(span.start)).into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        match self.found.as_str() {
            "" => f.write_str(&self.expected),
            found => write!(f, "expected {}, found {found}", self.expected),
        }
    }
}

impl std::error::Error for Problem {}

/// Why a value does not do: what was expected, what was found, and what to do. With nothing found, the first is all that
/// there is to say.
#[derive(Clone, Debug)]
pub(super) struct Wrong {
    expected: String,
    found: String,
    help: String,
}

impl Wrong {
    pub(super) fn new(expected: &str, found: &str, help: &str) -> Wrong {
        Wrong { expected: expected.to_owned(), found: found.to_owned(), help: help.to_owned() }
    }
}

/// Parses the TOML itself. `None` after syntax errors: what follows from them would only confuse.
pub(super) fn document<'i>(text: &'i str, problems: &mut Vec<Problem>) -> Option<Table<'i>> {
    let (root, errors) = DeTable::parse_recoverable(text);
    for e in &errors {
        let span = e.span().unwrap_or(0..0);
        let found =
            text.get(span.clone()).filter(|s| !s.trim().is_empty()).map_or(String::new(), |s| format!(": `{s}`"));
        let message = format!("this is not TOML: {}{found}", e.message().lines().next().unwrap_or_default());
        problems.push(Problem::new("", span, Wrong::new(&message, "", "see https://toml.io for the syntax")));
    }
    errors.is_empty().then(|| Table::new(String::new(), root))
}

/// A table that is being read.
pub(super) struct Table<'i> {
    path: String,
    span: Range<usize>,
    rest: DeTable<'i>,
    known: Vec<&'static str>,
    spans: Vec<(&'static str, Range<usize>)>,
}

impl<'i> Table<'i> {
    fn new(path: String, table: Spanned<DeTable<'i>>) -> Table<'i> {
        let span = table.span();
        Table { path, span, rest: table.into_inner(), known: Vec::new(), spans: Vec::new() }
    }

    fn path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn take(&mut self, key: &'static str) -> Option<Spanned<DeValue<'i>>> {
        self.known.push(key);
        let (k, value) = self.rest.remove_entry(key)?;
        self.spans.push((key, k.span().start..value.span().end));
        Some(value)
    }

    /// Reports something about a key that has been read, or is missing.
    pub(super) fn problem(&self, problems: &mut Vec<Problem>, key: &str, expected: &str, found: &str, help: &str) {
        let span = self.spans.iter().find(|(k, _)| *k == key).map_or(self.span.clone(), |(_, span)| span.clone());
        problems.push(Problem::new(&self.path(key), span, Wrong::new(expected, found, help)));
    }

    /// A value that may be missing; the outer `None`: it is wrong.
    pub(super) fn optional<T>(
        &mut self,
        problems: &mut Vec<Problem>,
        key: &'static str,
        read: impl FnOnce(Value<'_>) -> Result<T, Wrong>,
    ) -> Option<Option<T>> {
        let Some(value) = self.take(key) else { return Some(None) };
        match read(Value(value.get_ref())) {
            Ok(value) => Some(Some(value)),
            Err(wrong) => {
                problems.push(Problem::new(&self.path(key), value.span(), wrong));
                None
            }
        }
    }

    /// A value with a default.
    pub(super) fn or<T>(
        &mut self,
        problems: &mut Vec<Problem>,
        key: &'static str,
        default: T,
        read: impl FnOnce(Value<'_>) -> Result<T, Wrong>,
    ) -> Option<T> {
        self.optional(problems, key, read).map(|value| value.unwrap_or(default))
    }

    /// A value that must be there.
    pub(super) fn required<T>(
        &mut self,
        problems: &mut Vec<Problem>,
        key: &'static str,
        help: &str,
        read: impl FnOnce(Value<'_>) -> Result<T, Wrong>,
    ) -> Option<T> {
        let value = self.optional(problems, key, read)?;
        if value.is_none() {
            self.problem(problems, key, "it is missing, and has no default", "", help);
        }
        value
    }

    /// A table, empty if missing.
    pub(super) fn table(&mut self, problems: &mut Vec<Problem>, key: &'static str) -> Table<'i> {
        let path = self.path(key);
        let empty =
            |span| Table { path: path.clone(), span, rest: DeTable::new(), known: Vec::new(), spans: Vec::new() };
        let Some(value) = self.take(key) else { return empty(self.span.start..self.span.start) };
        let span = value.span();
        match value.into_inner() {
            DeValue::Table(t) => Table::new(path, Spanned::new(span, t)),
            other => {
                let help = format!("write `[{path}]` on a line of its own, its keys below it");
                let wrong = Wrong::new("a table", &Value(&other).found(), &help);
                problems.push(Problem::new(&path, span.clone(), wrong));
                empty(span)
            }
        }
    }

    /// A list of tables, empty if missing.
    pub(super) fn tables(&mut self, problems: &mut Vec<Problem>, key: &'static str) -> Vec<Table<'i>> {
        let Some(value) = self.take(key) else { return Vec::new() };
        let span = value.span();
        let help = format!("write `[[{key}]]` on a line of its own, its keys below it");
        let mut tables = Vec::new();
        match value.into_inner() {
            DeValue::Array(list) => {
                for (n, item) in list.into_iter().enumerate() {
                    let path = format!("{key}[{n}]");
                    let span = item.span();
                    match item.into_inner() {
                        DeValue::Table(t) => tables.push(Table::new(path, Spanned::new(span, t))),
                        other => {
                            problems.push(Problem::new(
                                &path,
                                span,
                                Wrong::new("a table", &Value(&other).found(), &help),
                            ));
                        }
                    }
                }
            }
            other => {
                problems.push(Problem::new(key, span, Wrong::new("a list of tables", &Value(&other).found(), &help)))
            }
        }
        tables
    }

    /// Reports a key, if it is there, that a setting of the cluster has replaced.
    pub(super) fn moved(&mut self, problems: &mut Vec<Problem>, key: &str, setting: &str) {
        let Some((name, value)) = self.rest.remove_entry(key) else { return };
        let value = match value.get_ref() {
            DeValue::String(text) => text.to_string(),
            other => Value(other).found(),
        };
        let help = format!(
            "remove it here; to change the setting of all members: `palisade cluster settings set {setting}={value}`"
        );
        let wrong = Wrong::new("it moved to the cluster's settings, because all members must do alike", "", &help);
        problems.push(Problem::new(&self.path(key), name.span(), wrong));
    }

    /// Reports what nobody asked for.
    pub(super) fn finish(self, problems: &mut Vec<Problem>) {
        for (key, _) in &self.rest {
            let name = key.get_ref().as_ref();
            let known = self.known.iter().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ");
            let help = match self.known.iter().map(|k| (distance(k, name), k)).min() {
                Some((d, k)) if d <= 2 => format!("did you mean `{k}`? Keys here: {known}"),
                _ => format!("remove it. Keys here: {known}"),
            };
            problems.push(Problem::new(&self.path(name), key.span(), Wrong::new("there is no such key", "", &help)));
        }
    }
}

/// A value that is being read.
#[derive(Clone, Copy)]
pub(super) struct Value<'a>(&'a DeValue<'a>);

impl Value<'_> {
    /// What is there, for the error.
    pub(super) fn found(&self) -> String {
        match self.0 {
            DeValue::String(s) => format!("\"{s}\""),
            DeValue::Integer(i) => i.to_string(),
            DeValue::Boolean(b) => b.to_string(),
            other => format!("a value of type {}", other.type_str()),
        }
    }

    pub(super) fn string(&self) -> Result<String, Wrong> {
        self.0.as_str().map(str::to_owned).ok_or_else(|| Wrong::new("a text", &self.found(), "put it in double quotes"))
    }

    pub(super) fn boolean(&self) -> Result<bool, Wrong> {
        self.0.as_bool().ok_or_else(|| Wrong::new("true or false", &self.found(), "write it without quotes"))
    }

    pub(super) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Result<T, Wrong> {
        let found = self.0.as_str().and_then(|s| choices.iter().find(|(name, _)| *name == s));
        found.map(|(_, value)| *value).ok_or_else(|| {
            let names: Vec<_> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
            Wrong::new(&names.join(" or "), &self.found(), "write one of them, in double quotes")
        })
    }

    pub(super) fn address(&self) -> Result<SocketAddr, Wrong> {
        let wrong = || {
            Wrong::new(
                "an address and port",
                &self.found(),
                "write \"10.9.0.1:7946\" or \"[2001:db8::1]:7946\"; names are not resolved",
            )
        };
        self.0.as_str().and_then(|s| s.parse().ok()).ok_or_else(wrong)
    }

    pub(super) fn count(&self, min: usize, max: usize) -> Result<usize, Wrong> {
        let number = self.0.as_integer().and_then(|i| usize::from_str_radix(i.as_str(), i.radix()).ok());
        number.filter(|n| (min..=max).contains(n)).ok_or_else(|| {
            Wrong::new(&format!("a number from {min} to {max}"), &self.found(), "write a whole number without quotes")
        })
    }

    pub(super) fn duration(&self, min: Duration, max: Duration) -> Result<Duration, Wrong> {
        let duration = self.0.as_str().and_then(|text| duration::parse(text, &DURATION_UNITS).ok());
        duration.filter(|duration| (min..=max).contains(duration)).ok_or_else(|| {
            Wrong::new(
                &format!("a time from {min:?} to {max:?}"),
                &self.found(),
                "write a number and its unit (ms, s, m or h) in quotes: \"250ms\"",
            )
        })
    }

    /// A list of network prefixes.
    pub(super) fn prefixes(&self) -> Result<Vec<(IpAddr, u8)>, Wrong> {
        let list = self.0.as_array();
        let list = list.ok_or_else(|| Wrong::new("a list of prefixes", &self.found(), "write [\"192.0.2.0/24\"]"))?;
        let prefix = |value: Value<'_>| {
            let text = value.string()?;
            let prefix: Prefix = text.parse().map_err(|why: String| Wrong::new("a prefix", &value.found(), &why))?;
            Ok((prefix.address().into(), prefix.length()))
        };
        list.iter().map(|item| prefix(Value(item.get_ref()))).collect()
    }

    pub(super) fn strings(&self, read: impl Fn(Value<'_>) -> Result<String, Wrong>) -> Result<Vec<String>, Wrong> {
        let list =
            self.0.as_array().ok_or_else(|| Wrong::new("a list of texts", &self.found(), "write [\"a\", \"b\"]"))?;
        list.iter().map(|item| read(Value(item.get_ref()))).collect()
    }
}

/// Levenshtein's distance: insertions, deletions and replacements between two keys.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row.first().copied().unwrap_or(0);
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
        for (j, y) in b.bytes().enumerate() {
            let above = row.get(j + 1).copied().unwrap_or(usize::MAX);
            let left = row.get(j).copied().unwrap_or(usize::MAX);
            let best = (diagonal + usize::from(x != y)).min(above.saturating_add(1)).min(left.saturating_add(1));
            diagonal = above;
            if let Some(cell) = row.get_mut(j + 1) {
                *cell = best;
            }
        }
    }
    row.last().copied().unwrap_or(0)
}
