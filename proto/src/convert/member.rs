//! Conversion of the messages between members.

use palisade_engine::policy::PolicyHash;
use palisade_engine::{Level, Levels, MemberId, MemberInfo, PolicyReport, Role, SessionId};

use crate::member::v1 as wire;

/// Why a message from another member is invalid.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MemberError {
    /// A required field is missing.
    #[error("the field `{0}` is missing")]
    Missing(&'static str),
    /// A member's name or address is empty or too long.
    #[error("the member's {0} is empty or longer than 255 bytes")]
    Text(&'static str),
    /// A member's role is unknown to this version.
    #[error("the member's role {0} is unknown")]
    Role(i32),
    /// A hash has another length.
    #[error("a policy's hash of {0} bytes")]
    PolicyHash(usize),
}

/// Maximum length of the reason for which a member refuses a policy, in bytes.
const MAX_REASON_BYTES: usize = 512;

/// Maximum length of a member's name and of its address, in bytes.
const MAX_TEXT_BYTES: usize = 255;

/// The hash of a policy.
///
/// # Errors
/// [`MemberError::PolicyHash`]
pub fn policy_hash(bytes: &[u8]) -> Result<PolicyHash, MemberError> {
    bytes.try_into().map(PolicyHash).map_err(|_| MemberError::PolicyHash(bytes.len()))
}

impl From<PolicyReport> for wire::PolicyReport {
    fn from(report: PolicyReport) -> wire::PolicyReport {
        let refused = report.refused.map(|mut reason| {
            let end = (0..=MAX_REASON_BYTES.min(reason.len())).rev().find(|at| reason.is_char_boundary(*at));
            reason.truncate(end.unwrap_or(0));
            reason
        });
        wire::PolicyReport { hash: report.hash.0.to_vec().into(), refused }
    }
}

impl TryFrom<wire::PolicyReport> for PolicyReport {
    type Error = MemberError;

    fn try_from(report: wire::PolicyReport) -> Result<PolicyReport, MemberError> {
        // A longer reason is another program's: that it refuses counts, not its text.
        let refused = report.refused.map(|reason| if reason.len() > MAX_REASON_BYTES { String::new() } else { reason });
        Ok(PolicyReport { hash: policy_hash(&report.hash)?, refused })
    }
}

impl From<&MemberInfo> for wire::MemberInfo {
    fn from(info: &MemberInfo) -> wire::MemberInfo {
        wire::MemberInfo {
            name: info.name.clone(),
            address: info.address.clone(),
            role: match info.role {
                Role::Firewall => wire::Role::Firewall,
                Role::Witness => wire::Role::Witness,
            }
            .into(),
        }
    }
}

impl TryFrom<wire::MemberInfo> for MemberInfo {
    type Error = MemberError;

    fn try_from(info: wire::MemberInfo) -> Result<MemberInfo, MemberError> {
        let role = match wire::Role::try_from(info.role) {
            Ok(wire::Role::Firewall) => Role::Firewall,
            Ok(wire::Role::Witness) => Role::Witness,
            Ok(wire::Role::Unspecified) | Err(_) => return Err(MemberError::Role(info.role)),
        };
        for (text, what) in [(&info.name, "name"), (&info.address, "address")] {
            if text.is_empty() || text.len() > MAX_TEXT_BYTES {
                return Err(MemberError::Text(what));
            }
        }
        Ok(MemberInfo { name: info.name, address: info.address, role })
    }
}

/// A level, as it stands in a message; 0, which is none, if the message has none.
#[must_use]
pub fn level(number: u32) -> Level {
    Level(u16::try_from(number).unwrap_or(u16::MAX))
}

impl From<Levels> for wire::Levels {
    fn from(levels: Levels) -> wire::Levels {
        wire::Levels { lowest: levels.lowest.0.into(), highest: levels.highest.0.into() }
    }
}

impl From<wire::Levels> for Levels {
    fn from(levels: wire::Levels) -> Levels {
        Levels { lowest: level(levels.lowest), highest: level(levels.highest) }
    }
}

impl From<&[SessionId]> for wire::Sessions {
    fn from(ids: &[SessionId]) -> wire::Sessions {
        let ids = ids.iter().map(|id| wire::sessions::Id { member: id.member.0, counter: id.counter }).collect();
        wire::Sessions { ids, applied: 0 }
    }
}

impl From<wire::Sessions> for Vec<SessionId> {
    fn from(sessions: wire::Sessions) -> Vec<SessionId> {
        sessions.ids.iter().map(|id| SessionId { member: MemberId(id.member), counter: id.counter }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn member_info_is_validated() {
        let info = MemberInfo { name: "fw1".to_owned(), address: "192.0.2.1:7946".to_owned(), role: Role::Witness };
        let wire = wire::MemberInfo::from(&info);
        assert_eq!(MemberInfo::try_from(wire.clone()).unwrap(), info);

        let unnamed = wire::MemberInfo { name: String::new(), ..wire.clone() };
        assert_eq!(MemberInfo::try_from(unnamed), Err(MemberError::Text("name")));
        let long = wire::MemberInfo { address: "x".repeat(256), ..wire.clone() };
        assert_eq!(MemberInfo::try_from(long), Err(MemberError::Text("address")));
        let strange = wire::MemberInfo { role: 77, ..wire.clone() };
        assert_eq!(MemberInfo::try_from(strange), Err(MemberError::Role(77)));
        let none = wire::MemberInfo { role: 0, ..wire };
        assert_eq!(MemberInfo::try_from(none), Err(MemberError::Role(0)));
    }
}
