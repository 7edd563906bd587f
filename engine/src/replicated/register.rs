//! The registers that administrators change: policies, zones, members.

use std::sync::Arc;

use super::{Effects, MemberChange, Outcome, PolicyChange, StateMachine, zones};
use crate::active_policy::ActivePolicy;
use crate::cluster_state::{PolicyRecord, zone_number};
use crate::id::{Generation, MemberId};
use crate::policy::{Compiled, Policy, PolicyError};

/// Number of policies kept, the active one included.
const MAX_POLICY_HISTORY: usize = 32;

/// Maximum length of a policy's text, in bytes.
pub(super) const MAX_POLICY_BYTES: usize = 8 << 20;

/// Maximum number of join tokens.
const MAX_JOIN_TOKENS: usize = 64;

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

/// Parses and compiles a policy against the zone register. Also returns the names of its zones.
pub(super) fn compile(text: &str, zones: &mut Vec<String>) -> Result<(Compiled, Vec<String>), CompileError> {
    let policy = Policy::parse("policy", text)?;
    zones::register(zones, policy.zones())?;
    Ok((policy.compile(&mut |name| zone_number(zones, name)), policy.zones().to_vec()))
}

impl StateMachine {
    pub(super) fn change_policy(&mut self, change: &PolicyChange, unix_ms: u64, effects: &mut Effects) -> Outcome {
        let settings = &mut self.settings;
        if change.base != settings.generation {
            return Outcome::Stale(settings.generation);
        }
        if change.text.len() > MAX_POLICY_BYTES {
            return Outcome::Invalid(format!("a policy can have at most {MAX_POLICY_BYTES} bytes"));
        }
        let mut zones = settings.cluster.zones.clone();
        let (rules, named) = match compile(&change.text, &mut zones) {
            Ok(compiled) => compiled,
            Err(error) => return Outcome::Invalid(error.to_string()),
        };
        let generation = Generation(settings.generation.0 + 1);
        settings.generation = generation;
        settings.cluster.policies.push(Arc::new(PolicyRecord {
            generation,
            text: change.text.clone(),
            author: change.author.clone(),
            unix_ms,
            zones: named,
        }));
        let old = settings.cluster.policies.len().saturating_sub(MAX_POLICY_HISTORY);
        settings.cluster.policies.drain(..old);
        effects.active_policy =
            Some(Box::new(ActivePolicy { generation, rules: Some(rules), ..ActivePolicy::default() }));
        settings.cluster.zones = zones;
        settings.forget_zones();
        self.settings_changed(effects);
        Outcome::Policy(generation)
    }

    pub(super) fn change_members(&mut self, change: &MemberChange, unix_ms: u64, effects: &mut Effects) -> Outcome {
        let settings = &mut self.settings;
        let cluster = &mut settings.cluster;
        let initialized = !cluster.cluster_id.is_empty();
        let outcome = match change {
            MemberChange::Init { .. } if initialized => Outcome::Conflict,
            MemberChange::Init { cluster_id, .. } if cluster_id.is_empty() => {
                Outcome::Invalid("the cluster id cannot be empty".to_owned())
            }
            MemberChange::Init { cluster_id, member } => {
                cluster.cluster_id.clone_from(cluster_id);
                cluster.members.insert(MemberId(1), member.clone());
                cluster.next_member = 2;
                Outcome::Member(MemberId(1))
            }
            _ if !initialized => Outcome::Invalid("the cluster is not initialized".to_owned()),
            MemberChange::Token { secret_digest, expires_unix_ms } => {
                cluster.tokens.retain(|(digest, end)| *end > unix_ms && digest != secret_digest);
                if cluster.tokens.len() >= MAX_JOIN_TOKENS {
                    return Outcome::Full;
                }
                cluster.tokens.push((secret_digest.clone(), *expires_unix_ms));
                Outcome::Accepted
            }
            MemberChange::Join(member) => {
                if cluster.members.values().any(|m| m.name == member.name) {
                    return Outcome::Conflict;
                }
                let id = MemberId(cluster.next_member);
                cluster.next_member += 1;
                cluster.members.insert(id, member.clone());
                Outcome::Member(id)
            }
            MemberChange::Leave(id) => {
                if cluster.members.remove(id).is_none() {
                    return Outcome::Invalid(format!("there is no member {id}"));
                }
                self.dedup.remove(*id);
                cluster.member_zones.remove(id);
                settings.forget_zones();
                Outcome::Accepted
            }
            MemberChange::Zones { member, zones } => settings.set_member_zones(*member, zones),
        };
        self.settings_changed(effects);
        outcome
    }

    /// Makes this the state of a new cluster with one member: the others are removed, their ids are never used again, and
    /// all join tokens are void. For a state that no other member has.
    pub(crate) fn force_new_cluster(&mut self, cluster_id: &str, member: MemberId, effects: &mut Effects) {
        let cluster = &mut self.settings.cluster;
        cluster_id.clone_into(&mut cluster.cluster_id);
        cluster.tokens.clear();
        let gone: Vec<MemberId> = cluster.members.keys().copied().filter(|id| *id != member).collect();
        for id in gone {
            cluster.members.remove(&id);
            cluster.member_zones.remove(&id);
            self.dedup.remove(id);
        }
        self.settings.forget_zones();
        self.settings_changed(effects);
    }

    /// Whether this id was that of a member that has left. Its late batches have no effect.
    pub(super) fn has_left(&self, id: MemberId) -> bool {
        self.settings.cluster.has_left(id)
    }
}
