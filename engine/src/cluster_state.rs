//! What the cluster has agreed on besides the sessions: members, policies, zones.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::id::{Generation, MemberId};

/// What the cluster has agreed on.
#[derive(Clone, Debug, Default)]
pub struct ClusterState {
    /// The cluster's id; empty before `Init`.
    pub cluster_id: String,
    /// The members by id.
    pub members: BTreeMap<MemberId, MemberInfo>,
    /// Join secrets: digest and end (Unix milliseconds).
    pub tokens: Vec<(Vec<u8>, u64)>,
    /// The policies, oldest first (at most the last 32), the last one in force.
    pub policies: Vec<Arc<PolicyRecord>>,
    /// Zone names by number; number 0 is [`ZoneId::UNKNOWN`].
    pub zones: Vec<String>,
}

/// A policy that is or was in force.
#[derive(Clone, Debug)]
pub struct PolicyRecord {
    /// Its generation.
    pub generation: Generation,
    /// Its text, as its author wrote it.
    pub text: String,
    /// Who applied it.
    pub author: String,
    /// When, by the proposer's wall clock (Unix milliseconds).
    pub unix_ms: u64,
}

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
