//! The errors of a policy text, with their positions.

use std::fmt::{self, Write as _};
use std::ops::Range;

use miette::{Diagnostic, NamedSource, SourceSpan};

/// All errors of a policy text, each with its position. A `miette::Diagnostic` with source, labels and help.
///
/// Each [`Problem`] is a related diagnostic; [`PolicyError::render`] writes the same as plain text.
#[derive(Debug, thiserror::Error, Diagnostic)]
#[error("the policy is not valid: {}", ErrorCount(.problems.len()))]
#[diagnostic(code(policy::invalid), help("nothing was changed; docs/policy.md describes the language"))]
pub struct PolicyError {
    #[source_code]
    pub(super) source_code: NamedSource<String>,
    #[related]
    pub(super) problems: Vec<Problem>,
}

/// The text "1 error", "2 errors" and so on.
struct ErrorCount(usize);

impl fmt::Display for ErrorCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.0, if self.0 == 1 { "error" } else { "errors" })
    }
}

/// One error in a policy.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error, Diagnostic)]
#[error("{message}")]
pub struct Problem {
    /// What is wrong.
    pub(super) message: String,
    /// The label shown under the position.
    pub(super) label: String,
    #[label("{label}")]
    pub(super) span: SourceSpan,
    /// Advice on how to fix it.
    #[help]
    pub(super) help: Option<String>,
}

impl Problem {
    pub(super) fn new(span: Range<usize>, message: impl Into<String>, label: impl Into<String>) -> Problem {
        Problem { message: message.into(), label: label.into(), span: span.into(), help: None }
    }

    pub(super) fn help(self, help: impl Into<String>) -> Problem {
        Problem { help: Some(help.into()), ..self }
    }

    /// Advice on how to fix it.
    #[must_use]
    pub fn advice(&self) -> Option<&str> {
        self.help.as_deref()
    }
}

impl PolicyError {
    /// The errors, in the order of their positions.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// The line and column of an error, both from 1; the column counts characters.
    #[must_use]
    pub fn place(&self, problem: &Problem) -> (usize, usize) {
        let place = self.locate(problem);
        (place.line, place.column)
    }

    /// All errors as plain text: for each `file:line:column: message`, the line with a caret under the position, and help.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = String::new();
        for problem in &self.problems {
            let Place { line, column, text, width } = self.locate(problem);
            let gutter = line.to_string();
            let blank = " ".repeat(gutter.len());
            // A tab before the caret stays a tab, so that the caret is aligned.
            let indent: String = text.chars().take(column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{}:{line}:{column}: {}", self.source_code.name(), problem.message);
            let _ = writeln!(out, "{gutter} | {text}");
            let _ = writeln!(out, "{blank} | {indent}{} {}", "^".repeat(width), problem.label);
            if let Some(help) = &problem.help {
                let _ = writeln!(out, "{blank} = help: {help}");
            }
        }
        out
    }

    fn locate(&self, problem: &Problem) -> Place<'_> {
        let source = self.source_code.inner().as_str();
        let mut at = problem.span.offset().min(source.len());
        while !source.is_char_boundary(at) {
            at -= 1;
        }
        let (before, after) = source.split_at(at);
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let text = source.get(start..).unwrap_or_default().lines().next().unwrap_or_default();
        let column = before.get(start..).unwrap_or_default().chars().count() + 1;
        let marked = after.get(..problem.span.len().min(after.len())).unwrap_or_default();
        let width = marked.lines().next().unwrap_or_default().chars().count().max(1);
        Place { line: before.bytes().filter(|&byte| byte == b'\n').count() + 1, column, text, width }
    }
}

/// A position in a text, with the line for display.
struct Place<'a> {
    line: usize,
    column: usize,
    text: &'a str,
    width: usize,
}

/// The known word that is most similar to `word`, for "did you mean".
pub(super) fn similar<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let max_distance = word.chars().count().div_ceil(3).min(3);
    known
        .into_iter()
        // Limits the time for a long text with many errors.
        .take(1000)
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|&(distance, _)| distance <= max_distance)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// The edit distance with transpositions (optimal string alignment), ignoring case.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.to_lowercase().chars().collect();
    let b: Vec<char> = b.to_lowercase().chars().collect();
    if a.len().abs_diff(b.len()) > 3 {
        return usize::MAX;
    }
    let mut rows: [Vec<usize>; 3] = [Vec::new(), Vec::new(), (0..=b.len()).collect()];
    for (i, x) in a.iter().enumerate() {
        rows.rotate_left(1);
        let [before, above, row] = &mut rows;
        row.clear();
        row.push(i + 1);
        for (j, y) in b.iter().enumerate() {
            let mut best = (above[j] + usize::from(x != y)).min(above[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
    }
    rows[2][b.len()]
}
