//! What an engine is made with and asked with: sizes, a packet's context, and what it calls back.

use crate::addr::Ip;
use crate::id::{MemberId, ZoneId};
use crate::time::Time;
use crate::verdict::HoldKey;
use crate::worker_set::WorkerSet;

/// What one member's engine is made with. What all members do alike is not here, but in the replicated
/// [`Settings`](crate::replica::Settings).
///
/// All memory is bounded by them: at most 268 bytes for each of `table.sessions`, 256 for each of `table.half_open`, and per shard
/// (there are 256) 64 awaited keys, 64 connections that have ended, 64 provisional segments, 64 fragmented datagrams, 32 that wait for their first fragment, and a
/// timing wheel of 1 KiB; 512 KiB count the half-open sessions of each source.
#[derive(Clone, Debug)]
pub struct Config {
    /// This member.
    pub member: MemberId,
    /// How often this member has started: the upper part of the session ids that it gives ([`first_number`](crate::first_number)).
    pub start: u32,
    /// Makes the tables' hashes unpredictable: random, except in tests. It may differ between members.
    pub seed: u64,
    /// Number of sessions for which this member has memory. It decides nothing that is replicated: a state whose settings ask
    /// for more cannot be kept here ([`RestoreError::Unaffordable`](crate::replica::RestoreError::Unaffordable)).
    pub affordable_sessions: u64,
}

impl Config {
    /// A member with memory for any number of sessions.
    #[must_use]
    pub fn new(member: MemberId, start: u32, seed: u64) -> Config {
        Config { member, start, seed, affordable_sessions: u64::MAX }
    }
}

/// The state of this member's lease: how far it may act on what it has applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LeaseState {
    /// Renewed lately: everything committed is applied here, and all is allowed.
    Valid,
    /// Not renewed lately: established sessions pass, nothing new is admitted.
    Grace,
    /// Not renewed for the grace period, or never: nothing passes.
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
    /// Whether this member may act.
    pub lease: LeaseState,
    /// The kernel's routes.
    pub routes: &'a mut dyn Routes,
}

/// The kernel's routes, asked for packets that open a session, and for the first ones of a session after a change.
pub trait Routes {
    /// The zone of the interface that the kernel would send a packet for `destination` to. `None`: no route, or one to this
    /// machine. [`ZoneId::UNKNOWN`]: the interface is no data interface.
    fn zone(&mut self, destination: Ip) -> Option<ZoneId>;

    /// Whether the kernel may send a packet for `destination` to this zone: by one of several next hops, where its route has
    /// several. Which of them a packet takes depends on its ports; a source is genuine at each.
    fn may_lead_to(&mut self, destination: Ip, zone: ZoneId) -> bool {
        self.zone(destination) == Some(zone)
    }

    /// A number that changes when an answer may have changed. Never 0.
    fn topology(&self) -> u16 {
        1
    }

    /// The zone by which the kernel was seen to send a packet of this flow, where that was not the one that the verdict was
    /// about. [`Routes::zone`] answers with it.
    fn observed_egress(&self) -> Option<ZoneId> {
        None
    }

    /// Takes the zone that the verdict is about: if it is [`Verdict::Forward`](crate::Verdict::Forward), the packet leaves by
    /// this zone or not at all.
    fn set_egress(&self, _zone: ZoneId) {}

    /// The zone that [`Routes::set_egress`] took for this packet.
    fn egress(&self) -> Option<ZoneId> {
        None
    }
}

/// Told which held packets may go on.
pub trait Wake {
    /// Packets with this key at these workers (bit n: worker n) are to be judged again.
    fn wake(&mut self, workers: WorkerSet, key: HoldKey);
}

/// Nobody holds packets.
impl Wake for () {
    fn wake(&mut self, _: WorkerSet, _: HoldKey) {}
}
