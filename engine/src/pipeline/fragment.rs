//! Fragments: those that follow share the fate of the first, which alone has ports.
//!
//! ```text
//!   first one ─> judged as a packet ─┬─ Forward: hint to all members, those that wait are woken
//!                                    └─ Drop: those that wait are woken, to be dropped
//!   others ─> first one known, here or by a hint? ─┬─ yes ──> overlaps? ─> Drop, else Forward
//!                                                  └─ no ───> Hold; the others are asked; time over: Drop
//! ```
//!
//! A datagram is known by source, destination, protocol and identification, and by the zone that it comes from, for at most
//! 30 seconds. Routers that balance by ports send the first fragment to one member and the rest, which has none, to another:
//! so every member is told where the first one ends, and admits the rest on its own.
//!
//! A fragment that overlaps what passed here, or the first one wherever that passed, is dropped (RFC 1858, RFC 5722). So is
//! an exact copy, which the receiver does not miss. What other members passed of the rest is not known here:
//! `docs/security.md` says what that means. Fragments that are too small for their headers do not get here: see
//! [`parse`](crate::parse).

use std::hash::BuildHasher;

use crate::engine::Engine;
use crate::event::{Event, FragmentKey, Hint};
use crate::parse::{Fragment, Packet};
use crate::table::fragments::{FragmentOutcome, WaitOutcome};
use crate::time::Time;
use crate::tuple::{Protocol, Tuple};
use crate::types::{Context, LeaseState, Wake};
use crate::verdict::{HoldClass, HoldKey, Reason, Verdict};
use crate::worker_set::WorkerSet;

impl Engine {
    /// The verdict on a fragment that is not the first.
    pub(super) fn fragment(&self, packet: &Packet, fragment: &Fragment, context: &Context<'_>) -> Verdict {
        let datagram = datagram(packet, fragment, context);
        let (shard, key) = self.datagram(&datagram);
        let mut shard = self.table.shard_for(shard);
        let trusting = context.lease == LeaseState::Valid;
        match shard.fragments.judge_later(key, fragment, trusting, context.now) {
            FragmentOutcome::Pass => Verdict::Forward,
            FragmentOutcome::Invalid => Verdict::Drop(Reason::Fragment),
            FragmentOutcome::FirstElsewhere => Verdict::Drop(Reason::LeaseGrace),
            FragmentOutcome::FirstUnknown => match shard.fragments.wait(key, &datagram, context.worker, context.now) {
                WaitOutcome::Registered => Verdict::Hold(HoldKey(key), HoldClass::Fragment),
                WaitOutcome::FirstDropped => Verdict::Drop(Reason::Fragment),
                WaitOutcome::Full => Verdict::Drop(Reason::HoldFull),
            },
        }
    }

    /// The verdict on a first fragment, given what it would be if it were a whole packet.
    pub(super) fn first_fragment(
        &self,
        packet: &Packet,
        fragment: &Fragment,
        verdict: Verdict,
        context: &Context<'_>,
        events: &mut Vec<Event>,
    ) -> Verdict {
        let datagram = datagram(packet, fragment, context);
        let (shard, key) = self.datagram(&datagram);
        let mut shard = self.table.shard_for(shard);
        let workers = match verdict {
            Verdict::Hold(..) => WorkerSet::EMPTY,
            Verdict::Drop(_) | Verdict::Reject(_) => shard.fragments.record_first_dropped(key, &datagram, context.now),
            Verdict::Forward => {
                if !shard.fragments.record_first(key, fragment.length, context.now) {
                    return Verdict::Drop(Reason::Fragment);
                }
                events.push(Event::Hint(Hint::FirstFragment { datagram, end: fragment.length }));
                shard.fragments.take(key)
            }
        };
        if !workers.is_empty() {
            events.push(Event::Wake { workers, key: HoldKey(key) });
        }
        verdict
    }

    /// Another member forwarded a first fragment.
    pub(crate) fn hint_first_fragment(&self, now: Time, datagram: &FragmentKey, end: u16, wake: &mut dyn Wake) {
        if end == 0 || datagram.src.is_v4() != datagram.dst.is_v4() {
            return;
        }
        let (shard, key) = self.datagram(datagram);
        let workers = {
            let mut shard = self.table.shard_for(shard);
            shard.fragments.record_peer_first(key, end, now);
            shard.fragments.take(key)
        };
        if !workers.is_empty() {
            wake.wake(workers, HoldKey(key));
        }
    }

    /// Says again what is known of a datagram's first fragment.
    pub(crate) fn reply_to_fragment_query(&self, now: Time, datagram: &FragmentKey, events: &mut Vec<Event>) {
        let (shard, key) = self.datagram(datagram);
        let end = self.table.shard_for(shard).fragments.first_end(key, now);
        events.extend(end.map(|end| Event::Hint(Hint::FirstFragment { datagram: *datagram, end })));
    }

    /// The hash that chooses a datagram's shard, and its key. All datagrams between two addresses share one shard, so that
    /// they can displace no others than those that share it by chance.
    fn datagram(&self, datagram: &FragmentKey) -> (u64, u64) {
        let FragmentKey { src, dst, protocol, .. } = *datagram;
        let addresses = Tuple { src, dst, src_port: 0, dst_port: 0, protocol };
        (self.table.hash(&addresses), self.table.hasher().hash_one(datagram))
    }
}

/// Which datagram a fragment is of.
fn datagram(packet: &Packet, fragment: &Fragment, context: &Context<'_>) -> FragmentKey {
    let Tuple { src, dst, protocol, .. } = packet.tuple;
    let protocol = if src.is_v4() { protocol } else { Protocol::IPV6_FRAG };
    FragmentKey { src, dst, protocol, id: fragment.id, ingress: context.ingress }
}
