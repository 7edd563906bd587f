//! The policies: the one in force and those before it.

use std::sync::Arc;

use super::{Effects, InvalidReason, Outcome, PolicyChange, StateMachine, zones};
use crate::active_policy::ActivePolicy;
use crate::cluster_state::{PolicyRecord, zone_number};
use crate::id::Generation;
use crate::policy::{Compiled, Policy, PolicyError};

/// Number of policies kept, the active one included.
const MAX_POLICY_HISTORY: usize = 32;

/// Maximum length of a policy's text, in bytes.
pub(super) const MAX_POLICY_BYTES: usize = 8 << 20;

/// Why the text of a policy was refused.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The policy has errors.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The cluster would have more zone names than there are numbers.
    #[error("a cluster can have at most 65,534 zone names")]
    TooManyZones,
}

impl CompileError {
    /// As an outcome says it.
    pub(super) fn reason(&self) -> InvalidReason {
        match self {
            CompileError::Policy(_) => InvalidReason::Policy,
            CompileError::TooManyZones => InvalidReason::TooManyZones,
        }
    }
}

/// Parses and compiles a policy against the zone register. Also returns the names of its zones.
pub(super) fn compile(text: &str, zones: &mut Vec<String>) -> Result<(Compiled, Vec<String>), CompileError> {
    let policy = Policy::parse("policy", text)?;
    zones::register(zones, policy.zones())?;
    Ok((policy.compile(&mut |name| zone_number(zones, name)), policy.zones().to_vec()))
}

impl StateMachine {
    pub(super) fn change_policy(&mut self, change: &PolicyChange, unix_ms: u64, effects: &mut Effects) -> Outcome {
        let register = &mut self.register;
        if change.base != register.generation {
            return Outcome::Stale(register.generation);
        }
        if change.text.len() > MAX_POLICY_BYTES {
            return Outcome::Invalid(InvalidReason::PolicyLength);
        }
        let mut zones = register.cluster.zones.clone();
        let (rules, named) = match compile(&change.text, &mut zones) {
            Ok(compiled) => compiled,
            Err(error) => return Outcome::Invalid(error.reason()),
        };
        let generation = Generation(register.generation.0 + 1);
        register.generation = generation;
        register.cluster.policies.push(Arc::new(PolicyRecord {
            generation,
            text: change.text.clone(),
            author: change.author.clone(),
            unix_ms,
            zones: named,
        }));
        let old = register.cluster.policies.len().saturating_sub(MAX_POLICY_HISTORY);
        register.cluster.policies.drain(..old);
        effects.active_policy =
            Some(Box::new(ActivePolicy { generation, rules: Some(rules), ..ActivePolicy::default() }));
        register.cluster.zones = zones;
        register.forget_zones();
        self.register_changed(effects);
        Outcome::Policy(generation)
    }
}
