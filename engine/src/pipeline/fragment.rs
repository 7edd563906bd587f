//! Fragments: later fragments share the verdict of the first one, which alone has ports.
//!
//! ```text
//!   first ─> judged as a packet ─┬─ Forward: hint to all members, held fragments are woken
//!                                └─ Drop: held fragments are woken, and dropped
//!   later ─> FragmentOutcome ─┬─ Pass ──────────> Forward
//!                             ├─ Invalid ───────> Drop: it overlaps, or exceeds a bound
//!                             ├─ FirstElsewhere > Drop: hints do not count without a valid lease
//!                             └─ FirstUnknown ──> Hold, query the other members; after max_time: Drop
//! ```
//!
//! A datagram is identified by its [`FragmentKey`]: source, destination, protocol, identification and zone, for at most 30
//! seconds. Routers that balance by ports send the first fragment to one member and the later ones, which have no ports, to
//! another. So every member is told where the first one ends, and admits the later ones on its own.
//!
//! A fragment that overlaps what passed here, or the first one at whichever member, is dropped (RFC 1858, RFC 5722). So is an
//! exact copy, which the receiver does not miss. The later fragments that passed at other members are not known here:
//! `docs/security.md` has the consequences. Fragments that are too small for their headers do not get here: see
//! [`parse`](crate::parse).

use std::hash::BuildHasher;

use crate::engine::Engine;
use crate::event::{Event, FragmentKey, Hint};
use crate::id::ZoneId;
use crate::parse::{Fragment, Packet};
use crate::table::fragments::{FirstFragment, FragmentOutcome, WaitOutcome};
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
            FragmentOutcome::Pass(egress) => {
                context.routes.set_egress(egress);
                Verdict::Forward
            }
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
                let egress = context.routes.egress().unwrap_or(ZoneId::UNKNOWN);
                let first = FirstFragment { end: fragment.length, egress };
                if !shard.fragments.record_first(key, first, context.now) {
                    return Verdict::Drop(Reason::Fragment);
                }
                events.push(Event::Hint(Hint::FirstFragment { datagram, end: first.end, egress }));
                shard.fragments.take(key)
            }
        };
        if !workers.is_empty() {
            events.push(Event::Wake { workers, key: HoldKey(key) });
        }
        verdict
    }

    /// Another member forwarded a first fragment.
    pub(crate) fn hint_first_fragment(
        &self,
        now: Time,
        datagram: &FragmentKey,
        first: FirstFragment,
        wake: &mut dyn Wake,
    ) {
        if first.end == 0 || datagram.src.is_v4() != datagram.dst.is_v4() {
            return;
        }
        let (shard, key) = self.datagram(datagram);
        let workers = {
            let mut shard = self.table.shard_for(shard);
            shard.fragments.record_peer_first(key, first, now);
            shard.fragments.take(key)
        };
        if !workers.is_empty() {
            wake.wake(workers, HoldKey(key));
        }
    }

    /// Answers a query with what is known of a datagram's first fragment.
    pub(crate) fn reply_to_fragment_query(&self, now: Time, datagram: &FragmentKey, events: &mut Vec<Event>) {
        let (shard, key) = self.datagram(datagram);
        let first = self.table.shard_for(shard).fragments.first(key, now);
        events.extend(first.map(|FirstFragment { end, egress }| {
            Event::Hint(Hint::FirstFragment { datagram: *datagram, end, egress })
        }));
    }

    /// The hash that selects a datagram's shard, and its key. All datagrams between two addresses share one shard, so that they
    /// displace only those that share it by chance.
    fn datagram(&self, datagram: &FragmentKey) -> (u64, u64) {
        let FragmentKey { src, dst, protocol, .. } = *datagram;
        let addresses = Tuple { src, dst, src_port: 0, dst_port: 0, protocol };
        (self.table.hash(&addresses), self.table.hasher().hash_one(datagram))
    }
}

/// The key of a fragment's datagram.
fn datagram(packet: &Packet, fragment: &Fragment, context: &Context<'_>) -> FragmentKey {
    let Tuple { src, dst, protocol, .. } = packet.tuple;
    let protocol = if src.is_v4() { protocol } else { Protocol::IPV6_FRAG };
    FragmentKey { src, dst, protocol, id: fragment.id, ingress: context.ingress }
}
