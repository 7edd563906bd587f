//! The policy: text, its meaning, and the decision for a new connection.

use crate::id::{RuleId, ZoneId};
use crate::tuple::Tuple;

/// What a rule, or the default, does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Lets the session through.
    Accept,
    /// Discards silently.
    Drop,
    /// Discards and answers.
    Reject,
}

/// What a policy says of a new connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision {
    /// What to do.
    pub action: Action,
    /// By which rule.
    pub rule: RuleId,
    /// Is it to be logged?
    pub log: bool,
}

/// A parsed and checked policy, not yet bound to zone numbers. `Display` writes the canonical form.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {}

/// A policy ready to decide.
#[derive(Debug)]
pub struct Compiled {}

/// All errors of a policy text, each with its place. A `miette::Diagnostic` with the source, labels and help.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
#[error("the policy is not valid")]
pub struct PolicyError {}

#[allow(unused_variables, clippy::todo)]
impl Policy {
    /// Reads a policy; `name` is the file's, for the errors.
    ///
    /// # Errors
    /// Every error in the text, not only the first.
    pub fn parse(name: &str, text: &str) -> Result<Policy, PolicyError> {
        todo!()
    }

    /// The zones that it declares, in order.
    #[must_use]
    pub fn zones(&self) -> &[String] {
        todo!()
    }

    /// Makes it ready to decide; `zone` gives the number of each declared zone.
    #[must_use]
    pub fn compile(&self, zone: &mut dyn FnMut(&str) -> ZoneId) -> Compiled {
        todo!()
    }
}

#[allow(unused_variables, clippy::todo)]
impl Compiled {
    /// The decision for a session that begins with `tuple`, from one zone to another. First match wins. For ICMP echo
    /// the request's tuple counts.
    #[must_use]
    pub fn decide(&self, from: ZoneId, to: ZoneId, tuple: &Tuple) -> Decision {
        todo!()
    }

    /// A rule's text as the policy has it, for `session show` and the log. Rule 0 is the default.
    #[must_use]
    pub fn rule_text(&self, rule: RuleId) -> &str {
        todo!()
    }
}
