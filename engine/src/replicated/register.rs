//! The register: what administrators change, and what members say of themselves. Policies, zones, members.

use std::collections::BTreeMap;

use crate::cluster_state::{ClusterState, MemberInfo};
use super::settings::SettingsChunk;
use crate::digest::{Kind, element};
use crate::id::{Generation, MemberId};

/// The part of the state that only administrators change.
#[derive(Clone, Default)]
pub(super) struct Register {
    pub(super) cluster: ClusterState,
    pub(super) generation: Generation,
}

impl Register {
    pub(super) fn digest(&self) -> u64 {
        let cluster = &self.cluster;
        let policies: BTreeMap<_, _> =
            cluster.policies.iter().map(|p| (p.generation, (&p.text, &p.author, p.unix_ms, &p.zones))).collect();
        let members: &BTreeMap<MemberId, MemberInfo> = &cluster.members;
        let sum = element(
            Kind::Register,
            &(
                &cluster.cluster_id,
                members,
                &cluster.tokens,
                policies,
                &cluster.zones,
                &cluster.member_zones,
                self.generation,
                cluster.next_member,
            ),
        );
        sum.wrapping_add(element(Kind::Settings, &SettingsChunk::from(&cluster.settings)))
    }
}
