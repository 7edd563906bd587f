//! The names of the rules that allowed sessions.

use std::collections::HashMap;

use palisade_engine::policy::Policy;
use palisade_engine::{ClusterState, Generation, RuleId};

/// Names of rules by generation. A policy's text is read when the first of its rules is asked for.
#[derive(Default)]
pub(super) struct RuleNames(HashMap<Generation, Vec<String>>);

impl RuleNames {
    /// The name of a rule; empty if its policy is not in the history any longer.
    pub(super) fn name(&mut self, cluster: &ClusterState, (generation, rule): (Generation, RuleId)) -> &str {
        let Some(at) = usize::try_from(rule.0).ok().and_then(|n| n.checked_sub(1)) else { return "default" };
        let names = self.0.entry(generation).or_insert_with(|| {
            let record = cluster.policies.iter().find(|p| p.generation == generation);
            let policy = record.and_then(|record| Policy::parse_at(cluster.level, "policy", &record.text).ok());
            policy.iter().flat_map(Policy::rules).map(|rule| rule.name.clone()).collect()
        });
        names.get(at).map_or("", String::as_str)
    }
}
