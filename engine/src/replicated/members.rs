//! The members: who may join, who is there, who has left.

use super::{Effects, InvalidReason, Join, MemberChange, Outcome, StateMachine};
use crate::cluster_state::{ClusterState, MemberInfo};
use crate::id::MemberId;
use crate::level::Level;

/// Maximum number of join tokens.
const MAX_JOIN_TOKENS: usize = 64;
/// Maximum length of a member's name, in bytes.
const MAX_NAME_BYTES: usize = 63;
/// Maximum length of a member's address, in bytes: a host name of DNS and a port.
const MAX_ADDRESS_BYTES: usize = 255;

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
            MemberChange::Join(join) => cluster.join(join, unix_ms),
            MemberChange::Update { member, name, address } => {
                cluster.update(*member, name.as_deref(), address.as_deref())
            }
            MemberChange::Leave(id) => {
                if cluster.members.remove(id).is_none() {
                    return Outcome::Invalid(InvalidReason::NoMember(*id));
                }
                self.dedup.remove(*id);
                cluster.joining.remove(id);
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
        cluster.joining.clear();
        // Nobody is left who said that it should come into force.
        cluster.candidate = None;
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

    /// A member resumes, as each does before its first lease: from now on it may forward packets.
    pub(super) fn has_come(&mut self, id: MemberId, effects: &mut Effects) {
        if self.register.cluster.joining.remove(&id).is_some() {
            self.register_changed(effects);
        }
    }

    /// Whether this id was that of a member that has left. Its late batches have no effect.
    pub(super) fn has_left(&self, id: MemberId) -> bool {
        self.register.cluster.has_left(id)
    }
}

impl ClusterState {
    fn join(&mut self, join: &Join, unix_ms: u64) -> Outcome {
        let Join { request, secret_digest, member } = join;
        let known = self.joining.iter().find(|(_, joined)| *joined == request).map(|(id, _)| *id);
        let valid = |(digest, end): &(Vec<u8>, u64)| digest == secret_digest && *end > unix_ms;
        if known.is_none() && !self.tokens.iter().any(valid) {
            return Outcome::Invalid(InvalidReason::JoinToken);
        }
        if !is_valid(&member.name, &member.address) {
            return Outcome::Invalid(InvalidReason::MemberInfo);
        }
        if self.is_taken(known, member) {
            return Outcome::Conflict;
        }
        let id = known.unwrap_or(MemberId(self.next_member));
        self.next_member = self.next_member.max(id.0 + 1);
        self.joining.insert(id, *request);
        self.members.insert(id, member.clone());
        Outcome::Member(id)
    }

    fn update(&mut self, id: MemberId, name: Option<&str>, address: Option<&str>) -> Outcome {
        let Some(member) = self.members.get(&id) else { return Outcome::Invalid(InvalidReason::NoMember(id)) };
        let mut new = member.clone();
        if let Some(name) = name {
            name.clone_into(&mut new.name);
        }
        if let Some(address) = address {
            address.clone_into(&mut new.address);
        }
        if !is_valid(&new.name, &new.address) {
            return Outcome::Invalid(InvalidReason::MemberInfo);
        }
        if self.is_taken(Some(id), &new) {
            return Outcome::Conflict;
        }
        self.members.insert(id, new);
        Outcome::Accepted
    }

    /// Whether another member than `but` has this name or this address.
    fn is_taken(&self, but: Option<MemberId>, info: &MemberInfo) -> bool {
        let mut others = self.members.iter().filter(|(id, _)| Some(**id) != but);
        others.any(|(_, other)| other.name == info.name || other.address == info.address)
    }
}

/// Whether a member can have this name and this address. Deliberately less strict than node.toml, which has the exact rules.
fn is_valid(name: &str, address: &str) -> bool {
    let text = |text: &str, most: usize| (1..=most).contains(&text.len()) && !text.chars().any(char::is_control);
    let port =
        address.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then_some(port)?.parse::<u16>().ok());
    text(name, MAX_NAME_BYTES) && text(address, MAX_ADDRESS_BYTES) && port.is_some_and(|port| port > 0)
}
