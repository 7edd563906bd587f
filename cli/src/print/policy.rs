//! What `palisade policy` prints.

use palisade_engine::Level;
use palisade_engine::policy::Policy;
use palisade_proto::admin::v1;
use serde::Serialize;

use super::{Table, answer, date, many};
use crate::args::Output;
use crate::exit::Failure;

#[derive(Serialize)]
struct Checked<'a> {
    valid: bool,
    zones: &'a [String],
    rules: usize,
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    zones_without_interface: Option<&'a [String]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    zones_not_named: Option<&'a [String]>,
    /// The lowest one that has what it uses.
    level: u16,
}

/// A valid policy; `online`: what the member says of it.
///
/// # Errors
/// Standard output cannot be written.
pub fn checked(
    output: Output,
    name: &str,
    policy: &Policy,
    level: Level,
    online: Option<&v1::PolicyCheckResponse>,
) -> Result<(), Failure> {
    let json = || Checked {
        valid: true,
        zones: policy.zones(),
        rules: policy.rules().len(),
        warnings: warnings(policy),
        zones_without_interface: online.map(|o| o.zones_without_interface.as_slice()),
        zones_not_named: online.map(|o| o.zones_not_named.as_slice()),
        level: level.0,
    };
    answer(output, json, |out| {
        let zones = match policy.zones() {
            [] => "no zones".to_owned(),
            zones => format!("zones: {}", zones.join(", ")),
        };
        writeln!(out, "{name}: valid ({}; {zones})", many(policy.rules().len() as u64, "rule"))?;
        warnings(policy).iter().try_for_each(|w| writeln!(out, "  warning: {w}"))?;
        if level > Level::LOWEST {
            writeln!(out, "  note: it can be applied from level {level} on: see `palisade cluster level show`")?;
        }
        let Some(online) = online else { return Ok(()) };
        for zone in &online.zones_without_interface {
            writeln!(out, "  note: no interface of any member is in zone {zone}")?;
        }
        for zone in &online.zones_not_named {
            writeln!(
                out,
                "  note: the policy does not name this member's zone {zone}: only rules with `any` match it"
            )?;
        }
        Ok(())
    })
}

#[derive(Serialize)]
struct Applied<'a> {
    generation: u64,
    changed: bool,
    warnings: Vec<String>,
    /// Members that had not compiled it.
    without: &'a [String],
}

fn warnings(policy: &Policy) -> Vec<String> {
    policy.warnings().iter().map(ToString::to_string).collect()
}

/// After `apply`.
///
/// # Errors
/// Standard output cannot be written.
pub fn applied(output: Output, policy: &Policy, answered: &v1::PolicyApplyResponse) -> Result<(), Failure> {
    let generation = answered.generation;
    let (changed, without) = (!answered.unchanged, answered.without.as_slice());
    let json = || Applied { generation, changed, warnings: warnings(policy), without };
    answer(output, json, |out| {
        match answered.unchanged {
            true => writeln!(out, "generation {generation} is this policy already: nothing to do")?,
            false => writeln!(out, "generation {generation} is in force")?,
        }
        for name in without {
            writeln!(
                out,
                "  note: {name} had not compiled it: it opens nothing until it has, and passes nothing once its grace is over"
            )?;
        }
        warnings(policy).iter().try_for_each(|w| writeln!(out, "  warning: {w}"))
    })
}

#[derive(Serialize)]
struct Record<'a> {
    generation: u64,
    author: &'a str,
    time: String,
    unix_ms: u64,
    /// Members that had not compiled it when it came into force.
    without: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    canonical: Option<String>,
    /// The same for machines; `apply` takes it as a file that ends in `.json`.
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<Policy>,
}

impl<'a> Record<'a> {
    fn new(r: &'a v1::PolicyRecord, text: Option<&'a str>) -> Record<'a> {
        let policy = text.and_then(|t| Policy::parse("policy", t).ok());
        let canonical = policy.as_ref().map(Policy::to_string);
        let time = date(r.unix_ms);
        let (generation, author, unix_ms, without) = (r.generation, r.author.as_str(), r.unix_ms, r.without.as_slice());
        Record { generation, author, time, unix_ms, without, text, canonical, policy }
    }
}

/// The canonical form of a policy that is or was in force.
fn canonical(text: &str) -> String {
    Policy::parse("policy", text).map_or_else(|_| text.to_owned(), |policy| policy.to_string())
}

/// A policy: for people its text alone, as it was applied or in its canonical form; `apply` takes it again.
///
/// # Errors
/// Standard output cannot be written.
pub fn show(output: Output, answered: &v1::PolicyShowResponse, in_canonical_form: bool) -> Result<(), Failure> {
    let record = answered.policy.clone().unwrap_or_default();
    answer(
        output,
        || Record::new(&record, Some(&answered.text)),
        |out| match in_canonical_form {
            true => out.write_all(canonical(&answered.text).as_bytes()),
            false => out.write_all(answered.text.as_bytes()),
        },
    )
}

#[derive(Serialize)]
struct Hits<'a> {
    generation: u64,
    rules: Vec<RuleHits<'a>>,
    missing_members: &'a [String],
}

#[derive(Serialize)]
struct RuleHits<'a> {
    rule: u32,
    name: &'a str,
    text: &'a str,
    hits: u64,
    last: Option<String>,
    last_unix_ms: Option<u64>,
}

/// How often each rule decided, and when last.
///
/// # Errors
/// Standard output cannot be written.
pub fn hits(output: Output, answered: &v1::PolicyHitsResponse) -> Result<(), Failure> {
    let json = || Hits {
        generation: answered.generation,
        rules: (answered.rules.iter())
            .map(|r| RuleHits {
                rule: r.rule,
                name: &r.name,
                text: &r.text,
                hits: r.hits,
                last: r.last_unix_ms.map(date),
                last_unix_ms: r.last_unix_ms,
            })
            .collect(),
        missing_members: &answered.missing_members,
    };
    answer(output, json, |out| {
        let mut table = Table::new(&["HITS", "LAST", "RULE"]);
        for r in &answered.rules {
            table.row([r.hits.to_string(), r.last_unix_ms.map_or_else(|| "-".to_owned(), date), r.text.clone()]);
        }
        table.write(out)?;
        match answered.missing_members.as_slice() {
            [] => Ok(()),
            missing => writeln!(out, "(without {})", missing.join(", ")),
        }
    })
}

/// The last policies.
///
/// # Errors
/// Standard output cannot be written.
pub fn history(output: Output, records: &[v1::PolicyRecord]) -> Result<(), Failure> {
    let json = || records.iter().map(|r| Record::new(r, None)).collect::<Vec<_>>();
    answer(output, json, |out| {
        let mut table = Table::new(&["GENERATION", "TIME", "AUTHOR", ""]);
        for (n, r) in records.iter().enumerate() {
            let note = if n + 1 == records.len() { "(in force)" } else { "" };
            let time = if r.unix_ms == 0 { "-".to_owned() } else { date(r.unix_ms) };
            table.row([r.generation.to_string(), time, r.author.clone(), note.to_owned()]);
        }
        table.write(out)
    })
}

#[derive(Serialize)]
struct Diff<'a> {
    generation: u64,
    same: bool,
    lines: Vec<DiffLine<'a>>,
}

#[derive(Serialize)]
struct DiffLine<'a> {
    change: &'static str,
    text: &'a str,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Line<'a> {
    Same(&'a str),
    Removed(&'a str),
    Added(&'a str),
}

/// What changes from the policy in force to `new`; returns whether nothing does.
///
/// # Errors
/// Standard output cannot be written.
pub fn diff(output: Output, old: &v1::PolicyShowResponse, name: &str, new: &str) -> Result<bool, Failure> {
    let generation = old.policy.as_ref().map_or(0, |p| p.generation);
    let old_text = canonical(&old.text);
    let lines = lines(&old_text, new);
    let same = lines.iter().all(|l| matches!(l, Line::Same(_)));
    let json = || {
        let lines = lines.iter().filter_map(|l| match l {
            Line::Same(_) => None,
            Line::Removed(text) => Some(DiffLine { change: "removed", text }),
            Line::Added(text) => Some(DiffLine { change: "added", text }),
        });
        Diff { generation, same, lines: lines.collect() }
    };
    answer(output, json, |out| {
        if same {
            return writeln!(out, "no difference from generation {generation}");
        }
        writeln!(out, "--- generation {generation}\n+++ {name}")?;
        lines.iter().try_for_each(|line| match line {
            Line::Same(text) => writeln!(out, " {text}"),
            Line::Removed(text) => writeln!(out, "-{text}"),
            Line::Added(text) => writeln!(out, "+{text}"),
        })
    })?;
    Ok(same)
}

/// By the longest common subsequence of what lies between the equal beginning and the equal end. Its cost grows with the
/// square of that middle, which in a policy under edit is short.
fn lines<'a>(old: &'a str, new: &'a str) -> Vec<Line<'a>> {
    let old: Vec<&str> = old.lines().collect();
    let new: Vec<&str> = new.lines().collect();
    let head = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let (old_rest, new_rest) = (old.get(head..).unwrap_or(&[]), new.get(head..).unwrap_or(&[]));
    let tail = old_rest.iter().rev().zip(new_rest.iter().rev()).take_while(|(a, b)| a == b).count();
    let middle = |all: &[&'a str]| all.get(..all.len().saturating_sub(tail)).unwrap_or(&[]).to_vec();
    let (a, b) = (middle(old_rest), middle(new_rest));

    // common[i][j]: the longest common subsequence of a[i..] and b[j..].
    let mut common = vec![vec![0_u32; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            common[i][j] = if a[i] == b[j] { common[i + 1][j + 1] + 1 } else { common[i + 1][j].max(common[i][j + 1]) };
        }
    }
    let mut found: Vec<Line<'a>> = old.iter().take(head).map(|l| Line::Same(l)).collect();
    let (mut i, mut j) = (0, 0);
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            found.push(Line::Same(a[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == b.len() || (i < a.len() && common[i + 1][j] >= common[i][j + 1]) {
            found.push(Line::Removed(a[i]));
            i += 1;
        } else {
            found.push(Line::Added(b[j]));
            j += 1;
        }
    }
    found.extend(old.iter().skip(old.len() - tail).map(|l| Line::Same(l)));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_the_smallest() {
        use Line::{Added, Removed, Same};
        assert_eq!(lines("a\nb\nc\n", "a\nb\nc\n"), [Same("a"), Same("b"), Same("c")]);
        assert_eq!(lines("a\nb\nc\n", "a\nx\nc\n"), [Same("a"), Removed("b"), Added("x"), Same("c")]);
        assert_eq!(lines("", "a\n"), [Added("a")]);
        assert_eq!(lines("a\n", ""), [Removed("a")]);
        assert_eq!(lines("a\na\n", "a\n"), [Same("a"), Removed("a")]);
        assert_eq!(
            lines("a\nb\nc\nd\ne\n", "b\nx\nc\ne\nf\n"),
            [Removed("a"), Same("b"), Added("x"), Same("c"), Removed("d"), Same("e"), Added("f")]
        );
    }

    /// What is left without the added lines is the old text, without the removed ones the new.
    #[test]
    fn both_texts_are_in_the_difference() {
        let texts = ["", "a\n", "a\nb\n", "b\na\n", "a\nb\na\nb\n", "c\na\nb\nc\nd\n"];
        for old in texts {
            for new in texts {
                let diff = lines(old, new);
                let kept = |skip: fn(&Line<'_>) -> bool| -> String {
                    let text = |l: &Line<'_>| match *l {
                        Line::Same(t) | Line::Removed(t) | Line::Added(t) => format!("{t}\n"),
                    };
                    diff.iter().filter(|l| !skip(l)).map(text).collect()
                };
                assert_eq!(kept(|l| matches!(l, Line::Added(_))), old);
                assert_eq!(kept(|l| matches!(l, Line::Removed(_))), new);
            }
        }
    }
}
