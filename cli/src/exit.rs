//! Failures and exit codes.

use std::error::Error;
use std::process::ExitCode;

use miette::{Diagnostic, LabeledSpan, MietteDiagnostic, Report};
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
    /// The member can not be reached, or has no quorum.
    Unreachable = 3,
    /// Not allowed, or not in this state.
    Refused = 4,
    /// There is no such session, policy or member.
    NotFound = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

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
    details: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<String>,
    exit: u8,
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
        let help = status.metadata().get_bin(palisade_node::admin::HELP).and_then(|h| h.to_bytes().ok());
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
            Output::Table => eprintln!("{:?}", self.report),
            Output::Json => {
                let details = self.report.related().into_iter().flatten().map(ToString::to_string);
                let labels = self.report.labels().into_iter().flatten();
                let labels = labels.filter_map(|l: LabeledSpan| l.label().map(str::to_owned));
                let json = JsonFailure {
                    error: self.message(),
                    details: details.chain(labels).collect(),
                    help: self.report.help().map(|h| h.to_string()),
                    exit: self.exit as u8,
                };
                eprintln!("{}", serde_json::to_string(&json).unwrap_or_else(|e| e.to_string()));
            }
        }
    }
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
