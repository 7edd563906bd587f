//! The policy in force, ready for the packet path.

use crate::id::{Generation, RuleId, ZoneId};
use crate::parse::IpOptions;
use crate::policy::{Action, Compiled, Decision, PolicyHash};
use crate::rule_hits::HitCounters;
use crate::timeouts::Timeouts;
use crate::tuple::Tuple;

/// One generation's policy.
#[derive(Default)]
pub(crate) struct ActivePolicy {
    pub(crate) generation: Generation,
    /// None: default drop, of generation 0 or because the policy is not compiled yet.
    pub(crate) rules: Option<Compiled>,
    /// Empty without rules.
    pub(crate) hits: HitCounters,
    /// What it was compiled from: the hash of the text, and the numbers of the zones that it declares.
    pub(crate) source: Option<(PolicyHash, Vec<ZoneId>)>,
}

impl ActivePolicy {
    pub(crate) fn decide(&self, from: ZoneId, to: ZoneId, tuple: &Tuple) -> Decision {
        match &self.rules {
            Some(rules) => rules.decide(from, to, tuple),
            None => Decision { action: Action::Drop, rule: RuleId(0), log: false },
        }
    }

    /// The action for connections that no rule matches.
    pub(crate) fn default_action(&self) -> Action {
        self.rules.as_ref().map_or(Action::Drop, Compiled::default_action)
    }

    /// Whether the decisions of a rule are logged.
    pub(crate) fn is_logged(&self, rule: RuleId) -> bool {
        self.rules.as_ref().is_some_and(|rules| rules.is_logged(rule))
    }

    /// May a packet with these IPv4 options pass?
    pub(crate) fn allows_options(&self, options: IpOptions) -> bool {
        self.rules.as_ref().map_or(IpOptions::NONE, Compiled::ip_options).covers(options)
    }

    pub(crate) fn timeouts(&self) -> &Timeouts {
        self.rules.as_ref().map_or(&Timeouts::DEFAULT, Compiled::timeouts)
    }
}
