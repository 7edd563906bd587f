//! What the cluster has agreed on besides the sessions: members, policies, zones.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::id::{Generation, MemberId, ZoneId};
use crate::level::{Capabilities, Level};
use crate::policy::PolicyHash;
use crate::replicated::SettingsRecord;

/// What the cluster has agreed on.
#[derive(Clone, Debug, Default)]
pub struct ClusterState {
    /// The cluster's id; empty before `Init`.
    pub cluster_id: String,
    /// The members by id.
    pub members: BTreeMap<MemberId, MemberInfo>,
    /// Those of them that have joined and never forwarded a packet, each with the request by which it joined. A member leaves this
    /// list when the log takes that it resumes, which is before its first lease.
    pub joining: BTreeMap<MemberId, JoinRequest>,
    /// The id of the next machine that joins. Ids are never used again.
    pub next_member: u64,
    /// Join secrets: digest and end (Unix milliseconds).
    pub tokens: Vec<(Vec<u8>, u64)>,
    /// The policies, oldest first (at most the last 32), the last one in force.
    pub policies: Vec<Arc<PolicyRecord>>,
    /// The policy that members compile, to be put in force next.
    pub candidate: Option<Arc<Candidate>>,
    /// Zone names by number. Number 0 is [`ZoneId::UNKNOWN`]; it and those that were forgotten have no name.
    pub zones: Vec<String>,
    /// The zones that each member's interfaces are in, sorted. A member that has not named them yet is missing.
    pub member_zones: BTreeMap<MemberId, Vec<String>>,
    /// The level in force.
    pub level: Level,
    /// What each member can. One that has not started since it joined is missing.
    pub capabilities: BTreeMap<MemberId, Capabilities>,
    /// The settings.
    pub settings: SettingsRecord,
    /// A field of level 2. 0: none.
    #[cfg(feature = "next-level")]
    pub note: u64,
}

impl ClusterState {
    /// The number of a zone; [`ZoneId::UNKNOWN`] if neither a policy nor a member has named it.
    #[must_use]
    pub fn zone(&self, name: &str) -> ZoneId {
        zone_number(&self.zones, name)
    }

    /// The id of the member with this name.
    #[must_use]
    pub fn member_named(&self, name: &str) -> Option<MemberId> {
        self.members.iter().find(|(_, info)| info.name == name).map(|(id, _)| *id)
    }

    /// A member's name, for people; of one that has left, its number.
    #[must_use]
    pub fn member_name(&self, id: MemberId) -> String {
        self.members.get(&id).map_or_else(|| format!("member {id}"), |info| info.name.clone())
    }

    /// The highest level that every member knows; that in force while one has not registered what it can.
    #[must_use]
    pub fn possible_level(&self) -> Level {
        let known = |id| self.capabilities.get(id).map_or(self.level, |capabilities| capabilities.highest);
        self.members.keys().map(known).min().unwrap_or(self.level).max(self.level)
    }
}

/// The number of a zone in a register of zones, or [`ZoneId::UNKNOWN`] if it has none.
pub(crate) fn zone_number(zones: &[String], name: &str) -> ZoneId {
    let number = zones.iter().position(|zone| zone == name).filter(|_| !name.is_empty());
    number.and_then(|n| u16::try_from(n).ok()).map_or(ZoneId::UNKNOWN, ZoneId)
}

impl ClusterState {
    /// Whether this id was that of a member that has left or was removed. Ids are never used again, so it stays so.
    #[must_use]
    pub fn has_left(&self, id: MemberId) -> bool {
        !self.cluster_id.is_empty() && id.0 < self.next_member && !self.members.contains_key(&id)
    }

    /// Whether no other member has come yet: if this one leaves, nothing is left.
    #[must_use]
    pub fn is_last(&self, id: MemberId) -> bool {
        self.members.keys().all(|other| *other == id || self.joining.contains_key(other))
    }

    /// Whether this member may forward packets: it is a firewall, and has held a lease.
    #[must_use]
    pub fn may_forward(&self, id: MemberId) -> bool {
        self.members.get(&id).is_some_and(|info| info.role == Role::Firewall) && !self.joining.contains_key(&id)
    }
}

/// A policy that is or was in force.
#[derive(Clone, Debug)]
pub struct PolicyRecord {
    /// Its generation.
    pub generation: Generation,
    /// The hash of its text.
    pub hash: PolicyHash,
    /// Its text, as its author wrote it.
    pub text: Arc<str>,
    /// Who applied it.
    pub author: String,
    /// When it was put in force, by the leader's wall clock (Unix milliseconds).
    pub unix_ms: u64,
    /// The zones that it names.
    pub zones: Vec<String>,
    /// Members that had not compiled it when it was put in force.
    pub without: Vec<MemberId>,
}

/// A policy that is not in force yet.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The generation that it is to replace.
    pub base: Generation,
    /// The hash of its text, as its proposer says.
    pub hash: PolicyHash,
    /// Its text, as its author wrote it.
    pub text: Arc<str>,
    /// Who applied it.
    pub author: String,
    /// When, by the proposer's wall clock (Unix milliseconds).
    pub unix_ms: u64,
    /// The zones that it names, as its proposer says. Their numbers stay the same as long as it is the candidate.
    pub zones: Vec<String>,
    /// Members whose refusal does not stop it.
    pub overridden: Vec<MemberId>,
}

/// The random number of a join, which the joining machine makes once: however often it asks, it is registered once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct JoinRequest(pub [u8; 16]);

/// What the cluster knows of a member.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct MemberInfo {
    /// Its name, unique.
    pub name: String,
    /// Where the others reach it: `address:port`.
    pub address: String,
    /// What it does.
    pub role: Role,
}

/// What a member does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Role {
    /// Forwards, stores, votes.
    #[default]
    Firewall,
    /// Stores and votes.
    Witness,
}
