//! What members report of the candidate with each renewal of their leases, as the leader knows it.

use std::collections::BTreeMap;
use std::sync::Arc;

use palisade_engine::policy::PolicyHash;
use palisade_engine::{MemberId, PolicyReport};
use palisade_proto::member::v1 as wire;
use parking_lot::Mutex;

/// Maximum length of a reason, in bytes.
const MAX_REASON_BYTES: usize = 512;

/// Each member's last report.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reports(Arc<Mutex<BTreeMap<MemberId, PolicyReport>>>);

impl Reports {
    /// Notes a report. Members that have left are forgotten with the others' next reports.
    pub(crate) fn record(&self, member: MemberId, report: PolicyReport, is_member: impl Fn(MemberId) -> bool) {
        let mut all = self.0.lock();
        all.retain(|id, _| is_member(*id));
        all.insert(member, report);
    }

    /// The reports of this policy: the reasons of those that refused it.
    pub(crate) fn of(&self, hash: PolicyHash) -> BTreeMap<MemberId, Option<String>> {
        let all = self.0.lock();
        let these = all.iter().filter(|(_, report)| report.hash == hash);
        these.map(|(id, report)| (*id, report.refused.clone())).collect()
    }
}

/// A report for the wire.
pub(crate) fn report_out(report: PolicyReport) -> wire::PolicyReport {
    let refused = report.refused.map(|mut reason| {
        let end = (0..=MAX_REASON_BYTES.min(reason.len())).rev().find(|at| reason.is_char_boundary(*at));
        reason.truncate(end.unwrap_or(0));
        reason
    });
    wire::PolicyReport { hash: report.hash.0.to_vec().into(), refused }
}

/// A report from the wire; `None` if it is not one.
pub(crate) fn report_in(report: wire::PolicyReport) -> Option<PolicyReport> {
    let hash = hash_in(&report.hash)?;
    // A longer one is another program's: the refusal counts, not its text.
    let refused = report.refused.map(|reason| if reason.len() > MAX_REASON_BYTES { String::new() } else { reason });
    Some(PolicyReport { hash, refused })
}

/// A hash from the wire.
pub(crate) fn hash_in(bytes: &[u8]) -> Option<PolicyHash> {
    bytes.try_into().ok().map(PolicyHash)
}
