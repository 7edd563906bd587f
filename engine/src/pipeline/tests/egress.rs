//! Packets that the kernel was seen to send elsewhere than it said: judged by the zone of their true exit.

use std::cell::Cell;

use super::cluster::*;
use crate::addr::Ip;
use crate::id::ZoneId;
use crate::parse::{Kind, Packet};
use crate::replica::Outcome;
use crate::testing::{CLIENT, SERVER};
use crate::tuple::{Protocol, Tuple};
use crate::types::Routes;
use crate::verdict::{Reason, Verdict};

const POLICY: &str = "zone outside, inside, second, leak\n\ndefault drop\n\n\
    accept \"in\" from outside to inside, second: any -> any\n";

const OUTSIDE: ZoneId = ZoneId(1);
const INSIDE: ZoneId = ZoneId(2);
const SECOND: ZoneId = ZoneId(3);
const LEAK: ZoneId = ZoneId(4);

/// Routes that say `inside` of the server, and what was seen of the packets to it.
#[derive(Default)]
struct Seen {
    observed: Option<ZoneId>,
    egress: Cell<Option<ZoneId>>,
}

impl Routes for Seen {
    fn zone(&mut self, destination: Ip) -> Option<ZoneId> {
        Some(if destination == CLIENT { OUTSIDE } else { self.observed.unwrap_or(INSIDE) })
    }

    fn observed_egress(&self) -> Option<ZoneId> {
        self.observed
    }

    fn set_egress(&self, zone: ZoneId) {
        self.egress.set(Some(zone));
    }

    fn egress(&self) -> Option<ZoneId> {
        self.egress.get()
    }
}

fn datagram() -> Packet {
    other(Tuple { src: CLIENT, dst: SERVER, src_port: 7, dst_port: 53, protocol: Protocol::UDP }, Kind::Udp)
}

/// The verdict, and the zone that it is about.
fn pass(k: &mut Cluster, ingress: ZoneId, observed: Option<ZoneId>, packet: &Packet) -> (Verdict, Option<ZoneId>) {
    let mut routes = Seen { observed, ..Seen::default() };
    let verdict = k.process_by(A, (ingress, true), &mut routes, packet);
    (verdict, routes.egress.get().filter(|_| verdict == Verdict::Forward))
}

fn cluster() -> Cluster {
    let mut k = Cluster::new();
    k.policy(POLICY);
    let engine = &k.members[A].engine;
    assert_eq!(["outside", "inside", "second", "leak"].map(|z| engine.zone(z)), [OUTSIDE, INSIDE, SECOND, LEAK]);
    k
}

#[test]
fn observed_exit_decides_for_a_packet_that_opens_a_session() {
    let mut k = cluster();
    assert_eq!(pass(&mut k, OUTSIDE, Some(SECOND), &datagram()), (Verdict::Forward, Some(SECOND)));
    let mut k = cluster();
    let (verdict, _) = pass(&mut k, OUTSIDE, Some(LEAK), &datagram());
    assert_ne!(verdict, Verdict::Forward);
}

#[test]
fn observed_exit_decides_for_the_next_packet_of_a_half_open_session() {
    let mut k = cluster();
    assert_eq!(pass(&mut k, OUTSIDE, None, &datagram()), (Verdict::Forward, Some(INSIDE)));
    // The kernel sent it elsewhere, and the client sends it again.
    assert_eq!(pass(&mut k, OUTSIDE, Some(LEAK), &datagram()).0, Verdict::Drop(Reason::Policy));
    assert_eq!(pass(&mut k, OUTSIDE, Some(SECOND), &datagram()), (Verdict::Forward, Some(SECOND)));
    assert_eq!(pass(&mut k, OUTSIDE, None, &datagram()), (Verdict::Forward, Some(SECOND)), "it is remembered");
    // The answer comes from there, at any member.
    k.deliver();
    let mut answer = datagram();
    answer.tuple = answer.tuple.inverse();
    for at in [A, B] {
        assert_eq!(k.process_by(at, (SECOND, true), &mut Seen::default(), &answer), Verdict::Forward);
    }
}

#[test]
fn observed_exit_decides_for_the_next_packet_of_a_session() {
    let mut k = cluster();
    let mut answer = datagram();
    answer.tuple = answer.tuple.inverse();
    let mut routes = Seen::default();
    assert_eq!(k.process_by(A, (OUTSIDE, true), &mut routes, &datagram()), Verdict::Forward);
    assert_eq!(k.process_by(A, (INSIDE, true), &mut routes, &answer), Verdict::Forward);
    assert_eq!(routes.egress(), Some(OUTSIDE));
    assert_eq!(k.process_by(A, (OUTSIDE, true), &mut routes, &datagram()), Verdict::Forward);
    assert_eq!(k.settle(), [Outcome::Accepted]);

    assert_eq!(pass(&mut k, OUTSIDE, None, &datagram()), (Verdict::Forward, Some(INSIDE)));
    assert_eq!(pass(&mut k, OUTSIDE, Some(LEAK), &datagram()).0, Verdict::Drop(Reason::Policy));
    assert_eq!(pass(&mut k, OUTSIDE, Some(SECOND), &datagram()), (Verdict::Forward, Some(SECOND)));
    assert_eq!(pass(&mut k, OUTSIDE, None, &datagram()), (Verdict::Forward, Some(SECOND)), "it is remembered");
    assert_eq!(pass(&mut k, OUTSIDE, Some(INSIDE), &datagram()), (Verdict::Forward, Some(INSIDE)));
}
