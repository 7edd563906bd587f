//! Whether decisions can be made: whether a majority of the voters is behind the leader, as far as this member knows.
//!
//! openraft's metrics do not say it: they name the last leader, dead or not. What counts is that a leader answered this
//! member's question for the commit index, which it does only after a majority has confirmed that it leads
//! ([`super::read_index`]).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use palisade_engine::{MemberId, Time};

use crate::lease::LEASE_DURATION;

/// How often a request that waits for a quorum looks whether there is one.
pub(crate) const QUORUM_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// When this member last asked a leader that proved that a majority follows it.
#[derive(Clone, Debug, Default)]
pub(crate) struct QuorumContact(Arc<AtomicU64>);

impl QuorumContact {
    /// Notes that a leader answered a question of this time.
    pub(crate) fn record(&self, asked: Time) {
        self.0.fetch_max(asked.0, Ordering::AcqRel);
    }

    /// Whether that was lately.
    pub(crate) fn is_fresh(&self, now: Time) -> bool {
        let asked = Time(self.0.load(Ordering::Acquire));
        asked != Time::ZERO && now.since(asked) <= LEASE_DURATION
    }
}

/// The voters, and how many of them answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quorum {
    /// Whether a majority was seen behind the leader lately.
    pub held: bool,
    /// The number of voters; while they change, of the old and new ones together.
    pub voters: usize,
    /// Those that answer this member, itself included.
    pub answering: usize,
    /// Whether a change of the voters is under way.
    pub changing: bool,
}

impl Quorum {
    /// Counts the voters that answer. `configs`: the sets of voters that need a majority each.
    pub(crate) fn count(configs: &[BTreeSet<MemberId>], held: bool, answers: impl Fn(MemberId) -> bool) -> Quorum {
        let voters: BTreeSet<MemberId> = configs.iter().flatten().copied().collect();
        let answering = voters.iter().filter(|id| answers(**id)).count();
        Quorum { held, voters: voters.len(), answering, changing: configs.len() > 1 }
    }
}

/// A request that needs a quorum, and found none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error, miette::Diagnostic)]
#[error("{}: nothing was changed", explain(.0))]
#[diagnostic(help(
    "see `palisade cluster members`; with `--wait 30s` the command waits for a quorum. If a majority is lost for good: `palisade cluster recover`"
))]
pub struct NoQuorum(pub Quorum);

/// The state of a cluster without quorum, in one clause.
#[must_use]
pub fn explain(quorum: &Quorum) -> String {
    let Quorum { voters, answering, changing, .. } = *quorum;
    let both = if changing { " (old and new ones: the voters change)" } else { "" };
    if voters == 0 {
        return "no quorum: this member has not read yet who votes".to_owned();
    }
    if answering > voters / 2 {
        return format!("no quorum: no leader is known yet, {answering} of {voters} voters answer{both}");
    }
    format!("no quorum: {answering} of {voters} voters answer{both}")
}

/// Whether at least one of these sets would have no majority that answers.
pub(crate) fn lacks_majority(voters: &BTreeSet<MemberId>, answers: impl Fn(MemberId) -> bool) -> bool {
    voters.iter().filter(|id| answers(**id)).count() * 2 <= voters.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ids: &[u64]) -> BTreeSet<MemberId> {
        ids.iter().copied().map(MemberId).collect()
    }

    #[test]
    fn quorum_contact_is_fresh_for_the_time_of_a_lease() {
        let contact = QuorumContact::default();
        let asked = Time(5_000_000_000);
        assert!(!contact.is_fresh(asked), "nobody was asked yet");
        contact.record(asked);
        assert!(contact.is_fresh(asked + LEASE_DURATION));
        assert!(!contact.is_fresh(asked + LEASE_DURATION + Duration::from_nanos(1)));
        contact.record(Time(1));
        assert!(contact.is_fresh(asked), "an older answer has no effect");
    }

    #[test]
    fn quorum_is_explained_by_the_voters_that_answer() {
        let one = |id: MemberId| id.0 == 1;
        let alone = Quorum::count(&[set(&[1, 2, 3])], false, one);
        assert_eq!(explain(&alone), "no quorum: 1 of 3 voters answer");
        let joint = Quorum::count(&[set(&[1, 2, 3]), set(&[1, 2, 4])], false, |id| id.0 < 3);
        assert_eq!(explain(&joint), "no quorum: 2 of 4 voters answer (old and new ones: the voters change)");
        let election = Quorum::count(&[set(&[1, 2, 3])], false, |_| true);
        assert_eq!(explain(&election), "no quorum: no leader is known yet, 3 of 3 voters answer");
        assert!(lacks_majority(&set(&[1, 2]), one));
        assert!(!lacks_majority(&set(&[1]), one));
    }
}
