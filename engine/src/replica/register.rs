//! Policies, zones and members.

use std::sync::Arc;

use super::{MemberChange, Outcome, PolicyChange, Replica};
use crate::active_policy::ActivePolicy;
use crate::cluster_state::PolicyRecord;
use crate::id::{Generation, MemberId, ZoneId};
use crate::policy::{Compiled, Policy};

/// Policies kept, the one in force included.
const HISTORY: usize = 32;

/// Longest policy text.
pub(super) const POLICY_TEXT: usize = 8 << 20;

/// Most join tokens.
const TOKENS: usize = 64;

/// Numbers the zones that a policy names: known names keep theirs, new ones are appended.
fn number(zones: &mut Vec<String>, names: &[String]) -> Result<(), String> {
    for name in names {
        if !zones.contains(name) {
            zones.push(name.clone());
        }
    }
    match u16::try_from(zones.len()) {
        Ok(_) => Ok(()),
        Err(_) => Err("a cluster can have at most 65,534 zone names".to_owned()),
    }
}

/// Parses and compiles a policy against the zone register.
pub(super) fn compile(text: &str, zones: &mut Vec<String>) -> Result<Compiled, String> {
    let policy = Policy::parse("policy", text).map_err(|e| e.to_string())?;
    number(zones, policy.zones())?;
    Ok(policy.compile(&mut |name| zone(zones, name)))
}

fn zone(zones: &[String], name: &str) -> ZoneId {
    let number = zones.iter().skip(1).position(|z| z == name).and_then(|n| u16::try_from(n + 1).ok());
    number.map_or(ZoneId::UNKNOWN, ZoneId)
}

/// The packet path's form of a policy.
pub(super) fn active_policy(generation: Generation, rules: Option<Compiled>, zones: &[String]) -> ActivePolicy {
    let zones = zones.iter().skip(1).map(|name| (name.clone(), zone(zones, name))).collect();
    ActivePolicy { generation, rules, zones }
}

impl Replica {
    pub(super) fn policy(&mut self, change: &PolicyChange, unix_ms: u64) -> Outcome {
        let settings = &mut self.settings;
        if change.base != settings.generation {
            return Outcome::Stale(settings.generation);
        }
        if change.text.len() > POLICY_TEXT {
            return Outcome::Invalid(format!("a policy can have at most {POLICY_TEXT} bytes"));
        }
        let mut zones = settings.cluster.zones.clone();
        let rules = match compile(&change.text, &mut zones) {
            Ok(rules) => rules,
            Err(why) => return Outcome::Invalid(why),
        };
        let generation = Generation(settings.generation.0 + 1);
        settings.generation = generation;
        settings.cluster.policies.push(Arc::new(PolicyRecord {
            generation,
            text: change.text.clone(),
            author: change.author.clone(),
            unix_ms,
        }));
        let old = settings.cluster.policies.len().saturating_sub(HISTORY);
        settings.cluster.policies.drain(..old);
        let active_policy = active_policy(generation, Some(rules), &zones);
        settings.cluster.zones = zones;
        self.engine.activate(active_policy);
        self.settings_changed();
        Outcome::Policy(generation)
    }

    pub(super) fn member(&mut self, change: &MemberChange, unix_ms: u64) -> Outcome {
        let settings = &mut self.settings;
        let cluster = &mut settings.cluster;
        let founded = !cluster.cluster_id.is_empty();
        let outcome = match change {
            MemberChange::Init { .. } if founded => Outcome::Conflict,
            MemberChange::Init { cluster_id, .. } if cluster_id.is_empty() => {
                Outcome::Invalid("a cluster's id can not be empty".to_owned())
            }
            MemberChange::Init { cluster_id, member } => {
                cluster.cluster_id.clone_from(cluster_id);
                cluster.members.insert(MemberId(1), member.clone());
                settings.next_member = 2;
                Outcome::Member(MemberId(1))
            }
            _ if !founded => Outcome::Invalid("the cluster is not initialised".to_owned()),
            MemberChange::Token { secret_digest, expires_unix_ms } => {
                cluster.tokens.retain(|(digest, end)| *end > unix_ms && digest != secret_digest);
                if cluster.tokens.len() >= TOKENS {
                    return Outcome::Full;
                }
                cluster.tokens.push((secret_digest.clone(), *expires_unix_ms));
                Outcome::Accepted
            }
            MemberChange::Join(member) => {
                if cluster.members.values().any(|m| m.name == member.name) {
                    return Outcome::Conflict;
                }
                let id = MemberId(settings.next_member);
                settings.next_member += 1;
                cluster.members.insert(id, member.clone());
                Outcome::Member(id)
            }
            MemberChange::Leave(id) => {
                if cluster.members.remove(id).is_none() {
                    return Outcome::Invalid(format!("there is no member {id}"));
                }
                self.windows.forget(*id);
                Outcome::Accepted
            }
        };
        self.settings_changed();
        outcome
    }

    /// Makes this the state of a new cluster that `member` goes on with alone: the others are struck off, their ids are
    /// never used again, and no join token is good any longer. For a state that no other member has.
    pub fn force_new_cluster(&mut self, cluster_id: &str, member: MemberId) {
        let cluster = &mut self.settings.cluster;
        cluster_id.clone_into(&mut cluster.cluster_id);
        cluster.tokens.clear();
        let gone: Vec<MemberId> = cluster.members.keys().copied().filter(|id| *id != member).collect();
        for id in gone {
            cluster.members.remove(&id);
            self.windows.forget(id);
        }
        self.settings_changed();
    }

    /// Was this id a member's that left? Its late batches count no more.
    pub(super) fn has_left(&self, id: MemberId) -> bool {
        let cluster = &self.settings.cluster;
        !cluster.cluster_id.is_empty() && id.0 < self.settings.next_member && !cluster.members.contains_key(&id)
    }
}
