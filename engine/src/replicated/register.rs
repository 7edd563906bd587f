//! The register: what administrators change, and what members say of themselves. Policies, zones, members.

use std::collections::BTreeMap;

use super::settings::SettingsChunk;
use crate::cluster_state::{ClusterState, MemberInfo};
use crate::digest::{Kind, element};
use crate::id::{Generation, MemberId};
use crate::level::Level;

/// The part of the state that only administrators change.
#[derive(Clone, Default)]
pub(super) struct Register {
    pub(super) cluster: ClusterState,
    pub(super) generation: Generation,
}

impl Register {
    /// Of a policy's text the hash takes part: there may be 32 of 4 MiB.
    pub(super) fn digest(&self) -> u64 {
        let cluster = &self.cluster;
        let policies: BTreeMap<_, _> = cluster
            .policies
            .iter()
            .map(|p| (p.generation, (&p.hash, &p.author, p.unix_ms, &p.zones, &p.without)))
            .collect();
        let candidate = cluster.candidate.as_ref();
        let candidate = candidate.map(|c| (c.base, &c.hash, &c.author, c.unix_ms, &c.zones, &c.overridden));
        let members: &BTreeMap<MemberId, MemberInfo> = &cluster.members;
        // What later levels add has elements of its own, and none while it has its default: so a raise of the level changes no
        // existing hash.
        let mut sum = element(
            Kind::Register,
            &(
                &cluster.cluster_id,
                members,
                &cluster.joining,
                &cluster.tokens,
                policies,
                candidate,
                &cluster.zones,
                &cluster.member_zones,
                self.generation,
                cluster.next_member,
            ),
        );
        if cluster.level != Level::FIRST {
            sum = sum.wrapping_add(element(Kind::Level, &cluster.level));
        }
        if cluster.settings.revision > 0 {
            sum = sum.wrapping_add(element(Kind::Settings, &SettingsChunk::from(&cluster.settings)));
        }
        #[cfg(feature = "next-level")]
        if cluster.note != 0 {
            sum = sum.wrapping_add(element(Kind::Note, &cluster.note));
        }
        let capabilities = cluster.capabilities.iter().map(|entry| element(Kind::Capabilities, &entry));
        capabilities.fold(sum, u64::wrapping_add)
    }
}
