//! The sweep: after a change of policy the leader finds the sessions that the policy in force forbids, so that they can be
//! revoked.
//!
//! A packet of such a session is dropped at once, at each member. But the session itself would stay until it is idle, and
//! would go on if a later policy allowed it again. So the leader judges each open session of an older policy once:
//!
//! ```text
//!  a policy is in force, a leader is new ─> Engine::begin_sweep ─> Sweep::step, piece by piece ─> ids
//!                                                                                                 │ in batches
//!                                                                                                 v
//!                          RevokeForbidden(generation, ids) ─> the log ─> removed everywhere, or nowhere
//! ```
//!
//! What is judged is replicated, so that all leaders come to one result: the policy in force, the session's first packet, the
//! zone that it came from. The zone that it leaves to is a fact of each member, because another member may have another uplink.
//! So a session is forbidden only if the policy accepts it to *no* zone in which a member has an interface. This is a
//! little too mild: a session that the policy accepts to a zone that leads elsewhere stays until it is idle, and none of its packets
//! passes. To be too strict would end connections that another member carries.
//!
//! The zone that the client is in is not varied in this way. Rules are written about where clients come from; with any other zone in its
//! place, nearly every session would be allowed by some rule for the inside. Both directions are judged alike, by the first
//! packet, and so is what is related to the session. A closed session is not judged: nothing can be sent on it, and its
//! TIME_WAIT ends by itself. Half-open sessions are not replicated, and are judged again at their next step.
//!
//! A sweep changes nothing. One that is abandoned is begun anew, by this leader or the next one.

use std::sync::Arc;

use crate::active_policy::ActivePolicy;
use crate::cluster_state::ClusterState;
use crate::engine::Engine;
use crate::id::{Generation, SessionId, ZoneId, ZonePair};
use crate::policy::Action;
use crate::table::SHARDS;
use crate::tuple::Tuple;

/// Number of slots that are read under the lock of a shard: some microseconds.
const SLOTS_PER_LOCK: u32 = 64;

/// A walk over the table that finds the sessions that a policy forbids.
pub struct Sweep {
    policy: Arc<ActivePolicy>,
    /// The zones that a session may leave to: one of each group that the policy does not tell apart.
    egress: Vec<ZoneId>,
    /// The next shard and slot.
    shard: usize,
    slot: u32,
    judged: u64,
    /// What was read of one piece. Its room is kept.
    piece: Vec<Opening>,
}

/// What a session is judged by.
struct Opening {
    id: SessionId,
    /// Its first packet.
    original: Tuple,
    zones: ZonePair,
}

impl Engine {
    /// The policy generation by which sessions are to be swept, if there is one: the one in force.
    #[must_use]
    pub fn generation_to_sweep(&self) -> Option<Generation> {
        let policy = self.active_policy();
        (policy.rules.is_some() && self.may_revoke_forbidden()).then_some(policy.generation)
    }

    /// Begins a sweep by the policy in force. `None`: there are no rules to judge by.
    #[must_use]
    pub fn begin_sweep(&self) -> Option<Sweep> {
        let policy = Arc::clone(&self.active_policy());
        let egress = policy.rules.as_ref()?.distinct_egress(possible_egress(&self.cluster_state()));
        let piece = Vec::with_capacity(SLOTS_PER_LOCK as usize);
        Some(Sweep { policy, egress, shard: 0, slot: 0, judged: 0, piece })
    }
}

/// The zones in which some member has an interface; all that have a number, where a member has not named its zones yet.
fn possible_egress(cluster: &ClusterState) -> Vec<ZoneId> {
    let mut carriers = cluster.members.keys().filter(|id| cluster.may_forward(**id)).peekable();
    let all_named = carriers.peek().is_some() && carriers.all(|id| cluster.member_zones.contains_key(id));
    let has_interface = |name: &String| cluster.member_zones.values().any(|zones| zones.binary_search(name).is_ok());
    let zones = (0..=u16::MAX).map(ZoneId).zip(&cluster.zones);
    let possible = zones.filter(|(_, name)| !name.is_empty() && (!all_named || has_interface(name)));
    possible.map(|(id, _)| id).collect()
}

impl Sweep {
    /// The generation of the policy that it judges by.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.policy.generation
    }

    /// Number of sessions judged so far.
    #[must_use]
    pub fn judged(&self) -> u64 {
        self.judged
    }

    /// Judges the next piece of the table, and adds the forbidden sessions to `forbidden`. Returns whether there is more.
    ///
    /// The piece is copied under the lock of its shard, and judged without it.
    pub fn step(&mut self, engine: &Engine, forbidden: &mut Vec<SessionId>) -> bool {
        let Ok(number) = u8::try_from(self.shard) else { return false };
        self.read(engine, number);
        self.judged += self.piece.len() as u64;
        forbidden.extend(self.piece.iter().filter(|session| self.is_forbidden(session)).map(|session| session.id));
        self.shard < SHARDS
    }

    fn read(&mut self, engine: &Engine, number: u8) {
        let generation = self.policy.generation;
        self.piece.clear();
        let shard = engine.table.shard(number);
        let slots = shard.sessions.slots();
        let end = self.slot.saturating_add(SLOTS_PER_LOCK).min(slots);
        for slot in self.slot..end {
            let Some(session) = shard.sessions.get(slot) else { continue };
            let replicated = session.replicated();
            // What was opened under this policy was judged by it.
            if session.is_open() && replicated.generation() < generation {
                self.piece.push(Opening { id: session.id(), original: *session.original(), zones: replicated.zones() });
            }
        }
        (self.shard, self.slot) = if end >= slots { (self.shard + 1, 0) } else { (self.shard, end) };
    }

    fn is_forbidden(&self, session: &Opening) -> bool {
        let ZonePair { ingress, egress } = session.zones;
        let accepts = |to| self.policy.decide(ingress, to, &session.original).action == Action::Accept;
        // Nearly all are accepted where they went so far.
        !accepts(egress) && !self.egress.iter().any(|zone| accepts(*zone))
    }
}
