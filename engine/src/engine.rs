//! The engine's face: what workers, the replication and the administration call.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;

use crate::active_policy::ActivePolicy;
use crate::blind_intervals::BlindIntervals;
use crate::cluster_state::{ClusterState, MemberInfo, Role};
use crate::event::{Event, Hint, Proposal};
use crate::id::{Generation, MemberId, SessionId, ZoneId, ZonePair};
use crate::parse::Packet;
use crate::progress::{ProgressCursor, TakeoverCounters};
use crate::session::{Close, Counts, HalfOpen, SessionInfo};
use crate::table::half_open::HalfOpenEntry;
use crate::table::{SHARDS, Table};
use crate::time::Time;
use crate::timeouts::Timeouts;
use crate::tuple::{PerDirection, Protocol};
use crate::types::{Config, Context, Wake};
use crate::verdict::Verdict;

/// One member's engine. Shared by its workers, its replication and its administration; all methods take `&self`.
pub struct Engine {
    pub(crate) config: Config,
    pub(crate) table: Table,
    /// The policy in force. Its generation is also in `generation`, which is cheaper to read.
    active_policy: ArcSwap<ActivePolicy>,
    generation: AtomicU64,
    cluster: ArcSwap<ClusterState>,
    /// How many other members forward packets.
    pub(crate) forwarding_peers: AtomicU32,
    /// How many of them are silent.
    pub(crate) silent_peers: AtomicU32,
    /// When the traffic of other members is unknown.
    pub(crate) blind_intervals: ArcSwap<BlindIntervals>,
    /// The end of the last of these intervals.
    pub(crate) blind_until: AtomicU64,
    /// Where the next publication of progress begins.
    pub(crate) progress_cursor: Mutex<ProgressCursor>,
    pub(crate) takeover_counters: TakeoverCounters,
    /// Session ids given since the start.
    given: AtomicU32,
    /// Consequences of an apply, for the next [`Engine::tick`] to hand out.
    pub(crate) deferred: Mutex<Vec<Event>>,
    /// The shard that the next tick begins with.
    ticking: Mutex<u8>,
    /// The shard that the next search for idle sessions begins with.
    reporting: Mutex<u8>,
    sweep: Mutex<Sweep>,
    /// How many times members began to forward packets (again), as applied here.
    pub(crate) resume_epoch: AtomicU64,
}

/// Shorter timeouts reach the sessions that are there piece by piece.
#[derive(Default)]
struct Sweep {
    shard: u8,
    slot: u32,
    /// Shards that are still to be swept.
    left: usize,
}

/// Most entries that one call looks at: some milliseconds. What is left over waits for the next one.
const MAX_PER_TICK: u32 = 1 << 14;

/// Most entries that are looked at under one lock, for which packets may wait.
const LOCK_BATCH: u32 = 1 << 8;

impl Engine {
    /// An empty engine with policy generation 0: default drop.
    #[must_use]
    pub fn new(config: Config) -> Arc<Engine> {
        Arc::new(Engine {
            table: Table::new(&config),
            config,
            active_policy: ArcSwap::from_pointee(ActivePolicy::default()),
            generation: AtomicU64::new(0),
            cluster: ArcSwap::from_pointee(ClusterState::default()),
            forwarding_peers: AtomicU32::new(0),
            silent_peers: AtomicU32::new(0),
            blind_intervals: ArcSwap::default(),
            blind_until: AtomicU64::new(0),
            progress_cursor: Mutex::default(),
            takeover_counters: TakeoverCounters::default(),
            given: AtomicU32::new(0),
            deferred: Mutex::new(Vec::new()),
            ticking: Mutex::default(),
            reporting: Mutex::default(),
            sweep: Mutex::default(),
            resume_epoch: AtomicU64::new(0),
        })
    }

    /// Judges a packet. The packet path: no allocation except for new sessions, no clock, no blocking.
    /// Events are pushed to `events`, which the caller empties and reuses.
    pub fn process(&self, packet: &Packet, context: &mut Context<'_>, events: &mut Vec<Event>) -> Verdict {
        self.judge(packet, context, events)
    }

    /// Takes in another member's hint. What follows (the reply to a query, a `Close` to propose) goes to `events`.
    pub fn hint(&self, now: Time, from: MemberId, hint: &Hint, events: &mut Vec<Event>, wake: &mut dyn Wake) {
        if from != self.config.member {
            self.take_hint(now, from, hint, events, wake);
        }
    }

    /// All live half-open sessions: what a new hint stream starts with.
    pub fn half_opens(&self, each: &mut dyn FnMut(HalfOpen)) {
        for number in self.table.numbers() {
            // Copied, so that `each` may be slow.
            let open: Vec<HalfOpen> =
                self.table.shard(number).half_open.iter().filter(|h| !h.aborted).map(|h| h.open).collect();
            open.into_iter().for_each(&mut *each);
        }
    }

    /// Forgets half-open sessions whose time is over, finds sessions that are idle, proposes closes that are overdue, and asks
    /// the other members for first fragments that are awaited. To be called some ten times a second, on every member; its
    /// cost is in proportion to what becomes due.
    pub fn tick(&self, now: Time, events: &mut Vec<Event>) {
        events.append(&mut self.deferred.lock());
        let mut next = self.ticking.lock();
        self.sweep(now);
        // A policy that comes from now on is the next sweep's.
        let policy = self.active_policy();
        let mut budget = MAX_PER_TICK;
        for _ in 0..SHARDS {
            loop {
                let most = LOCK_BATCH.min(budget);
                if most == 0 {
                    return;
                }
                let looks = self.process_due(*next, now, policy.timeouts(), most, events);
                budget -= looks;
                if looks < most {
                    break;
                }
            }
            *next = next.wrapping_add(1);
        }
    }

    /// Asks the other members what packets wait for that is longer under way than a hint usually is. To be called every few
    /// milliseconds.
    pub fn send_queries(&self, now: Time, events: &mut Vec<Event>) {
        self.table.send_queries(now, events);
    }

    /// Processes what is due in one shard, at most `most` entries; returns how many there were.
    fn process_due(&self, number: u8, now: Time, timeouts: &Timeouts, most: u32, events: &mut Vec<Event>) -> u32 {
        let mut shard = self.table.shard(number);
        shard.fragments.ask(now, events);
        let mut looks = 0;
        while looks < most
            && let Some(slot) = shard.half_open.due(now, timeouts)
        {
            self.table.remove_half_open(&mut shard, slot);
            looks += 1;
        }
        while looks < most
            && let Some((_, id, slot)) = shard.finished.front().copied().filter(|(due, ..)| now >= *due)
        {
            shard.finished.pop_front();
            let open = shard.sessions.get_mut(slot).filter(|s| s.id() == id && s.is_open());
            if let Some(cause) = open.and_then(|s| s.local.track.as_mut()).and_then(|t| t.take_overdue_close()) {
                events.push(Event::Propose(Proposal::Close(Close { id, cause })));
            }
            looks += 1;
        }
        while looks < most && shard.sessions.process_due(now, timeouts) {
            looks += 1;
        }
        looks
    }

    /// Lets sessions be looked at when their time is over by the policy in force, after one with shorter timeouts.
    fn sweep(&self, now: Time) {
        let mut sweep = self.sweep.lock();
        let mut budget = MAX_PER_TICK;
        while sweep.left > 0 && budget > 0 {
            let mut shard = self.table.shard(sweep.shard);
            // Loaded under the lock: who armed one of these sessions by an older policy did so before.
            let policy = self.active_policy();
            let places = shard.sessions.places();
            let end = sweep.slot.saturating_add(LOCK_BATCH).min(places);
            for slot in sweep.slot..end {
                shard.sessions.arm(slot, now, policy.timeouts());
            }
            budget = budget.saturating_sub((end - sweep.slot.min(end)).max(1));
            sweep.slot = end;
            if end >= places {
                *sweep = Sweep { shard: sweep.shard.wrapping_add(1), slot: 0, left: sweep.left - 1 };
            }
        }
    }

    /// The policy in force.
    #[must_use]
    pub fn generation(&self) -> Generation {
        Generation(self.generation.load(Ordering::Acquire))
    }

    /// The number of a zone's name, [`ZoneId::UNKNOWN`] if no policy has named it yet. It can change only when
    /// [`Engine::generation`] does.
    #[must_use]
    pub fn zone(&self, name: &str) -> ZoneId {
        self.active_policy().zone(name)
    }

    /// What the cluster has agreed on, as applied here: members, policy, history. A cheap, consistent copy.
    #[must_use]
    pub fn cluster_state(&self) -> Arc<ClusterState> {
        self.cluster.load_full()
    }

    /// Visits the sessions, half-open ones too, shard by shard, each shard copied under its lock first; `each` returns
    /// whether to go on. Sessions that open or end meanwhile may or may not be seen.
    pub fn sessions(&self, now: Time, each: &mut dyn FnMut(&SessionInfo) -> bool) {
        let mut infos = Vec::new();
        let timeouts = self.timeouts();
        for number in self.table.numbers() {
            {
                let shard = self.table.shard(number);
                infos.extend(shard.half_open.iter().filter(|h| !h.aborted).map(|h| half_open_info(now, h, &timeouts)));
                infos.extend(shard.sessions.iter().map(|s| s.info(now, &timeouts)));
            }
            if !infos.drain(..).all(|info| each(&info)) {
                return;
            }
        }
    }

    /// One session.
    #[must_use]
    pub fn session(&self, now: Time, id: SessionId) -> Option<SessionInfo> {
        if let Some((shard, slot)) = self.table.locate(id) {
            return shard.sessions.get(slot).map(|s| s.info(now, &self.timeouts()));
        }
        let (shard, slot) = self.table.locate_half_open(id)?;
        shard.half_open.get(slot).map(|h| half_open_info(now, h, &self.timeouts()))
    }

    /// Sizes now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        let mut sessions: BTreeMap<(Protocol, &'static str), u64> = BTreeMap::new();
        for number in self.table.numbers() {
            let shard = self.table.shard(number);
            for session in shard.sessions.iter() {
                *sessions.entry((session.original().protocol, session.state().name())).or_default() += 1;
            }
            counts.half_open += shard.half_open.len() as u64;
            counts.half_open_evicted += shard.evicted;
        }
        counts.sessions = sessions.into_iter().map(|((protocol, state), n)| (protocol, state, n)).collect();
        counts
    }

    /// Sessions, at most `most`, that are idle here for longer than their timeout (for TIME_WAIT: closed for longer), as far
    /// as [`Engine::tick`] has found them. The leader begins an [`IdleProbe`](crate::idle::IdleProbe) about them.
    /// Returns whether there may be more.
    ///
    /// One that is still there a quarter of its timeout later (a second at least, an hour at most) is found again.
    pub fn idle(&self, now: Time, most: usize, found: &mut Vec<SessionId>) -> bool {
        let mut next = self.reporting.lock();
        let mut budget = MAX_PER_TICK;
        for _ in 0..SHARDS {
            'shard: loop {
                let mut shard = self.table.shard(*next);
                if !shard.sessions.has_idle() {
                    break;
                }
                let policy = self.active_policy();
                for _ in 0..LOCK_BATCH {
                    if found.len() >= most || budget == 0 {
                        return true;
                    }
                    let Some(idle) = shard.sessions.report_idle(now, policy.timeouts()) else { break 'shard };
                    budget -= 1;
                    found.extend(idle);
                }
            }
            *next = next.wrapping_add(1);
        }
        false
    }

    /// A session id that was never given before.
    pub(crate) fn next_id(&self) -> SessionId {
        let n = self.given.fetch_add(1, Ordering::Relaxed);
        SessionId { member: self.config.member, counter: u64::from(self.config.start) << 32 | u64::from(n) }
    }

    pub(crate) fn active_policy(&self) -> Guard<Arc<ActivePolicy>> {
        self.active_policy.load()
    }

    /// The timeouts in force. To arm a session by them they are to be loaded under its shard's lock.
    pub(crate) fn timeouts(&self) -> Timeouts {
        *self.active_policy().timeouts()
    }

    /// Puts a policy in force. The generation last: a reader that sees it also sees the policy.
    pub(crate) fn activate(&self, policy: ActivePolicy) {
        let generation = policy.generation;
        let shorter = policy.timeouts().any_shorter_than(&self.timeouts());
        self.active_policy.store(Arc::new(policy));
        if shorter {
            let mut sweep = self.sweep.lock();
            // A shard that is half swept comes again at the end.
            sweep.left = SHARDS + usize::from(sweep.slot > 0);
        }
        self.generation.store(generation.0, Ordering::Release);
    }

    pub(crate) fn publish(&self, cluster: ClusterState) {
        let forwards =
            |(id, info): &(&MemberId, &MemberInfo)| **id != self.config.member && info.role == Role::Firewall;
        let peers = cluster.members.iter().filter(forwards).count();
        self.forwarding_peers.store(u32::try_from(peers).unwrap_or(u32::MAX), Ordering::Relaxed);
        self.cluster.store(Arc::new(cluster));
    }
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
