//! The members: who may join, who is there, who has left.

use super::{Effects, InvalidReason, MemberChange, Outcome, StateMachine};
use crate::id::MemberId;
use crate::level::Level;

/// Maximum number of join tokens.
const MAX_JOIN_TOKENS: usize = 64;

impl StateMachine {
    pub(super) fn change_members(&mut self, change: &MemberChange, unix_ms: u64, effects: &mut Effects) -> Outcome {
        let register = &mut self.register;
        let cluster = &mut register.cluster;
        let initialized = !cluster.cluster_id.is_empty();
        let outcome = match change {
            MemberChange::Init { .. } if initialized => Outcome::Conflict,
            MemberChange::Init { cluster_id, .. } if cluster_id.is_empty() => {
                Outcome::Invalid(InvalidReason::NoClusterId)
            }
            MemberChange::Init { cluster_id, member, level } => {
                cluster.level = (*level).max(Level::FIRST);
                cluster.cluster_id.clone_from(cluster_id);
                cluster.members.insert(MemberId(1), member.clone());
                cluster.next_member = 2;
                Outcome::Member(MemberId(1))
            }
            _ if !initialized => Outcome::Invalid(InvalidReason::NotInitialized),
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
                    return Outcome::Invalid(InvalidReason::NoMember(*id));
                }
                self.dedup.remove(*id);
                cluster.member_zones.remove(id);
                cluster.capabilities.remove(id);
                register.forget_zones();
                Outcome::Accepted
            }
            MemberChange::Zones { member, zones } => register.set_member_zones(*member, zones),
            MemberChange::Capabilities { member, capabilities } => register.set_capabilities(*member, capabilities),
        };
        self.register_changed(effects);
        outcome
    }

    /// Makes this the state of a new cluster with one member: the others are removed, their ids are never used again, and
    /// all join tokens are void. For a state that no other member has.
    pub(crate) fn force_new_cluster(&mut self, cluster_id: &str, member: MemberId, effects: &mut Effects) {
        let cluster = &mut self.register.cluster;
        cluster_id.clone_into(&mut cluster.cluster_id);
        cluster.tokens.clear();
        let gone: Vec<MemberId> = cluster.members.keys().copied().filter(|id| *id != member).collect();
        for id in gone {
            cluster.members.remove(&id);
            cluster.member_zones.remove(&id);
            cluster.capabilities.remove(&id);
            self.dedup.remove(id);
        }
        self.register.forget_zones();
        self.register_changed(effects);
    }

    /// Whether this id was that of a member that has left. Its late batches have no effect.
    pub(super) fn has_left(&self, id: MemberId) -> bool {
        self.register.cluster.has_left(id)
    }
}
