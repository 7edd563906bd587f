//! The register of zones: a number for each name that a policy, or a member's node.toml, gives to interfaces.
//!
//! Sessions keep the numbers of their zones, so a number means the same zone as long as there are others left: it is given
//! again only when all 65,534 have been given. A name that neither a policy (of those that are kept) nor a member uses any
//! longer is forgotten, so that misspelt names do not stay for ever.

use std::collections::{BTreeSet, HashSet};

use super::{InvalidReason, Outcome, Register};
use crate::id::MemberId;

/// Maximum number of zones that one member's interfaces can be in.
pub(super) const MAX_MEMBER_ZONES: usize = 4096;

/// Maximum length of a zone's name, in bytes.
const MAX_NAME_BYTES: usize = 63;

/// The cluster would have more zone names than there are numbers.
pub(super) struct TooManyZones;

impl From<TooManyZones> for InvalidReason {
    fn from(_: TooManyZones) -> InvalidReason {
        InvalidReason::TooManyZones
    }
}

/// Gives numbers to zones: known names keep theirs, others get the next ones, in their order.
pub(super) fn register<'a>(
    zones: &mut Vec<String>,
    names: impl IntoIterator<Item = &'a String>,
) -> Result<(), TooManyZones> {
    let known: HashSet<&str> = zones.iter().map(String::as_str).collect();
    let mut new: Vec<String> = Vec::new();
    let mut seen = HashSet::new();
    for name in names {
        if !known.contains(name.as_str()) && seen.insert(name) {
            new.push(name.clone());
        }
    }
    let mut forgotten = 1;
    for name in new {
        // The number 0 is that of no zone, and 65,535 is not given.
        if zones.len() < usize::from(u16::MAX) {
            zones.push(name);
            continue;
        }
        forgotten += zones.iter().skip(forgotten).position(String::is_empty).ok_or(TooManyZones)?;
        zones[forgotten] = name;
    }
    Ok(())
}

/// Whether a zone can have this name: as in node.toml and in a policy.
pub(super) fn is_valid(name: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.len() <= MAX_NAME_BYTES
        && name.chars().all(good)
        && name != "any"
}

impl Register {
    /// Takes the zones that a member's interfaces are in, in place of those that it named before.
    pub(super) fn set_member_zones(&mut self, member: MemberId, names: &[String]) -> Outcome {
        if !self.cluster.members.contains_key(&member) {
            return Outcome::Invalid(InvalidReason::NoMember(member));
        }
        if names.len() > MAX_MEMBER_ZONES {
            return Outcome::Invalid(InvalidReason::TooManyMemberZones);
        }
        if let Some(bad) = names.iter().position(|name| !is_valid(name)) {
            return Outcome::Invalid(InvalidReason::ZoneName(bad as u32));
        }
        let names: BTreeSet<String> = names.iter().cloned().collect();
        if self.cluster.member_zones.get(&member).is_some_and(|known| known.iter().eq(&names)) {
            return Outcome::Accepted;
        }
        let mut zones = self.cluster.zones.clone();
        if let Err(error) = register(&mut zones, &names) {
            return Outcome::Invalid(error.into());
        }
        self.cluster.zones = zones;
        self.cluster.member_zones.insert(member, names.into_iter().collect());
        self.forget_zones();
        Outcome::Accepted
    }

    /// Forgets the zones that nobody names any longer.
    pub(super) fn forget_zones(&mut self) {
        let cluster = &mut self.cluster;
        let by_policies = cluster.policies.iter().flat_map(|policy| &policy.zones);
        let by_candidate = cluster.candidate.iter().flat_map(|candidate| &candidate.zones);
        let named = by_policies.chain(by_candidate).chain(cluster.member_zones.values().flatten());
        let named: HashSet<&str> = named.map(String::as_str).collect();
        for zone in &mut cluster.zones {
            if !named.contains(zone.as_str()) {
                zone.clear();
            }
        }
    }
}
