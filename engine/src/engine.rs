//! The engine's face: what workers, the replication and the administration call.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;

use crate::addr::Ip;
use crate::event::{Event, HalfOpen, Hint, Proposal};
use crate::id::{Generation, MemberId, RuleId, SessionId, ZoneId};
use crate::law::Law;
use crate::parse::Packet;
use crate::replica::{Close, MemberInfo, Role};
use crate::table::half::Half;
use crate::table::session::Session;
use crate::table::{SHARDS, Table};
use crate::time::Time;
use crate::track::generic::opening_state;
use crate::tuple::{Protocol, Tuple};
use crate::verdict::{HoldKey, Verdict};

/// Sizes and times of one member's engine.
///
/// All memory is bounded by it: about 256 bytes for each of `max_sessions`, 256 for each of `max_half_open`, and per shard
/// (there are 256) 64 awaited keys and 32 fragmented datagrams; 512 KiB count the half-open sessions of each source.
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
    /// Most half-open sessions that this member opens for one source: an IPv4 address, or an IPv6 network of 64 bits. Those
    /// that other members opened count too.
    pub max_half_open_per_source: u32,
    /// How long a half-open session is kept without progress; for UDP the timeout of a session without a reply.
    pub half_open_timeout: Duration,
    /// How long sessions may be idle.
    pub timeouts: Timeouts,
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
            max_half_open_per_source: 1 << 13,
            half_open_timeout: Duration::from_secs(30),
            timeouts: Timeouts::default(),
        }
    }
}

/// How long sessions may be idle, by protocol and state. The defaults are those of Linux's nf_conntrack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts {
    /// TCP, established.
    pub established: Duration,
    /// TCP, after the first FIN and until the close is in the log.
    pub half_closed: Duration,
    /// TCP, closed by FINs.
    pub time_wait: Duration,
    /// TCP, closed by RST.
    pub close: Duration,
    /// UDP, assured.
    pub udp: Duration,
    /// ICMP and ICMPv6 echo.
    pub icmp: Duration,
    /// All other protocols.
    pub generic: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        let secs = Duration::from_secs;
        Timeouts {
            established: secs(432_000),
            half_closed: secs(120),
            time_wait: secs(120),
            close: secs(10),
            udp: secs(120),
            icmp: secs(30),
            generic: secs(600),
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
    /// Members that forward, but for this one.
    pub(crate) others: AtomicU32,
    /// Session ids given since the start.
    given: AtomicU32,
    /// Consequences of an apply, for the next [`Engine::tick`] to hand out.
    pub(crate) deferred: Mutex<Vec<Event>>,
    /// Where the next search for idle sessions begins.
    cursor: Mutex<Cursor>,
}

#[derive(Default)]
struct Cursor {
    shard: u8,
    slot: u32,
}

/// Slots that one search for idle sessions looks at, and slots that it looks at under one lock.
const IDLE_SCAN: u32 = 1 << 16;
const IDLE_PIECE: u32 = 1 << 10;

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
            others: AtomicU32::new(0),
            given: AtomicU32::new(0),
            deferred: Mutex::new(Vec::new()),
            cursor: Mutex::new(Cursor::default()),
        })
    }

    /// Judges a packet. The packet path: no allocation but for new sessions, no clock, no blocking.
    /// Events are pushed to `events`, which the caller empties and reuses.
    pub fn process(&self, packet: &Packet, context: &mut Context<'_>, events: &mut Vec<Event>) -> Verdict {
        self.judge(packet, context, events)
    }

    /// Takes in another member's hint. What it leads to (the answer to an `Ask`, a `Close` to propose) goes to `events`.
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
                self.table.shard(number).halves.iter().filter(|h| !h.aborted).map(|h| h.open).collect();
            open.into_iter().for_each(&mut *each);
        }
    }

    /// Forgets half-open sessions whose time is over, and proposes closes that are overdue. To be called some ten times a
    /// second; its cost is in proportion to what expires.
    pub fn tick(&self, now: Time, events: &mut Vec<Event>) {
        events.append(&mut self.deferred.lock());
        for number in self.table.numbers() {
            let mut shard = self.table.shard(number);
            while let Some((slot, half)) = shard.halves.oldest() {
                if now.since(half.last) < self.config.half_open_timeout {
                    break;
                }
                self.table.remove_half(&mut shard, slot);
            }
            while let Some((due, id, slot)) = shard.finished.front().copied() {
                if now < due {
                    break;
                }
                shard.finished.pop_front();
                let open = shard.sessions.get_mut(slot).filter(|s| s.id == id && s.closed.is_none());
                if let Some(cause) = open.and_then(|s| s.track.as_mut()).and_then(|t| t.overdue()) {
                    events.push(Event::Propose(Proposal::Close(Close { id, cause })));
                }
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
        for number in self.table.numbers() {
            {
                let shard = self.table.shard(number);
                infos.extend(shard.halves.iter().filter(|h| !h.aborted).map(|h| self.half_info(now, h)));
                infos.extend(shard.sessions.iter().map(|s| s.info(now, &self.config.timeouts)));
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
            return shard.sessions.get(slot).map(|s| s.info(now, &self.config.timeouts));
        }
        let (shard, slot) = self.table.locate_half(id)?;
        shard.halves.get(slot).map(|h| self.half_info(now, h))
    }

    fn half_info(&self, now: Time, half: &Half) -> SessionInfo {
        let idle = now.since(half.last);
        SessionInfo {
            id: half.open.id,
            original: half.open.original,
            reply: half.open.reply,
            zones: (half.open.ingress, half.open.egress),
            rule: (half.open.generation, half.open.rule),
            state: opening_state(&half.open.protocol),
            half_open: true,
            idle,
            timeout: self.config.half_open_timeout.saturating_sub(idle),
            counters: [(0, 0); 2],
        }
    }

    /// Sizes now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        let mut sessions: BTreeMap<(Protocol, &'static str), u64> = BTreeMap::new();
        for number in self.table.numbers() {
            let shard = self.table.shard(number);
            for session in shard.sessions.iter() {
                *sessions.entry((session.original.protocol, session.state())).or_default() += 1;
            }
            counts.half_open += shard.halves.len() as u64;
            counts.half_open_evicted += shard.evicted;
        }
        counts.sessions = sessions.into_iter().map(|((protocol, state), n)| (protocol, state, n)).collect();
        counts
    }

    /// Sessions, at most `most`, that are idle here for longer than their timeout (for TIME_WAIT: closed for longer). The
    /// leader asks the others about them with [`Engine::still_idle`] and proposes their `Expire`.
    ///
    /// Each call looks at a part of the table, 65,536 places at most, and the next one goes on where it ended.
    pub fn idle(&self, now: Time, most: usize, found: &mut Vec<SessionId>) {
        let mut cursor = self.cursor.lock();
        let (mut budget, mut shards) = (IDLE_SCAN, SHARDS);
        while budget > 0 && shards > 0 && found.len() < most {
            let shard = self.table.shard(cursor.shard);
            let end = cursor.slot.saturating_add(IDLE_PIECE.min(budget)).min(shard.sessions.places());
            budget -= end.saturating_sub(cursor.slot).min(budget);
            while cursor.slot < end && found.len() < most {
                let session = shard.sessions.get(cursor.slot);
                found.extend(session.filter(|s| self.is_idle(now, s)).map(|s| s.id));
                cursor.slot += 1;
            }
            if cursor.slot >= shard.sessions.places() {
                *cursor = Cursor { shard: cursor.shard.wrapping_add(1), slot: 0 };
                shards -= 1;
            }
        }
    }

    /// Keeps of `ids` those that are unknown or idle here for longer than their timeout.
    pub fn still_idle(&self, now: Time, ids: &mut Vec<SessionId>) {
        ids.retain(|&id| {
            let known = self.table.locate(id);
            known.is_none_or(|(shard, slot)| shard.sessions.get(slot).is_none_or(|s| self.is_idle(now, s)))
        });
    }

    fn is_idle(&self, now: Time, session: &Session) -> bool {
        now.since(session.seen) >= session.timeout(&self.config.timeouts)
    }

    /// A session id that was never given before.
    pub(crate) fn next_id(&self) -> SessionId {
        let n = self.given.fetch_add(1, Ordering::Relaxed);
        SessionId { member: self.config.member, counter: u64::from(self.config.start) << 32 | u64::from(n) }
    }

    pub(crate) fn law(&self) -> Guard<Arc<Law>> {
        self.law.load()
    }

    /// Puts a policy in force. The generation last: whoever sees it sees the policy too.
    pub(crate) fn enact(&self, law: Law) {
        let generation = law.generation;
        self.law.store(Arc::new(law));
        self.generation.store(generation.0, Ordering::Release);
    }

    pub(crate) fn publish(&self, view: View) {
        let forwards =
            |(id, info): &(&MemberId, &MemberInfo)| **id != self.config.member && info.role == Role::Firewall;
        let others = view.members.iter().filter(forwards).count();
        self.others.store(u32::try_from(others).unwrap_or(u32::MAX), Ordering::Relaxed);
        self.view.store(Arc::new(view));
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
    /// Packets and bytes that this member forwarded: original direction, reply direction.
    pub counters: [(u64, u64); 2],
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
