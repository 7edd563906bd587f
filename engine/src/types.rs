//! What an engine is made with and asked with: sizes, a packet's context, and what it calls back.

use crate::addr::Ip;
use crate::id::{MemberId, ZoneId};
use crate::time::Time;
use crate::verdict::HoldKey;
use crate::worker_set::WorkerSet;

/// Sizes and times of one member's engine.
///
/// All memory is bounded by it: about 256 bytes for each of `max_sessions`, 256 for each of `max_half_open`, and per shard
/// (there are 256) 64 awaited keys, 64 provisional segments, 64 fragmented datagrams, 32 that wait for their first fragment, and a
/// timing wheel of 1 KiB; 512 KiB count the half-open sessions of each source.
#[derive(Clone, Debug)]
pub struct Config {
    /// This member.
    pub member: MemberId,
    /// How often this member has started: the upper part of the session ids that it gives ([`first_number`](crate::first_number)).
    pub start: u32,
    /// Makes the tables' hashes unpredictable: random, except in tests. It may differ between members.
    pub seed: u64,
    /// Most sessions, replicated: the same on all members.
    pub max_sessions: usize,
    /// Most half-open sessions; rounded up to a multiple of 256, because each shard has its own share. When a share is
    /// full, its oldest one makes room.
    pub max_half_open: usize,
    /// How fast a connection may have gone on while no live member saw it, in bytes per second. The takeover bound grows by it,
    /// up to 2^28 bytes.
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
