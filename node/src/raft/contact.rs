//! When each member last renewed its lease with this one, the leader.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use palisade_engine::{MemberId, Time};
use parking_lot::Mutex;

use crate::clock;

/// How recent a contact must be to count: members renew their lease four times a second.
pub(crate) const CONTACT_FRESH: Duration = Duration::from_secs(1);

/// When each member last renewed its lease with this one, while this one led. Without that a member's lease runs out.
#[derive(Clone, Debug, Default)]
pub(crate) struct LastContact(Arc<Mutex<BTreeMap<MemberId, Contact>>>);

#[derive(Clone, Copy, Debug)]
struct Contact {
    at: Time,
    /// The term in which this member led.
    term: u64,
    accepts_leadership: bool,
}

impl LastContact {
    /// Notes that a member has just renewed its lease, with the leader of this term.
    pub(crate) fn record(&self, member: MemberId, term: u64, accepts_leadership: bool) {
        self.0.lock().insert(member, Contact { at: clock::now(), term, accepts_leadership });
    }

    /// The time of a member's last contact, but not before `begin`.
    pub(crate) fn since(&self, member: MemberId, begin: Time) -> Time {
        self.0.lock().get(&member).map_or(begin, |contact| begin.max(contact.at))
    }

    /// Whether a member accepts leadership; `None` without a recent contact in this term.
    pub(crate) fn accepts_leadership(&self, member: MemberId, term: u64) -> Option<bool> {
        let contact = self.0.lock().get(&member).copied();
        let fresh = contact.filter(|c| c.term == term && clock::now().since(c.at) < CONTACT_FRESH);
        fresh.map(|contact| contact.accepts_leadership)
    }
}
