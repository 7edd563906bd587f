//! The engine's face: what workers, the replication and the administration call.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::addr::Ip;
use crate::event::{Event, HalfOpen, Hint};
use crate::id::{Generation, MemberId, RuleId, SessionId, ZoneId};
use crate::parse::Packet;
use crate::replica::MemberInfo;
use crate::time::Time;
use crate::tuple::{Protocol, Tuple};
use crate::verdict::{HoldKey, Verdict};

/// Sizes and times of one member's engine.
#[derive(Clone, Debug)]
pub struct Config {
    /// This member.
    pub member: MemberId,
    /// How often this member has started: the upper part of the session ids that it gives.
    pub start: u32,
    /// Most sessions, replicated: the same on all members.
    pub max_sessions: usize,
    /// Most half-open sessions.
    pub max_half_open: usize,
    /// How long a half-open session is kept without progress.
    pub half_open_timeout: Duration,
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

/// One member's engine. Shared by its workers, its replication and its administration; all methods take `&self`.
pub struct Engine {}

#[allow(unused_variables, clippy::todo)]
impl Engine {
    /// An empty engine with policy generation 0: default drop.
    #[must_use]
    pub fn new(config: Config) -> Arc<Engine> {
        todo!()
    }

    /// Judges a packet. The packet path: no allocation but for new sessions, no clock, no blocking.
    /// Events are pushed to `events`, which the caller empties and reuses.
    pub fn process(&self, packet: &Packet, context: &mut Context<'_>, events: &mut Vec<Event>) -> Verdict {
        todo!()
    }

    /// Takes in another member's hint. What it leads to (the answer to an `Ask`, a `Close` to propose) goes to `events`.
    pub fn hint(&self, now: Time, from: MemberId, hint: &Hint, events: &mut Vec<Event>, wake: &mut dyn Wake) {
        todo!()
    }

    /// All live half-open sessions: what a new hint stream starts with.
    pub fn half_opens(&self, each: &mut dyn FnMut(HalfOpen)) {
        todo!()
    }

    /// Forgets half-open sessions whose time is over. To be called some ten times a second; its cost is in proportion to
    /// what expires.
    pub fn tick(&self, now: Time) {
        todo!()
    }

    /// The policy in force.
    #[must_use]
    pub fn generation(&self) -> Generation {
        todo!()
    }

    /// The number of a zone's name, [`ZoneId::UNKNOWN`] if no policy has named it yet. It can change only when
    /// [`Engine::generation`] does.
    #[must_use]
    pub fn zone(&self, name: &str) -> ZoneId {
        todo!()
    }

    /// What the cluster has agreed on, as applied here: members, policy, history. A cheap, consistent copy.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        todo!()
    }

    /// Visits the sessions, shard by shard, each shard copied under its lock first; `each` returns whether to go on.
    /// Sessions that open or end meanwhile may or may not be seen.
    pub fn sessions(&self, now: Time, each: &mut dyn FnMut(&SessionInfo) -> bool) {
        todo!()
    }

    /// One session.
    #[must_use]
    pub fn session(&self, now: Time, id: SessionId) -> Option<SessionInfo> {
        todo!()
    }

    /// Sizes now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        todo!()
    }

    /// Sessions, at most `most`, that are idle here for longer than their timeout (for TIME_WAIT: closed for longer). The
    /// leader asks the others about them with [`Engine::still_idle`] and proposes their `Expire`.
    pub fn idle(&self, now: Time, most: usize, found: &mut Vec<SessionId>) {
        todo!()
    }

    /// Keeps of `ids` those that are unknown or idle here for longer than their timeout.
    pub fn still_idle(&self, now: Time, ids: &mut Vec<SessionId>) {
        todo!()
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
