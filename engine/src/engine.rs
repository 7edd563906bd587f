//! The engine's face: what workers, the replication and the administration call.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;

use crate::addr::Ip;
use crate::blind_intervals::BlindIntervals;
use crate::event::{Event, HalfOpen, Hint, Proposal};
use crate::id::{Generation, MemberId, RuleId, SessionId, ZoneId};
use crate::law::Law;
use crate::parse::Packet;
use crate::progress::{ProgressCursor, TakeoverCounters};
use crate::replica::{Close, MemberInfo, Role};
use crate::table::half_open::HalfOpenEntry;
use crate::table::{SHARDS, Table};
use crate::time::Time;
use crate::timeouts::Timeouts;
use crate::traffic::Traffic;
use crate::tuple::{PerDirection, Protocol, Tuple};
use crate::verdict::{HoldKey, Verdict};

/// Sizes and times of one member's engine.
///
/// All memory is bounded by it: about 256 bytes for each of `max_sessions`, 256 for each of `max_half_open`, and per shard
/// (there are 256) 64 awaited keys, 64 words, 64 fragmented datagrams, 32 that wait for their first fragment, and a timing
/// wheel of 1 KiB; 512 KiB count the half-open sessions of each source.
#[derive(Clone, Debug)]
pub struct Config {
    /// This member.
    pub member: MemberId,
    /// How often this member has started: the upper part of the session ids that it gives.
    pub start: u32,
    /// Makes the tables' hashes unforeseeable: random, but for tests. Members need not have the same.
    pub seed: u64,
    /// Most sessions, replicated: the same on all members.
    pub max_sessions: usize,
    /// Most half-open sessions; rounded up to a multiple of 256, because each shard has its own share. When a share is
    /// full, its oldest one makes room.
    pub max_half_open: usize,
    /// How fast a connection may have gone on while nobody alive saw it, in bytes a second: what is believed after the member
    /// that carried it was lost grows by it, up to 2^28 bytes.
    pub takeover_rate: u64,
    /// Most half-open sessions that this member opens for one source: an IPv4 address, or an IPv6 network of 64 bits. Those
    /// that other members opened count too.
    pub max_half_open_per_source: u32,
}

impl Config {
    /// The usual sizes and times.
    #[must_use]
    pub fn new(member: MemberId, start: u32, seed: u64) -> Config {
        Config {
            member,
            start,
            seed,
            max_sessions: 1 << 20,
            max_half_open: 1 << 17,
            takeover_rate: 1 << 30,
            max_half_open_per_source: 1 << 13,
        }
    }
}

/// How far this member may act on what it has applied (DESIGN section 5, "being current").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It proved with the leader that it has applied everything committed: all is allowed.
    Current,
    /// It lately was current: established sessions pass, nothing new is admitted.
    CutOff,
    /// It was cut off for too long: nothing passes.
    Expired,
}

/// What the pipeline must know besides the packet.
pub struct Context<'a> {
    /// Now.
    pub now: Time,
    /// The calling worker's number, below 64.
    pub worker: u8,
    /// The zone of the interface that the packet came in by.
    pub ingress: ZoneId,
    /// Is the source to be checked against the routes?
    pub antispoof: bool,
    /// May this member act?
    pub standing: Standing,
    /// The kernel's routes.
    pub routes: &'a mut dyn Routes,
}

/// The kernel's routes, asked only for packets that open a session.
pub trait Routes {
    /// The zone of the interface that the kernel would send a packet for `destination` to; `None`: no route, or one to
    /// this machine.
    fn zone(&mut self, destination: Ip) -> Option<ZoneId>;
}

/// Told which held packets may go on.
pub trait Wake {
    /// Packets with this key at these workers (bit n: worker n) are to be judged again.
    fn wake(&mut self, workers: u64, key: HoldKey);
}

/// Nobody holds packets.
impl Wake for () {
    fn wake(&mut self, _: u64, _: HoldKey) {}
}

/// One member's engine. Shared by its workers, its replication and its administration; all methods take `&self`.
pub struct Engine {
    pub(crate) config: Config,
    pub(crate) table: Table,
    /// The policy in force. Its generation is also in `generation`, which is cheaper to read.
    law: ArcSwap<Law>,
    generation: AtomicU64,
    view: ArcSwap<View>,
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
    offering: Mutex<u8>,
    sweep: Mutex<Sweep>,
    /// How often members began to pass packets (again), as applied here.
    pub(crate) resumes: AtomicU64,
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
const LOOKS: u32 = 1 << 14;

/// Most entries that are looked at under one lock, for which packets may wait.
const PIECE: u32 = 1 << 8;

impl Engine {
    /// An empty engine with policy generation 0: default drop.
    #[must_use]
    pub fn new(config: Config) -> Arc<Engine> {
        Arc::new(Engine {
            table: Table::new(&config),
            config,
            law: ArcSwap::from_pointee(Law::default()),
            generation: AtomicU64::new(0),
            view: ArcSwap::from_pointee(View::default()),
            forwarding_peers: AtomicU32::new(0),
            silent_peers: AtomicU32::new(0),
            blind_intervals: ArcSwap::default(),
            blind_until: AtomicU64::new(0),
            progress_cursor: Mutex::default(),
            takeover_counters: TakeoverCounters::default(),
            given: AtomicU32::new(0),
            deferred: Mutex::new(Vec::new()),
            ticking: Mutex::default(),
            offering: Mutex::default(),
            sweep: Mutex::default(),
            resumes: AtomicU64::new(0),
        })
    }

    /// Judges a packet. The packet path: no allocation but for new sessions, no clock, no blocking.
    /// Events are pushed to `events`, which the caller empties and reuses.
    pub fn process(&self, packet: &Packet, context: &mut Context<'_>, events: &mut Vec<Event>) -> Verdict {
        self.judge(packet, context, events)
    }

    /// Takes in another member's hint. What it leads to (the answer to a question, a `Close` to propose) goes to `events`.
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
        let law = self.law();
        let mut budget = LOOKS;
        for _ in 0..SHARDS {
            loop {
                let most = PIECE.min(budget);
                if most == 0 {
                    return;
                }
                let looks = self.look(*next, now, law.timeouts(), most, events);
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

    /// Looks at what is due in one shard, at so many entries at most; how many there were.
    fn look(&self, number: u8, now: Time, timeouts: &Timeouts, most: u32, events: &mut Vec<Event>) -> u32 {
        let mut shard = self.table.shard(number);
        shard.datagrams.ask(now, events);
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
            let open = shard.sessions.get_mut(slot).filter(|s| s.id == id && s.closed.is_none());
            if let Some(cause) = open.and_then(|s| s.track.as_mut()).and_then(|t| t.take_overdue_close()) {
                events.push(Event::Propose(Proposal::Close(Close { id, cause })));
            }
            looks += 1;
        }
        while looks < most && shard.sessions.look(now, timeouts) {
            looks += 1;
        }
        looks
    }

    /// Lets sessions be looked at when their time is over by the policy in force, after one with shorter timeouts.
    fn sweep(&self, now: Time) {
        let mut sweep = self.sweep.lock();
        let mut budget = LOOKS;
        while sweep.left > 0 && budget > 0 {
            let mut shard = self.table.shard(sweep.shard);
            // Loaded under the lock: who armed one of these sessions by an older policy did so before.
            let law = self.law();
            let places = shard.sessions.places();
            let end = sweep.slot.saturating_add(PIECE).min(places);
            for slot in sweep.slot..end {
                shard.sessions.arm(slot, now, law.timeouts());
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
        self.law().zone(name)
    }

    /// What the cluster has agreed on, as applied here: members, policy, history. A cheap, consistent copy.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.view.load_full()
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
                *sessions.entry((session.original.protocol, session.state().name())).or_default() += 1;
            }
            counts.half_open += shard.half_open.len() as u64;
            counts.half_open_evicted += shard.evicted;
        }
        counts.sessions = sessions.into_iter().map(|((protocol, state), n)| (protocol, state, n)).collect();
        counts
    }

    /// Sessions, at most `most`, that are idle here for longer than their timeout (for TIME_WAIT: closed for longer), as far
    /// as [`Engine::tick`] has found them by now. The leader begins an [`Inquiry`](crate::idle::Inquiry) about them. Yields
    /// whether there may be more.
    ///
    /// One that is still there a quarter of its timeout later (a second at least, an hour at most) is found again.
    pub fn idle(&self, now: Time, most: usize, found: &mut Vec<SessionId>) -> bool {
        let mut next = self.offering.lock();
        let mut budget = LOOKS;
        for _ in 0..SHARDS {
            'shard: loop {
                let mut shard = self.table.shard(*next);
                if !shard.sessions.has_idle() {
                    break;
                }
                let law = self.law();
                for _ in 0..PIECE {
                    if found.len() >= most || budget == 0 {
                        return true;
                    }
                    let Some(idle) = shard.sessions.offer(now, law.timeouts()) else { break 'shard };
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

    pub(crate) fn law(&self) -> Guard<Arc<Law>> {
        self.law.load()
    }

    /// The timeouts in force. To arm a session by them they are to be loaded under its shard's lock.
    pub(crate) fn timeouts(&self) -> Timeouts {
        *self.law().timeouts()
    }

    /// Puts a policy in force. The generation last: whoever sees it sees the policy too.
    pub(crate) fn enact(&self, law: Law) {
        let generation = law.generation;
        let shorter = law.timeouts().any_shorter_than(&self.timeouts());
        self.law.store(Arc::new(law));
        if shorter {
            let mut sweep = self.sweep.lock();
            // A shard that is half swept comes again at the end.
            sweep.left = SHARDS + usize::from(sweep.slot > 0);
        }
        self.generation.store(generation.0, Ordering::Release);
    }

    pub(crate) fn publish(&self, view: View) {
        let forwards =
            |(id, info): &(&MemberId, &MemberInfo)| **id != self.config.member && info.role == Role::Firewall;
        let peers = view.members.iter().filter(forwards).count();
        self.forwarding_peers.store(u32::try_from(peers).unwrap_or(u32::MAX), Ordering::Relaxed);
        self.view.store(Arc::new(view));
    }
}

fn half_open_info(now: Time, half: &HalfOpenEntry, timeouts: &Timeouts) -> SessionInfo {
    let idle = now.since(half.last);
    SessionInfo {
        id: half.open.id,
        original: half.open.original,
        reply: half.open.reply,
        zones: (half.open.ingress, half.open.egress),
        rule: (half.open.generation, half.open.rule),
        state: half.state().name(),
        half_open: true,
        idle,
        timeout: timeouts.get(half.timeout()).saturating_sub(idle),
        traffic: PerDirection::default(),
    }
}

/// What the cluster has agreed on.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The cluster's id; empty before `Init`.
    pub cluster: String,
    /// The members by id.
    pub members: BTreeMap<MemberId, MemberInfo>,
    /// Join secrets: digest and end (Unix milliseconds).
    pub tokens: Vec<(Vec<u8>, u64)>,
    /// The policies, oldest first (at most the last 32), the last one in force.
    pub policies: Vec<Arc<PolicyRecord>>,
    /// Zone names by number; number 0 is [`ZoneId::UNKNOWN`].
    pub zones: Vec<String>,
}

/// A policy that is or was in force.
#[derive(Clone, Debug)]
pub struct PolicyRecord {
    /// Its generation.
    pub generation: Generation,
    /// Its canonical text.
    pub text: String,
    /// Who applied it.
    pub author: String,
    /// When, by the proposer's wall clock (Unix milliseconds).
    pub unix_ms: u64,
}

/// A session as an administrator sees it.
#[derive(Clone, Debug)]
pub struct SessionInfo {
    /// Its id.
    pub id: SessionId,
    /// Client to server.
    pub original: Tuple,
    /// Server to client.
    pub reply: Tuple,
    /// Zones: of the original direction's ingress, of its egress.
    pub zones: (ZoneId, ZoneId),
    /// The policy and rule that allowed it.
    pub rule: (Generation, RuleId),
    /// The protocol's state as conntrack(8) names it: `SYN_SENT`, `ESTABLISHED`, `TIME_WAIT`, `UNREPLIED`, `ASSURED` …
    pub state: &'static str,
    /// Half-open: not yet in the log.
    pub half_open: bool,
    /// Time since this member saw a packet of it.
    pub idle: Duration,
    /// Time until it ends if no packet comes.
    pub timeout: Duration,
    /// What all members forwarded, as far as this member knows.
    pub traffic: PerDirection<Traffic>,
}

/// Sizes of the table.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Sessions by protocol and state, as in [`SessionInfo::state`].
    pub sessions: Vec<(Protocol, &'static str, u64)>,
    /// Half-open sessions.
    pub half_open: u64,
    /// Half-open sessions that were evicted because there were too many.
    pub half_open_evicted: u64,
}
