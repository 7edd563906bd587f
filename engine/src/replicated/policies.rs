//! The policies: the one in force, those before it, and the candidate.
//!
//! A policy comes into force in two steps. [`Command::Policy`] keeps its text as the candidate, and gives numbers to its zones.
//! Each member compiles it beside its packet path ([`crate::policy_slots`]). [`Command::Enact`] puts it in force at one index.
//! Nothing here parses or compiles: it would take seconds, and a program of another version might say something else.

use std::sync::Arc;

use super::{Batch, Command, Effects, Enact, InvalidReason, Outcome, PolicyChange, StateMachine, Withdraw, zones};
use crate::cluster_state::{Candidate, PolicyRecord};
use crate::id::Generation;
use crate::policy::{MAX_TEXT, MAX_ZONES};

/// Number of policies kept, the active one included.
const MAX_POLICY_HISTORY: usize = 32;

/// Maximum length of an author's name, in bytes.
const MAX_AUTHOR_BYTES: usize = 4096;

/// Maximum length of a policy's text with what is kept beside it, in bytes.
pub(super) const MAX_POLICY_BYTES: usize = MAX_TEXT + (1 << 20);

/// Maximum number of members that a command about a policy names.
const MAX_NAMED_MEMBERS: usize = 1024;

impl StateMachine {
    /// Makes a policy the candidate.
    pub(super) fn take_candidate(&mut self, change: &PolicyChange, unix_ms: u64, effects: &mut Effects) -> Outcome {
        let register = &mut self.register;
        if change.base != register.generation {
            return Outcome::Stale(register.generation);
        }
        if change.text.len() > MAX_TEXT {
            return Outcome::Invalid(InvalidReason::PolicyLength);
        }
        if change.author.len() > MAX_AUTHOR_BYTES || change.overridden.len() > MAX_NAMED_MEMBERS {
            return Outcome::Invalid(InvalidReason::PolicyRemarks);
        }
        if change.zones.len() > MAX_ZONES {
            return Outcome::Invalid(InvalidReason::TooManyPolicyZones);
        }
        if let Some(at) = change.zones.iter().position(|name| !zones::is_valid(name)) {
            return Outcome::Invalid(InvalidReason::ZoneName(u32::try_from(at).unwrap_or(u32::MAX)));
        }
        let mut zones = register.cluster.zones.clone();
        if let Err(error) = zones::register(&mut zones, &change.zones) {
            return Outcome::Invalid(error.into());
        }
        register.cluster.zones = zones;
        register.cluster.candidate = Some(Arc::new(Candidate {
            base: change.base,
            hash: change.hash,
            text: change.text.as_str().into(),
            author: change.author.clone(),
            unix_ms,
            zones: change.zones.clone(),
            overridden: change.overridden.clone(),
        }));
        register.forget_zones();
        self.register_changed(effects);
        Outcome::Accepted
    }

    /// Puts the candidate in force.
    pub(super) fn enact(&mut self, enact: &Enact, batch: &Batch, at: usize, effects: &mut Effects) -> Outcome {
        if follows_policy(batch, at) {
            return Outcome::Invalid(InvalidReason::CandidateOfBatch);
        }
        if enact.without.len() > MAX_NAMED_MEMBERS {
            return Outcome::Invalid(InvalidReason::PolicyRemarks);
        }
        let register = &mut self.register;
        if enact.base != register.generation {
            return Outcome::Stale(register.generation);
        }
        let Some(candidate) = register.cluster.candidate.take_if(|candidate| candidate.hash == enact.hash) else {
            return Outcome::Invalid(InvalidReason::NoCandidate);
        };
        let generation = Generation(register.generation.0 + 1);
        register.generation = generation;
        let record = Arc::new(PolicyRecord {
            generation,
            hash: candidate.hash,
            text: candidate.text.clone(),
            author: candidate.author.clone(),
            unix_ms: batch.unix_ms,
            zones: candidate.zones.clone(),
            without: enact.without.clone(),
        });
        register.cluster.policies.push(record.clone());
        let old = register.cluster.policies.len().saturating_sub(MAX_POLICY_HISTORY);
        register.cluster.policies.drain(..old);
        register.forget_zones();
        effects.enacted = Some((candidate, record));
        self.register_changed(effects);
        Outcome::Policy(generation)
    }

    /// Removes the candidate.
    pub(super) fn withdraw(&mut self, withdraw: &Withdraw, effects: &mut Effects) -> Outcome {
        let register = &mut self.register;
        let named = |candidate: &Arc<Candidate>| candidate.hash == withdraw.hash && candidate.base == withdraw.base;
        if !register.cluster.candidate.as_ref().is_some_and(named) {
            return Outcome::Invalid(InvalidReason::NoCandidate);
        }
        register.cluster.candidate = None;
        register.forget_zones();
        self.register_changed(effects);
        Outcome::Accepted
    }

    /// The candidate that a batch puts in force, if it is not refused.
    pub(crate) fn enacted_by(&self, batch: &Batch) -> Option<&Arc<Candidate>> {
        let candidate = self.register.cluster.candidate.as_ref()?;
        let names = |command: &Command| match command {
            Command::Enact(enact) => enact.hash == candidate.hash && enact.base == self.register.generation,
            _ => false,
        };
        let at = batch.commands.iter().position(names)?;
        (!follows_policy(batch, at)).then_some(candidate)
    }
}

/// Whether an earlier command of the batch has a policy.
fn follows_policy(batch: &Batch, at: usize) -> bool {
    batch.commands.iter().take(at).any(|command| matches!(command, Command::Policy(_)))
}
