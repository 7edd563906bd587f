//! Conversion of the messages between members.

use palisade_engine::policy::PolicyHash;
use palisade_engine::replica::Batch;
use palisade_engine::{
    DecodeError, EncodeError, Hint, Level, MemberId, MemberInfo, PolicyReport, Progress, Role, SessionId,
};

use crate::member::v1 as wire;

/// Why a message from another member is invalid.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MemberError {
    /// A required field is missing.
    #[error("the field `{0}` is missing")]
    Missing(&'static str),
    /// A batch of commands cannot be read: damaged, or of an unknown version.
    #[error("a batch of commands cannot be read: {0}")]
    Batch(#[source] DecodeError),
    /// A batch cannot be written.
    #[error("a batch of commands cannot be written: {0}")]
    BatchEncode(#[source] EncodeError),
    /// A hint cannot be read.
    #[error("a hint cannot be read: {0}")]
    Hint(#[source] postcard::Error),
    /// A session's progress cannot be read.
    #[error("a session's progress cannot be read: {0}")]
    Progress(#[source] postcard::Error),
    /// A hint or a progress cannot be written.
    #[error("it cannot be encoded: {0}")]
    Encode(#[source] postcard::Error),
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

/// A batch of commands as bytes: in the log's entries and in proposals.
///
/// # Errors
/// [`MemberError::BatchEncode`]; no existing value causes it.
pub fn encode_batch(batch: &Batch) -> Result<prost::bytes::Bytes, MemberError> {
    batch.encode(Level::FIRST).map(Into::into).map_err(MemberError::BatchEncode)
}

/// The reverse of [`encode_batch`].
///
/// # Errors
/// [`MemberError::Batch`]
pub fn decode_batch(bytes: &[u8]) -> Result<Batch, MemberError> {
    Batch::decode(bytes).map_err(MemberError::Batch)
}

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

/// A hint as bytes.
///
/// # Errors
/// [`MemberError::Encode`]; no existing value causes it.
pub fn encode_hint(hint: &Hint) -> Result<prost::bytes::Bytes, MemberError> {
    postcard::to_stdvec(hint).map(Into::into).map_err(MemberError::Encode)
}

/// The reverse of [`encode_hint`].
///
/// # Errors
/// [`MemberError::Hint`]
pub fn decode_hint(bytes: &[u8]) -> Result<Hint, MemberError> {
    postcard::from_bytes(bytes).map_err(MemberError::Hint)
}

/// Appends a session's progress to those in `bytes`.
///
/// # Errors
/// [`MemberError::Encode`]; no existing value causes it.
pub fn encode_progress(progress: &Progress, bytes: &mut Vec<u8>) -> Result<(), MemberError> {
    let before = std::mem::take(bytes);
    *bytes = postcard::to_extend(progress, before).map_err(MemberError::Encode)?;
    Ok(())
}

/// The reverse of [`encode_progress`], one by one; it ends with the first one that cannot be read.
pub fn decode_progress(mut bytes: &[u8]) -> impl Iterator<Item = Result<Progress, MemberError>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        match postcard::take_from_bytes(bytes) {
            Ok((progress, rest)) => {
                bytes = rest;
                Some(Ok(progress))
            }
            Err(error) => {
                bytes = &[];
                Some(Err(MemberError::Progress(error)))
            }
        }
    })
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
    use palisade_engine::replica::Command;
    use palisade_engine::{Close, CloseCause, FragmentKey, Ip, Protocol, ZoneId};

    use super::*;

    #[test]
    fn batch_survives_encoding() {
        let id = SessionId { member: MemberId(3), counter: 7 };
        let batch = Batch {
            proposer: MemberId(2),
            first_serial: (5 << 40) | 17,
            lowest_outstanding: 5 << 40,
            unix_ms: 1,
            commands: vec![Command::Close(Close { id, cause: CloseCause::Rst }), Command::Expire(vec![id])],
        };
        let bytes = encode_batch(&batch).unwrap();
        assert_eq!(decode_batch(&bytes).unwrap(), batch);
    }

    #[test]
    fn batch_and_hint_of_damaged_bytes_are_errors() {
        assert!(matches!(decode_batch(&[0xff; 3]), Err(MemberError::Batch(_))));
        assert!(matches!(decode_hint(&[0xff; 3]), Err(MemberError::Hint(_))));
    }

    #[test]
    fn hint_survives_encoding() {
        let ip = |last| Ip::V6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        let datagram =
            FragmentKey { src: ip(1), dst: ip(2), protocol: Protocol::IPV6_FRAG, id: u32::MAX, ingress: ZoneId(3) };
        let abort = Hint::Abort(SessionId { member: MemberId(1), counter: u64::MAX });
        for hint in
            [abort, Hint::FirstFragment { datagram, end: 1448, egress: ZoneId(2) }, Hint::FragmentQuery(datagram)]
        {
            assert_eq!(decode_hint(&encode_hint(&hint).unwrap()).unwrap(), hint);
        }
    }

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
