//! Failures and exit codes.

use std::error::Error;
use std::fmt::{self, Display};
use std::io::{self, IsTerminal};
use std::process::ExitCode;

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteDiagnostic, Report, SourceCode};
use serde::Serialize;
use tonic::{Code, Status};

use crate::args::Output;

/// The exit codes. They are stable; `palisade --help` and `docs/cli.md` list them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Failed, not ready, different, not valid.
    Failure = 1,
    /// Wrong usage.
    Usage = 2,
    /// The member cannot be reached, or has no quorum.
    Unreachable = 3,
    /// Not allowed, or not in this state.
    Refused = 4,
    /// There is no such session, policy or member.
    NotFound = 5,
    /// The daemon only: another version wrote what this one cannot read.
    Unreadable = 6,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// The width at which the text of an error is wrapped: terminals have at least this many columns.
const WIDTH: usize = 80;

/// A command that did not do what was asked.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    report: Report,
}

#[derive(Serialize)]
struct JsonFailure {
    error: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    details: Vec<JsonDetail>,
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<String>,
    exit: u8,
}

/// One of several errors, with its place; lines and columns count from 1.
#[derive(Serialize)]
struct JsonDetail {
    error: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<String>,
}

impl JsonDetail {
    fn new(detail: &dyn Diagnostic, source: Option<&dyn SourceCode>) -> JsonDetail {
        let label = detail.labels().and_then(|mut labels| labels.next());
        let place = source.zip(label).and_then(|(source, label)| source.read_span(label.inner(), 0, 0).ok());
        JsonDetail {
            error: detail.to_string(),
            line: place.as_ref().map(|place| place.line() + 1),
            column: place.as_ref().map(|place| place.column() + 1),
            help: detail.help().map(|h| h.to_string()),
        }
    }
}

impl Failure {
    /// With what went wrong, and what to do next.
    #[must_use]
    pub fn new(exit: Exit, message: impl Into<String>, help: Option<&str>) -> Failure {
        let mut diagnostic = MietteDiagnostic::new(message);
        if let Some(help) = help {
            diagnostic = diagnostic.with_help(help);
        }
        Failure { exit, report: Report::new(diagnostic) }
    }

    /// With places in a text.
    #[must_use]
    pub fn diagnostic(exit: Exit, diagnostic: impl Diagnostic + Send + Sync + 'static) -> Failure {
        Failure { exit, report: Report::new(diagnostic) }
    }

    /// With an error, its causes and its help, without places in a text.
    #[must_use]
    pub fn error(exit: Exit, error: &impl Diagnostic) -> Failure {
        let help = error.help().map(|help| help.to_string());
        Failure::new(exit, chain(error), help.as_deref())
    }

    /// What a member answered.
    #[must_use]
    pub fn status(status: &Status) -> Failure {
        let (exit, fallback) = match status.code() {
            Code::Unavailable | Code::DeadlineExceeded => {
                (Exit::Unreachable, Some("see `palisade cluster status`, and the daemon's log"))
            }
            Code::NotFound => (Exit::NotFound, None),
            Code::PermissionDenied => (
                Exit::Refused,
                Some("run this as root, or as a member of the group `palisade` (log in again after joining it)"),
            ),
            Code::FailedPrecondition | Code::InvalidArgument | Code::Aborted | Code::AlreadyExists => {
                (Exit::Refused, None)
            }
            Code::Unimplemented => {
                (Exit::Failure, Some("the running daemon is of another version than this program: restart it"))
            }
            _ => (Exit::Failure, Some("see the daemon's log")),
        };
        if status.code() == Code::Unknown && status.message() == "transport error" {
            let help = "the daemon has stopped meanwhile: its log says why";
            return Failure::new(Exit::Unreachable, "the connection to the member broke", Some(help));
        }
        let help = status.metadata().get_bin(palisade_node::HELP).and_then(|h| h.to_bytes().ok());
        let help = help.and_then(|h| String::from_utf8(h.to_vec()).ok());
        Failure::new(exit, status.message(), help.as_deref().or(fallback))
    }

    /// Its exit code.
    #[must_use]
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// Its text, without places and help.
    #[must_use]
    pub fn message(&self) -> String {
        self.report.to_string()
    }

    /// Writes it to standard error.
    pub fn report(&self, output: Output) {
        match output {
            Output::Table => eprint!("{}", self.text()),
            Output::Json => eprintln!("{}", serde_json::to_string(&self.json()).unwrap_or_else(|e| e.to_string())),
        }
    }

    fn json(&self) -> JsonFailure {
        let source = self.report.source_code();
        JsonFailure {
            error: self.message(),
            details: self.report.related().into_iter().flatten().map(|d| JsonDetail::new(d, source)).collect(),
            help: self.report.help().map(|h| h.to_string()),
            exit: self.exit as u8,
        }
    }

    /// For people: each error with its place, and at the end, where it is seen on a terminal, how many there are.
    fn text(&self) -> String {
        let handler = match io::stderr().is_terminal() {
            true => GraphicalReportHandler::new(),
            false => GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor()),
        };
        let handler = handler.with_width(WIDTH);
        let source = self.report.source_code();
        let mut text = String::new();
        for detail in self.report.related().into_iter().flatten() {
            let located = Located { detail, source: detail.source_code().or(source) };
            // Writing to a String cannot fail.
            let _ = handler.render_report(&mut text, &located);
            text.push('\n');
        }
        let _ = handler.render_report(&mut text, &Summary(self.report.as_ref()));
        text
    }
}

/// One of several errors, with the text that its place is in.
struct Located<'a> {
    detail: &'a dyn Diagnostic,
    source: Option<&'a dyn SourceCode>,
}

/// What several errors have in common.
struct Summary<'a>(&'a (dyn Diagnostic + Send + Sync));

impl Diagnostic for Located<'_> {
    fn help<'a>(&'a self) -> Option<Box<dyn Display + 'a>> {
        self.detail.help()
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        self.detail.labels()
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.source
    }
}

impl Diagnostic for Summary<'_> {
    fn help<'a>(&'a self) -> Option<Box<dyn Display + 'a>> {
        self.0.help()
    }
}

/// Both say what the error says that they are about.
macro_rules! says_what_it_is_about {
    ($($name:ident: $about:tt,)*) => {$(
        impl fmt::Debug for $name<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl Display for $name<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.$about)
            }
        }

        impl Error for $name<'_> {}
    )*};
}

says_what_it_is_about! {
    Located: detail,
    Summary: 0,
}

impl From<Status> for Failure {
    fn from(status: Status) -> Failure {
        Failure::status(&status)
    }
}

impl From<std::io::Error> for Failure {
    fn from(e: std::io::Error) -> Failure {
        Failure::new(Exit::Failure, e.to_string(), None)
    }
}

impl From<palisade_proto::convert::admin::AdminError> for Failure {
    fn from(e: palisade_proto::convert::admin::AdminError) -> Failure {
        let help = "the running daemon is of another version than this program: restart it";
        Failure::new(Exit::Failure, format!("the member's answer makes no sense: {e}"), Some(help))
    }
}

/// An error with all its causes, on one line.
#[must_use]
pub fn chain(e: &dyn Error) -> String {
    let mut text = e.to_string();
    let mut cause = e.source();
    while let Some(e) = cause {
        let more = e.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = e.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use palisade_engine::policy::Policy;
    use palisade_node::config::Config;

    use super::*;

    fn policy() -> Failure {
        let wrong = "zone a\ndefault dorp\naccept \"x\" from b to a: any -> any\n";
        Failure::diagnostic(Exit::Failure, Policy::parse("p", wrong).unwrap_err())
    }

    #[test]
    fn several_errors_come_with_their_places_and_their_number_last() {
        let text = policy().text();
        let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("{what} is missing in\n{text}"));
        assert!(at("p:2:9") < at("p:3:17") && at("p:3:17") < at("the policy is not valid: 2 errors"), "{text}");
        assert!(!text.contains("policy::invalid"), "a code that nobody can look up:\n{text}");
    }

    #[test]
    fn machines_get_the_places_too() {
        let json = serde_json::to_value(policy().json()).unwrap();
        let places: Vec<_> = json["details"].as_array().unwrap().iter().map(|d| (&d["line"], &d["column"])).collect();
        assert_eq!(places, [(&2.into(), &9.into()), (&3.into(), &17.into())], "{json}");
        assert_eq!((&json["error"], &json["exit"]), (&"the policy is not valid: 2 errors".into(), &1.into()));

        let missing = Failure::diagnostic(Exit::Failure, Config::load("/nonexistent/node.toml".as_ref()).unwrap_err());
        let json = serde_json::to_value(missing.json()).unwrap();
        assert!(json["error"].as_str().unwrap().contains("cannot be read"), "{json}");
    }

    #[test]
    fn a_single_error_is_one_paragraph() {
        let text = Failure::new(Exit::Refused, "no", Some("ask again")).text();
        assert_eq!(text.lines().map(str::trim).collect::<Vec<_>>(), ["× no", "help: ask again"], "{text:?}");
    }
}
