//! The policy in force, ready for the packet path.

use crate::id::{Generation, RuleId, ZoneId};
use crate::parse::IpOptions;
use crate::policy::{Action, Compiled, Decision};
use crate::timeouts::Timeouts;
use crate::tuple::Tuple;

/// One generation's policy.
#[derive(Default)]
pub(crate) struct ActivePolicy {
    pub(crate) generation: Generation,
    /// None: generation 0, default drop.
    pub(crate) rules: Option<Compiled>,
}

impl ActivePolicy {
    pub(crate) fn decide(&self, from: ZoneId, to: ZoneId, tuple: &Tuple) -> Decision {
        match &self.rules {
            Some(rules) => rules.decide(from, to, tuple),
            None => Decision { action: Action::Drop, rule: RuleId(0), log: false },
        }
    }

    /// May a packet with these IPv4 options pass?
    pub(crate) fn allows_options(&self, options: IpOptions) -> bool {
        self.rules.as_ref().map_or(IpOptions::NONE, Compiled::ip_options).covers(options)
    }

    pub(crate) fn timeouts(&self) -> &Timeouts {
        self.rules.as_ref().map_or(&Timeouts::DEFAULT, Compiled::timeouts)
    }
}
