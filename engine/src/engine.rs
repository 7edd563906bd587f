//! The public interface of the engine: what packet workers, replication and administration call.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;

use crate::active_policy::ActivePolicy;
use crate::blind_intervals::BlindIntervals;
use crate::cluster_state::ClusterState;
use crate::event::{ConnectionDecision, Event, Hint, LoggedDecision, Proposal};
use crate::id::{Generation, MemberId, SessionId, ZoneId, ZonePair, first_number};
use crate::limits::{Grace, Limits};
use crate::parse::Packet;
use crate::policy_slots::PolicySlots;
use crate::progress::{ProgressCursor, TakeoverCounters};
use crate::replicated::Settings;
use crate::rule_hits::RuleHits;
use crate::session::{Close, Counts, HalfOpen, HandshakeState, SessionInfo};
use crate::table::half_open::HalfOpenEntry;
use crate::table::session::Session;
use crate::table::{IdleReport, SHARDS, Shard, Table};
use crate::time::Time;
use crate::timeouts::Timeouts;
use crate::tuple::{PerDirection, Protocol};
use crate::types::{Config, Context, Wake};
use crate::verdict::Verdict;

/// One member's engine, shared by its workers, its replication and its administration.
pub struct Engine {
    pub(crate) config: Config,
    pub(crate) table: Table,
    /// Its generation is also in `generation`, which is cheaper to read.
    pub(crate) active_policy: ArcSwap<ActivePolicy>,
    pub(crate) policy_slots: Mutex<PolicySlots>,
    generation: AtomicU64,
    pub(crate) cluster: ArcSwap<ClusterState>,
    /// The settings that packets need.
    pub(crate) limits: Limits,
    zones_version: AtomicU64,
    /// The number of other members that forward packets.
    pub(crate) forwarding_peers: AtomicU32,
    /// The number of these members that are silent.
    pub(crate) silent_peers: AtomicU32,
    /// The intervals in which the traffic of other members is unknown.
    pub(crate) blind_intervals: ArcSwap<BlindIntervals>,
    /// The end of the last blind interval.
    pub(crate) blind_until: AtomicU64,
    /// See [`Engine::set_applied_as_of`].
    pub(crate) applied_as_of: AtomicU64,
    /// Where the next publication of progress starts.
    pub(crate) progress_cursor: Mutex<ProgressCursor>,
    pub(crate) takeover_counters: TakeoverCounters,
    /// The counter of the next session id.
    next_session: AtomicU64,
    /// Events that follow from applied commands. The next [`Engine::tick`] returns them.
    pub(crate) deferred: Mutex<Vec<Event>>,
    /// The shard that the next [`Engine::tick`] starts with.
    next_due_shard: Mutex<u8>,
    /// The shard that the next [`Engine::idle`] starts with.
    next_idle_shard: Mutex<u8>,
    timer_rescan: Mutex<TimerRescan>,
    /// How often a member started or resumed forwarding packets, as applied here.
    pub(crate) resume_epoch: AtomicU64,
}

/// The position of the incremental rescan that re-arms timers after a policy with shorter timeouts.
#[derive(Default)]
struct TimerRescan {
    shard: u8,
    slot: u32,
    shards_left: usize,
}

/// Maximum number of entries that one call processes, which takes some milliseconds. The next call continues.
const MAX_PER_TICK: u32 = 1 << 14;

/// Maximum number of entries processed under one lock, because packets wait for it.
const LOCK_BATCH: u32 = 1 << 8;

/// Maximum number of sessions copied under one lock for somebody who lists them.
const LISTED_PER_LOCK: u32 = 1 << 6;

#[cfg(feature = "next-level")]
impl Engine {
    /// The field of level 2, once that is in force.
    pub(crate) fn next_level_tag(&self, establish: &crate::session::Establish) -> u32 {
        let is_in_force = self.cluster_state().level >= crate::replicated::next_level::NEXT;
        if is_in_force { establish.rule.0 + 1 } else { 0 }
    }

    /// That field of a session.
    #[must_use]
    pub fn next_level_tag_of(&self, id: SessionId) -> Option<u32> {
        let (shard, slot) = self.table.locate(id)?;
        shard.sessions.get(slot).map(|session| session.replicated().tag())
    }
}

impl Engine {
    /// An empty engine with policy generation 0: default drop.
    #[must_use]
    pub fn new(config: Config) -> Arc<Engine> {
        Arc::new(Engine {
            table: Table::new(&config),
            next_session: AtomicU64::new(first_number(config.start)),
            config,
            active_policy: ArcSwap::from_pointee(ActivePolicy::default()),
            policy_slots: Mutex::default(),
            generation: AtomicU64::new(0),
            cluster: ArcSwap::from_pointee(ClusterState::default()),
            limits: Limits::default(),
            zones_version: AtomicU64::new(0),
            forwarding_peers: AtomicU32::new(0),
            silent_peers: AtomicU32::new(0),
            blind_intervals: ArcSwap::default(),
            blind_until: AtomicU64::new(0),
            applied_as_of: AtomicU64::new(0),
            progress_cursor: Mutex::default(),
            takeover_counters: TakeoverCounters::default(),
            deferred: Mutex::new(Vec::new()),
            next_due_shard: Mutex::default(),
            next_idle_shard: Mutex::default(),
            timer_rescan: Mutex::default(),
            resume_epoch: AtomicU64::new(0),
        })
    }

    /// Judges a packet. This is the packet path: it allocates only for new sessions, reads no clock and never blocks.
    /// Events are pushed to `events`, which the caller clears and reuses.
    pub fn process(&self, packet: &Packet, context: &mut Context<'_>, events: &mut Vec<Event>) -> Verdict {
        self.judge(packet, context, events)
    }

    /// Judges a packet that was held as [`HoldClass::Unmatched`](crate::HoldClass::Unmatched) since `since` and whose hold is over,
    /// by source, route and policy. `None`: something known here explains it now, so it only came too late.
    pub fn process_expired(
        &self,
        packet: &Packet,
        since: Time,
        context: &mut Context<'_>,
        events: &mut Vec<Event>,
    ) -> Option<Verdict> {
        self.judge_expired(packet, since, context, events)
    }

    /// Merges a peer's hint. Events that follow, such as the reply to a query or a `Close` to propose, go to `events`.
    pub fn hint(&self, now: Time, from: MemberId, hint: &Hint, events: &mut Vec<Event>, wake: &mut dyn Wake) {
        if from != self.config.member {
            self.take_hint(now, from, hint, events, wake);
        }
    }

    /// Visits all live half-open sessions. A new hint stream starts with them.
    pub fn half_opens(&self, each: &mut dyn FnMut(HalfOpen)) {
        let mut opens: Vec<HalfOpen> = Vec::new();
        for number in self.table.numbers() {
            let mut slot = Some(0);
            while let Some(from) = slot {
                // Copied, so that `each` may be slow.
                slot = read_half_opens(&self.table.shard(number), from, |h| opens.push(h.open));
                opens.drain(..).for_each(&mut *each);
            }
        }
    }

    /// Removes expired half-open sessions, collects idle sessions, proposes overdue closes, and queries the peers for first
    /// fragments. Every member calls it about ten times a second. Its cost is proportional to what is due.
    pub fn tick(&self, now: Time, events: &mut Vec<Event>) {
        events.append(&mut self.deferred.lock());
        let mut next = self.next_due_shard.lock();
        self.rescan_timers(now);
        // A policy that is activated after this point starts the next rescan.
        let policy = self.active_policy();
        let mut budget = MAX_PER_TICK;
        for _ in 0..SHARDS {
            loop {
                let max = LOCK_BATCH.min(budget);
                if max == 0 {
                    return;
                }
                let processed = self.process_due(*next, now, policy.timeouts(), max, events);
                budget -= processed;
                if processed < max {
                    break;
                }
            }
            *next = next.wrapping_add(1);
        }
    }

    /// Queries the peers for what held packets have waited for longer than a hint usually takes. To be called every few
    /// milliseconds.
    pub fn send_queries(&self, now: Time, events: &mut Vec<Event>) {
        self.table.send_queries(now, events);
    }

    /// Processes at most `max` due entries of one shard. Returns the number of processed entries.
    fn process_due(&self, number: u8, now: Time, timeouts: &Timeouts, max: u32, events: &mut Vec<Event>) -> u32 {
        let mut shard = self.table.shard(number);
        shard.fragments.send_queries(now, events);
        shard.ended.tell(events);
        let mut processed = 0;
        while processed < max
            && let Some(slot) = shard.half_open.due(now, timeouts)
        {
            if let Some(entry) = self.table.remove_half_open(&mut shard, slot) {
                self.log_unestablished(&entry, events);
            }
            processed += 1;
        }
        while processed < max
            && let Some((_, id, slot)) = shard.finished.front().copied().filter(|(due, ..)| now >= *due)
        {
            shard.finished.pop_front();
            let open = shard.sessions.get_mut(slot).filter(|s| s.id() == id && s.is_open());
            if let Some(cause) = open.and_then(|s| s.local.track.as_mut()).and_then(|t| t.take_overdue_close()) {
                events.push(Event::Propose(Proposal::Close(Close { id, cause })));
            }
            processed += 1;
        }
        while processed < max && shard.sessions.process_due(now, timeouts) {
            processed += 1;
        }
        processed
    }

    /// Logs the end of a half-open session that this member opened, if its rule says so. One of TCP never opened.
    fn log_unestablished(&self, entry: &HalfOpenEntry, events: &mut Vec<Event>) {
        let open = &entry.open;
        if open.id.member != self.config.member || matches!(open.protocol, HandshakeState::Tcp { .. }) {
            return;
        }
        let policy = self.active_policy();
        // The rule of an older policy may be logged: who writes the log finds out.
        if open.generation != policy.generation || policy.is_logged(open.rule) {
            events.push(Event::Log(LoggedDecision {
                tuple: open.original,
                zones: ZonePair { ingress: open.ingress, egress: open.egress },
                generation: open.generation,
                rule: open.rule,
                decision: ConnectionDecision::Unestablished(open.id),
            }));
        }
    }

    /// Continues the rescan that re-arms the timers of all sessions with the timeouts of the active policy.
    fn rescan_timers(&self, now: Time) {
        let mut rescan = self.timer_rescan.lock();
        let mut budget = MAX_PER_TICK;
        while rescan.shards_left > 0 && budget > 0 {
            let mut shard = self.table.shard(rescan.shard);
            // Loaded under the lock: a session that was armed with an older policy was armed before.
            let policy = self.active_policy();
            let slots = shard.sessions.slots();
            let end = rescan.slot.saturating_add(LOCK_BATCH).min(slots);
            for slot in rescan.slot..end {
                shard.sessions.arm(slot, now, policy.timeouts());
            }
            budget = budget.saturating_sub((end - rescan.slot.min(end)).max(1));
            rescan.slot = end;
            if end >= slots {
                *rescan =
                    TimerRescan { shard: rescan.shard.wrapping_add(1), slot: 0, shards_left: rescan.shards_left - 1 };
            }
        }
    }

    /// The generation of the active policy.
    #[must_use]
    pub fn generation(&self) -> Generation {
        Generation(self.generation.load(Ordering::Acquire))
    }

    /// The number of a zone, or [`ZoneId::UNKNOWN`] if neither a policy nor a member has named the zone yet. It changes only
    /// with [`Engine::zones_version`].
    #[must_use]
    pub fn zone(&self, name: &str) -> ZoneId {
        self.cluster.load().zone(name)
    }

    /// Incremented when a zone gets a number, or is forgotten.
    #[must_use]
    pub fn zones_version(&self) -> u64 {
        self.zones_version.load(Ordering::Acquire)
    }

    /// The committed members, policy and policy history, as applied here: a cheap, consistent copy.
    #[must_use]
    pub fn cluster_state(&self) -> Arc<ClusterState> {
        self.cluster.load_full()
    }

    /// Visits all sessions, including half-open ones, until `each` returns false. Some are copied under the lock of their shard,
    /// then visited without it, so `each` may be slow. Sessions that open or end meanwhile may be missed.
    pub fn sessions(&self, now: Time, each: &mut dyn FnMut(&SessionInfo) -> bool) {
        let (mut infos, mut half_open) = (Vec::new(), HashSet::new());
        let timeouts = self.timeouts();
        for number in self.table.numbers() {
            half_open.clear();
            let mut slot = Some(0);
            while let Some(from) = slot {
                slot = read_half_opens(&self.table.shard(number), from, |h| {
                    half_open.insert(h.open.id);
                    infos.push(half_open_info(now, h, &timeouts));
                });
                if !infos.drain(..).all(|info| each(&info)) {
                    return;
                }
            }
            slot = Some(0);
            while let Some(from) = slot {
                slot = read_sessions(&self.table.shard(number), from, |s| infos.push(s.info(now, &timeouts)));
                // One that was half-open a moment ago was visited.
                infos.retain(|info| !half_open.contains(&info.id));
                if !infos.drain(..).all(|info| each(&info)) {
                    return;
                }
            }
        }
    }

    /// The session, or half-open session, with this id.
    #[must_use]
    pub fn session(&self, now: Time, id: SessionId) -> Option<SessionInfo> {
        if let Some((shard, slot)) = self.table.locate(id) {
            return shard.sessions.get(slot).map(|s| s.info(now, &self.timeouts()));
        }
        let (shard, slot) = self.table.locate_half_open(id)?;
        shard.half_open.get(slot).map(|h| half_open_info(now, h, &self.timeouts()))
    }

    /// The current number of sessions by protocol and state, and of half-open sessions. Its cost does not depend on how many
    /// there are.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        let mut sessions: BTreeMap<(Protocol, &'static str), u64> = BTreeMap::new();
        for number in self.table.numbers() {
            let shard = self.table.shard(number);
            for (protocol, state, n) in shard.sessions.counts().iter() {
                *sessions.entry((protocol, state.name())).or_default() += u64::from(n);
            }
            counts.half_open += shard.half_open.len() as u64;
            counts.half_open_evicted += shard.evicted;
        }
        counts.sessions = sessions.into_iter().map(|((protocol, state), n)| (protocol, state, n)).collect();
        counts
    }

    /// Adds the sessions to `found`, up to `max` in all, that [`Engine::tick`] found idle here for longer than their timeout
    /// (in TIME_WAIT: closed for longer). The leader starts an [`IdleProbe`](crate::idle::IdleProbe) for them. Returns whether
    /// there may be more.
    ///
    /// A session that still exists a quarter of its timeout later (at least a second, at most an hour) is reported again.
    pub fn idle(&self, now: Time, max: usize, found: &mut Vec<SessionId>) -> bool {
        let mut next = self.next_idle_shard.lock();
        let mut budget = MAX_PER_TICK;
        for _ in 0..SHARDS {
            'shard: loop {
                let mut shard = self.table.shard(*next);
                if !shard.sessions.has_idle() {
                    break;
                }
                let policy = self.active_policy();
                for _ in 0..LOCK_BATCH {
                    if found.len() >= max || budget == 0 {
                        return true;
                    }
                    match shard.sessions.report_idle(now, policy.timeouts()) {
                        IdleReport::Idle(id) => found.push(id),
                        IdleReport::ActiveAgain => {}
                        IdleReport::NoneLeft => break 'shard,
                    }
                    budget -= 1;
                }
            }
            *next = next.wrapping_add(1);
        }
        false
    }

    /// The settings, as applied here.
    #[must_use]
    pub fn settings(&self) -> Settings {
        self.cluster.load().settings.values.clone()
    }

    /// How long established sessions pass on this member after its lease was renewed last: the setting, as applied here.
    #[must_use]
    pub fn grace(&self) -> Grace {
        self.limits.grace().clone()
    }

    /// The number of sessions for which this member has memory.
    #[must_use]
    pub fn affordable_sessions(&self) -> u64 {
        self.config.affordable_sessions
    }

    /// The generation of the active policy, and the hit counters of at most `max` of its rules on this member, the default's
    /// first.
    #[must_use]
    pub fn rule_hits(&self, max: usize) -> (Generation, Vec<RuleHits>) {
        let policy = self.active_policy();
        (policy.generation, policy.hits.read(&policy, max))
    }

    /// The hits of all rules that [`Engine::rule_hits`] with the same `max` leaves out.
    #[must_use]
    pub fn rule_hits_beyond(&self, max: usize) -> u64 {
        self.active_policy().hits.total_from(max)
    }

    /// A new session id.
    pub(crate) fn next_id(&self) -> SessionId {
        let counter = self.next_session.fetch_add(1, Ordering::Relaxed);
        SessionId { member: self.config.member, counter }
    }

    /// The counter of the next session id that this member gives.
    #[must_use]
    pub fn next_session_number(&self) -> u64 {
        self.next_session.load(Ordering::Relaxed)
    }

    /// Counts session ids as given, as if that many sessions had been opened.
    #[cfg(any(test, feature = "testing"))]
    pub fn skip_session_numbers(&self, count: u64) {
        self.next_session.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn active_policy(&self) -> Guard<Arc<ActivePolicy>> {
        self.active_policy.load()
    }

    /// The timeouts of the active policy. To arm a session with them, load them under the lock of its shard.
    pub(crate) fn timeouts(&self) -> Timeouts {
        *self.active_policy().timeouts()
    }

    /// Makes a policy the active one, and returns the one before. The generation is stored last, so that a reader of the new
    /// generation also reads the new policy. To be called under the lock of the slots.
    pub(crate) fn activate(&self, policy: ActivePolicy) -> Arc<ActivePolicy> {
        let generation = policy.generation;
        let shorter = policy.timeouts().any_shorter_than(&self.timeouts());
        let old = self.active_policy.swap(Arc::new(policy));
        if shorter {
            let mut rescan = self.timer_rescan.lock();
            // A shard that is partly scanned is scanned again at the end.
            rescan.shards_left = SHARDS + usize::from(rescan.slot > 0);
        }
        self.generation.store(generation.0, Ordering::Release);
        old
    }

    pub(crate) fn publish(&self, cluster: ClusterState) {
        let forwards = |id: &&MemberId| **id != self.config.member && cluster.may_forward(**id);
        let peers = cluster.members.keys().filter(forwards).count();
        self.forwarding_peers.store(u32::try_from(peers).unwrap_or(u32::MAX), Ordering::Relaxed);
        let zones_changed = self.cluster.load().zones != cluster.zones;
        if self.limits.set(&cluster.settings.values) {
            self.table.set_max_half_open(cluster.settings.values.max_half_open());
        }
        self.cluster.store(Arc::new(cluster));
        if zones_changed {
            self.zones_version.fetch_add(1, Ordering::AcqRel);
        }
    }
}

/// The next piece of a shard's half-open sessions, from a slot on. Returns the slot at which the piece after it begins.
fn read_half_opens(shard: &Shard, from: u32, mut each: impl FnMut(&HalfOpenEntry)) -> Option<u32> {
    let (piece, next) = piece(from, shard.half_open.slots());
    piece.filter_map(|slot| shard.half_open.get(slot)).filter(|h| !h.aborted).for_each(&mut each);
    next
}

/// The same of the established ones.
fn read_sessions(shard: &Shard, from: u32, mut each: impl FnMut(&Session)) -> Option<u32> {
    let (piece, next) = piece(from, shard.sessions.slots());
    piece.filter_map(|slot| shard.sessions.get(slot)).for_each(&mut each);
    next
}

/// The slots from `from` on that are read under one lock, and where the piece after them begins.
fn piece(from: u32, slots: u32) -> (Range<u32>, Option<u32>) {
    let end = from.saturating_add(LISTED_PER_LOCK).min(slots);
    (from..end, (end < slots).then_some(end))
}

fn half_open_info(now: Time, half: &HalfOpenEntry, timeouts: &Timeouts) -> SessionInfo {
    let idle = now.since(half.last);
    SessionInfo {
        id: half.open.id,
        original: half.open.original,
        reply: half.open.reply,
        zones: ZonePair { ingress: half.open.ingress, egress: half.open.egress },
        rule: (half.open.generation, half.open.rule),
        state: half.state().name(),
        half_open: true,
        idle,
        timeout: timeouts.get(half.timeout()).saturating_sub(idle),
        traffic: PerDirection::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::start_of_number;

    #[test]
    fn session_ids_do_not_repeat_after_2_to_the_32() {
        let engine = Engine::new(Config::new(MemberId(3), 7, 1));
        let first = engine.next_id();
        engine.skip_session_numbers((1 << 32) - 2);
        let (last, next) = (engine.next_id(), engine.next_id());
        assert!(first < last && last < next, "{first} {last} {next}");
        assert_eq!(next.to_string().parse(), Ok(next), "its text has all of it");
    }

    #[test]
    fn session_ids_of_a_start_are_above_those_of_the_start_before() {
        let ids = [1, 2].map(|start| {
            let engine = Engine::new(Config::new(MemberId(3), start, 1));
            let first = engine.next_id();
            engine.skip_session_numbers((1 << 40) - 2);
            [first, engine.next_id()]
        });
        assert!(ids.concat().is_sorted_by(|a, b| a < b), "{ids:?}");
        assert_eq!(ids.concat().iter().map(|id| start_of_number(id.counter)).collect::<Vec<_>>(), [1, 1, 2, 2]);
    }
}
