//! Deduplication: every command takes effect once, however often its batch is in the log (Ongaro's dissertation,
//! section 6.3, "client sessions").
//!
//! Two tables: the outcomes of each proposer's serial numbers, and the ids of sessions that were removed recently.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::Outcome;
use crate::digest::{Kind, element};
use crate::id::{MemberId, SessionId};

/// Maximum number of outcomes kept of one proposer. Serial numbers further above its lowest outstanding one are refused. (A
/// proposer has a few thousand commands in flight at most.)
pub(super) const MAX_OUTSTANDING: u64 = 1 << 16;

/// Maximum number of ids of removed sessions. A late copy of an establishment is older than that many removals only if it
/// was in flight for seconds at the highest rates.
pub(super) const MAX_TOMBSTONES: usize = 1 << 16;

/// One proposer's outcomes, from its lowest outstanding serial number up.
#[derive(Clone, Default)]
pub(super) struct ProposerSession {
    pub(super) lowest_outstanding: u64,
    pub(super) outcomes: VecDeque<Option<Outcome>>,
}

/// What is known of a command's serial number.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum SerialStatus {
    New,
    Duplicate(Outcome),
    /// Below the proposer's lowest outstanding one: the outcome is no longer kept.
    Expired,
    /// Too far above the proposer's lowest outstanding one.
    OutOfRange,
}

/// All proposers' outcomes.
#[derive(Clone, Default)]
pub(super) struct DedupTable {
    pub(super) proposers: BTreeMap<MemberId, ProposerSession>,
    digest: u64,
}

impl DedupTable {
    /// Drops the outcomes below the proposer's lowest outstanding serial number.
    pub(super) fn advance(&mut self, proposer: MemberId, lowest: u64) {
        let is_new = !self.proposers.contains_key(&proposer);
        let session = self.proposers.entry(proposer).or_default();
        if is_new {
            self.digest =
                self.digest.wrapping_add(element(Kind::LowestOutstanding, &(proposer, session.lowest_outstanding)));
        }
        if lowest <= session.lowest_outstanding {
            return;
        }
        let gone =
            usize::try_from(lowest - session.lowest_outstanding).unwrap_or(usize::MAX).min(session.outcomes.len());
        for (serial, outcome) in (session.lowest_outstanding..).zip(session.outcomes.drain(..gone)) {
            if let Some(outcome) = outcome {
                self.digest = self.digest.wrapping_sub(element(Kind::Outcome, &(proposer, serial, outcome)));
            }
        }
        self.digest = self
            .digest
            .wrapping_sub(element(Kind::LowestOutstanding, &(proposer, session.lowest_outstanding)))
            .wrapping_add(element(Kind::LowestOutstanding, &(proposer, lowest)));
        session.lowest_outstanding = lowest;
    }

    pub(super) fn status(&self, proposer: MemberId, serial: u64) -> SerialStatus {
        let Some(session) = self.proposers.get(&proposer) else { return SerialStatus::OutOfRange };
        let Some(at) = serial.checked_sub(session.lowest_outstanding) else { return SerialStatus::Expired };
        if at >= MAX_OUTSTANDING {
            return SerialStatus::OutOfRange;
        }
        match usize::try_from(at).ok().and_then(|at| session.outcomes.get(at)) {
            Some(Some(outcome)) => SerialStatus::Duplicate(outcome.clone()),
            _ => SerialStatus::New,
        }
    }

    /// Records the outcome of a new serial number.
    pub(super) fn record(&mut self, proposer: MemberId, serial: u64, outcome: &Outcome) {
        let Some(session) = self.proposers.get_mut(&proposer) else { return };
        let Some(at) = serial.checked_sub(session.lowest_outstanding).filter(|at| *at < MAX_OUTSTANDING) else {
            return;
        };
        let at = at as usize;
        if session.outcomes.len() <= at {
            session.outcomes.resize(at + 1, None);
        }
        if session.outcomes[at].is_none() {
            session.outcomes[at] = Some(outcome.clone());
            self.digest = self.digest.wrapping_add(element(Kind::Outcome, &(proposer, serial, outcome)));
        }
    }

    /// Drops the outcomes of a member that has left.
    pub(super) fn remove(&mut self, proposer: MemberId) {
        let Some(session) = self.proposers.get(&proposer) else { return };
        let end = session.lowest_outstanding.saturating_add(session.outcomes.len() as u64);
        self.advance(proposer, end);
        if let Some(session) = self.proposers.remove(&proposer) {
            self.digest =
                self.digest.wrapping_sub(element(Kind::LowestOutstanding, &(proposer, session.lowest_outstanding)));
        }
    }

    /// From a snapshot's content.
    pub(super) fn rebuild(proposers: BTreeMap<MemberId, ProposerSession>) -> DedupTable {
        let mut digest = 0_u64;
        for (proposer, session) in &proposers {
            digest = digest.wrapping_add(element(Kind::LowestOutstanding, &(proposer, session.lowest_outstanding)));
            for (serial, outcome) in (session.lowest_outstanding..).zip(&session.outcomes) {
                if let Some(outcome) = outcome {
                    digest = digest.wrapping_add(element(Kind::Outcome, &(proposer, serial, outcome)));
                }
            }
        }
        DedupTable { proposers, digest }
    }

    pub(super) fn digest(&self) -> u64 {
        self.digest
    }
}

/// Ids of sessions that were removed recently, oldest first.
#[derive(Clone, Default)]
pub(super) struct Tombstones {
    order: VecDeque<SessionId>,
    ids: HashMap<SessionId, u32>,
    /// Number of removals before the first one in `order`.
    before: u64,
    digest: u64,
}

impl Tombstones {
    pub(super) fn insert(&mut self, id: SessionId) {
        if self.order.len() >= MAX_TOMBSTONES
            && let Some(old) = self.order.pop_front()
        {
            self.digest = self.digest.wrapping_sub(element(Kind::Tombstone, &(self.before, old)));
            self.before += 1;
            if let Some(count) = self.ids.get_mut(&old) {
                *count -= 1;
                if *count == 0 {
                    self.ids.remove(&old);
                }
            }
        }
        let position = self.before + self.order.len() as u64;
        self.digest = self.digest.wrapping_add(element(Kind::Tombstone, &(position, id)));
        self.order.push_back(id);
        *self.ids.entry(id).or_default() += 1;
    }

    pub(super) fn contains(&self, id: SessionId) -> bool {
        self.ids.contains_key(&id)
    }

    pub(super) fn digest(&self) -> u64 {
        self.digest
    }

    pub(super) fn before(&self) -> u64 {
        self.before
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = SessionId> {
        self.order.iter().copied()
    }

    /// A copy for a snapshot, without what only looks ids up: applying waits meanwhile.
    pub(super) fn list(&self) -> Tombstones {
        Tombstones { order: self.order.clone(), ids: HashMap::new(), before: self.before, digest: self.digest }
    }

    /// From a snapshot's content: `before` ids had been dropped.
    pub(super) fn rebuild(before: u64, ids: Vec<SessionId>) -> Tombstones {
        let mut tombstones = Tombstones { before, ..Tombstones::default() };
        ids.into_iter().for_each(|id| tombstones.insert(id));
        tombstones
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: MemberId = MemberId(3);

    #[test]
    fn dedup_keeps_outcomes_from_the_lowest_outstanding_up() {
        let mut table = DedupTable::default();
        table.advance(M, 10);
        assert_eq!(table.status(M, 9), SerialStatus::Expired);
        assert_eq!(table.status(M, 10), SerialStatus::New);
        assert_eq!(table.status(M, 10 + MAX_OUTSTANDING), SerialStatus::OutOfRange);
        table.record(M, 12, &Outcome::Full);
        table.record(M, 10, &Outcome::Accepted);
        assert_eq!(table.status(M, 10), SerialStatus::Duplicate(Outcome::Accepted));
        assert_eq!(table.status(M, 11), SerialStatus::New);
        assert_eq!(table.status(M, 12), SerialStatus::Duplicate(Outcome::Full));
        table.advance(M, 12);
        table.advance(M, 5);
        assert_eq!(table.status(M, 10), SerialStatus::Expired);
        assert_eq!(table.status(M, 12), SerialStatus::Duplicate(Outcome::Full));
        table.advance(M, u64::MAX);
        assert_eq!(table.status(M, 12), SerialStatus::Expired);
        table.remove(M);
        assert_eq!(table.digest(), 0);
    }

    #[test]
    fn dedup_digest_depends_on_content_not_on_order() {
        let (mut a, mut b) = (DedupTable::default(), DedupTable::default());
        for table in [&mut a, &mut b] {
            table.advance(M, 0);
        }
        a.record(M, 0, &Outcome::Accepted);
        a.record(M, 1, &Outcome::Full);
        b.record(M, 1, &Outcome::Full);
        assert_ne!(a.digest(), b.digest());
        b.record(M, 0, &Outcome::Accepted);
        assert_eq!(a.digest(), b.digest());
    }

    #[test]
    fn tombstones_are_bounded_and_rebuilt_equal() {
        let mut tombstones = Tombstones::default();
        let id = |n| SessionId { member: M, counter: n };
        for n in 0..MAX_TOMBSTONES as u64 + 5 {
            tombstones.insert(id(n));
        }
        assert!(!tombstones.contains(id(4)));
        assert!(tombstones.contains(id(5)));
        let again = Tombstones::rebuild(tombstones.before(), tombstones.iter().collect());
        assert_eq!(again.digest(), tombstones.digest());
        assert!(again.contains(id(5)) && !again.contains(id(4)));
    }
}
