//! The policies: the one in force, those before it, and the candidate.
//!
//! A policy comes into force in two steps. [`Command::Policy`] keeps its text as the candidate, and gives numbers to its zones.
//! Each member compiles it beside its packet path ([`crate::policy_slots`]). [`Command::Enact`] puts it in force at one index.
//! Nothing here parses or compiles: it would take seconds, and a program of another version might say something else.

use std::sync::Arc;

use super::{Batch, Command, Effects, Enact, Outcome, PolicyChange, StateMachine, Withdraw, zones};
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
            return Outcome::Invalid(format!("a policy can have at most {MAX_TEXT} bytes"));
        }
        if change.author.len() > MAX_AUTHOR_BYTES || change.overridden.len() > MAX_NAMED_MEMBERS {
            return Outcome::Invalid("what is said of the policy is too long".to_owned());
        }
        if change.zones.len() > MAX_ZONES {
            return Outcome::Invalid(format!("a policy can have at most {MAX_ZONES} zones"));
        }
        if let Some(bad) = change.zones.iter().find(|name| !zones::is_valid(name)) {
            return Outcome::Invalid(format!("{bad:?} cannot be the name of a zone"));
        }
        let mut zones = register.cluster.zones.clone();
        if let Err(error) = zones::register(&mut zones, &change.zones) {
            return Outcome::Invalid(error.to_string());
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
            return Outcome::Invalid("the candidate is of the same batch".to_owned());
        }
        if enact.without.len() > MAX_NAMED_MEMBERS {
            return Outcome::Invalid(format!("more than {MAX_NAMED_MEMBERS} members"));
        }
        let register = &mut self.register;
        if enact.base != register.generation {
            return Outcome::Stale(register.generation);
        }
        let Some(candidate) = register.cluster.candidate.take_if(|candidate| candidate.hash == enact.hash) else {
            return Outcome::Invalid("there is no such candidate".to_owned());
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
            return Outcome::Invalid("there is no such candidate".to_owned());
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
