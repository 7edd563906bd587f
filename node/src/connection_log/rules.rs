//! The names of the rules with `log`, by policy generation.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use palisade_engine::policy::Policy;
use palisade_engine::{Engine, Generation, Level, PolicyRecord, RuleId};

/// The rules with `log` of the policies in the history. It has a policy for as long as the history has.
pub(super) struct LoggedRules {
    engine: Arc<Engine>,
    known: BTreeMap<Generation, HashMap<RuleId, Arc<str>>>,
    /// The latest generation that was looked at.
    latest: Option<Generation>,
}

impl LoggedRules {
    pub(super) fn new(engine: Arc<Engine>) -> LoggedRules {
        LoggedRules { engine, known: BTreeMap::new(), latest: None }
    }

    /// The name of a rule, if it says `log` and its policy is in the history.
    pub(super) fn name(&mut self, generation: Generation, rule: RuleId) -> Option<Arc<str>> {
        if !self.known.contains_key(&generation) {
            self.read();
        }
        self.known.get(&generation)?.get(&rule).cloned()
    }

    /// Whether any rule says `log`, if that may have changed since the last call.
    pub(super) fn any_logged(&mut self) -> Option<bool> {
        if self.latest == Some(self.engine.generation()) {
            return None;
        }
        self.latest = Some(self.engine.generation());
        self.read();
        Some(self.known.values().any(|rules| !rules.is_empty()))
    }

    /// Reads the policies that were not read yet, and forgets those that the history has forgotten.
    fn read(&mut self) {
        let cluster = self.engine.cluster_state();
        self.known.retain(|generation, _| cluster.policies.iter().any(|policy| policy.generation == *generation));
        for policy in &cluster.policies {
            self.known.entry(policy.generation).or_insert_with(|| logged(cluster.level, policy));
        }
    }
}

fn logged(level: Level, record: &PolicyRecord) -> HashMap<RuleId, Arc<str>> {
    // Most policies of most histories have no such rule, and reading a large one takes a while.
    if !record.text.contains("log") {
        return HashMap::new();
    }
    let Ok(policy) = Policy::parse_at(level, "policy", &record.text) else { return HashMap::new() };
    let default = policy.default_action().log.then(|| (RuleId(0), "default".into()));
    let rules = (1..).map(RuleId).zip(policy.rules()).filter(|(_, rule)| rule.log);
    default.into_iter().chain(rules.map(|(id, rule)| (id, rule.name.as_str().into()))).collect()
}
