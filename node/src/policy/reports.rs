//! What members report of the candidate with each renewal of their leases, as the leader knows it.

use std::collections::BTreeMap;
use std::sync::Arc;

use palisade_engine::policy::PolicyHash;
use palisade_engine::{MemberId, PolicyReport};
use parking_lot::Mutex;

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
