//! Sessions whose packets come from, or leave to, other zones than those that they were opened for: a route has moved, or a
//! member has another uplink.

use proptest::prelude::*;

use super::cluster::*;
use crate::addr::Ip;
use crate::id::ZoneId;
use crate::parse::{Embedded, Kind, Packet};
use crate::replica::Outcome;
use crate::session::SessionInfo;
use crate::tuple::{Direction, Protocol, Tuple};
use crate::types::Routes;
use crate::verdict::{Reason, Verdict};

const FORWARD: Verdict = Verdict::Forward;
const CLIENT: Ip = Ip::V4([10, 0, 2, 2]);
const SERVER: Ip = Ip::V4([192, 0, 2, 7]);

/// `leak` is a zone that no rule allows, `mgmt` one that no policy names.
const POLICY: &str = "zone outside, inside, isp1, isp2, leak\n\ndefault drop\n\n\
    accept \"out\" from inside to isp1, isp2: any -> any\n";

const INSIDE: ZoneId = ZoneId(2);
const ISP1: ZoneId = ZoneId(3);
const ISP2: ZoneId = ZoneId(4);
const LEAK: ZoneId = ZoneId(5);

/// One member's routes.
#[derive(Clone, Copy, Debug)]
struct Uplinks {
    client: Option<ZoneId>,
    server: Option<ZoneId>,
    topology: u16,
    asked: u32,
}

impl Uplinks {
    const fn new(server: ZoneId) -> Uplinks {
        Uplinks { client: Some(INSIDE), server: Some(server), topology: 1, asked: 0 }
    }

    fn move_server(&mut self, zone: Option<ZoneId>) {
        self.server = zone;
        self.topology += 1;
    }
}

impl Routes for Uplinks {
    fn zone(&mut self, destination: Ip) -> Option<ZoneId> {
        self.asked += 1;
        if destination == CLIENT { self.client } else { self.server }
    }

    fn topology(&self) -> u16 {
        self.topology
    }
}

/// A cluster whose members have the same, or other, uplinks.
struct Multihomed {
    cluster: Cluster,
    routes: [Uplinks; 3],
}

impl Multihomed {
    fn new(uplinks: [ZoneId; 3]) -> Multihomed {
        let mut cluster = Cluster::new();
        cluster.policy(POLICY);
        let engine = &cluster.members[A].engine;
        assert_eq!(["inside", "isp1", "isp2", "leak"].map(|zone| engine.zone(zone)), [INSIDE, ISP1, ISP2, LEAK]);
        Multihomed { cluster, routes: uplinks.map(Uplinks::new) }
    }

    /// A packet that comes in at a zone of a member.
    fn at(&mut self, at: usize, ingress: ZoneId, packet: &Packet) -> Verdict {
        self.cluster.process_by(at, (ingress, true), &mut self.routes[at], packet)
    }

    /// The same where sources are not checked.
    fn unchecked(&mut self, at: usize, ingress: ZoneId, packet: &Packet) -> Verdict {
        self.cluster.process_by(at, (ingress, false), &mut self.routes[at], packet)
    }

    /// Opens a session with each member's packets coming from where its routes lead to.
    fn open(&mut self, flow: &Flow) {
        let uplink = self.routes[B].server.unwrap();
        for (at, ingress, packet) in [(A, INSIDE, flow.first), (B, uplink, flow.answer)] {
            assert_eq!(self.at(at, ingress, &packet), FORWARD);
            self.cluster.deliver();
        }
        self.at(C, INSIDE, &flow.last);
        assert_eq!(self.cluster.settle(), [Outcome::Accepted]);
        assert_eq!(self.at(C, INSIDE, &flow.more), FORWARD);
    }

    fn session(&self, at: usize) -> SessionInfo {
        let mut found = None;
        self.cluster.members[at].engine.sessions(self.cluster.now, &mut |info| {
            found = Some(info.clone());
            true
        });
        found.unwrap()
    }
}

/// The packets of one session of any protocol.
#[derive(Clone, Copy, Debug)]
struct Flow {
    first: Packet,
    answer: Packet,
    /// The packet that proposes the establishment.
    last: Packet,
    more: Packet,
    reply: Packet,
}

fn flows() -> [Flow; 3] {
    let tuple = |protocol, dst_port| Tuple { src: CLIENT, dst: SERVER, src_port: 4000, dst_port, protocol };
    let plain = |tuple: Tuple, there, back| {
        let (more, reply) = (other(tuple, there), other(tuple.inverse(), back));
        Flow { first: more, answer: reply, last: more, more, reply }
    };
    let tcp = Conn { tuple: tuple(Protocol::TCP, 443), ..Conn::new(1) };
    [
        Flow {
            first: tcp.syn(),
            answer: tcp.syn_ack(),
            last: tcp.ack(),
            more: tcp.of_client(crate::parse::Tcp::ACK, 0, 0, 10),
            reply: tcp.of_server(crate::parse::Tcp::ACK, 0, 0, 10),
        },
        plain(tuple(Protocol::UDP, 53), Kind::Udp, Kind::Udp),
        plain(tuple(Protocol::ICMP, 0), Kind::EchoRequest, Kind::EchoReply),
    ]
}

#[test]
fn session_follows_a_route_that_moves_to_an_allowed_zone() {
    for flow in flows() {
        let mut m = Multihomed::new([ISP1; 3]);
        m.open(&flow);
        assert_eq!(m.at(A, INSIDE, &flow.more), FORWARD);
        assert_eq!(m.at(A, ISP1, &flow.reply), FORWARD);
        m.routes[A].move_server(Some(ISP2));
        for _ in 0..2 {
            assert_eq!(m.at(A, INSIDE, &flow.more), FORWARD, "{flow:?}");
            assert_eq!(m.at(A, ISP2, &flow.reply), FORWARD, "answers come by the new uplink, {flow:?}");
        }
        // What is still under way by the old one passes too, and the other members have their own routes.
        assert_eq!(m.at(A, ISP1, &flow.reply), FORWARD);
        assert_eq!(m.at(B, ISP1, &flow.reply), FORWARD);
        assert_eq!(m.at(B, ISP2, &flow.reply), Verdict::Drop(Reason::WrongZone), "its route leads to isp1");
        assert!(m.cluster.proposals.is_empty(), "nothing of this is replicated");
    }
}

#[test]
fn session_stops_at_a_route_that_moves_to_a_forbidden_zone() {
    for flow in flows() {
        let mut m = Multihomed::new([ISP1; 3]);
        m.open(&flow);
        assert_eq!(m.at(A, INSIDE, &flow.more), FORWARD);
        for (zone, reason) in [
            (Some(LEAK), Reason::Policy),
            (Some(INSIDE), Reason::Policy),
            (Some(ZoneId::UNKNOWN), Reason::NoDataInterface),
            (None, Reason::NoRoute),
        ] {
            m.routes[A].move_server(zone);
            let (idle, passed) = (m.session(A).idle, m.session(A).traffic);
            m.cluster.now = m.cluster.now + 1000 * MS;
            assert_eq!(m.at(A, INSIDE, &flow.more), Verdict::Drop(reason), "{zone:?}");
            assert_eq!(m.at(A, INSIDE, &flow.more), Verdict::Drop(reason), "{zone:?}, again");
            let after = m.session(A);
            assert!(after.idle >= idle + 900 * MS, "the client's packets keep it alive");
            assert_eq!(after.traffic, passed);
            assert_eq!(m.at(B, INSIDE, &flow.more), FORWARD, "at another member it goes on");
        }
        m.routes[A].move_server(Some(ISP1));
        assert_eq!(m.at(A, INSIDE, &flow.more), FORWARD);
    }
}

#[test]
fn members_have_uplinks_of_their_own() {
    for flow in flows() {
        let mut m = Multihomed::new([ISP1, ISP2, ISP2]);
        m.open(&flow);
        for (at, uplink) in [(A, ISP1), (B, ISP2), (C, ISP2)] {
            assert_eq!(m.at(at, INSIDE, &flow.more), FORWARD, "{flow:?}");
            assert_eq!(m.at(at, uplink, &flow.reply), FORWARD, "{flow:?}");
        }
        assert_eq!(m.at(B, INSIDE, &flow.more), FORWARD);
    }
}

#[test]
fn packets_from_elsewhere_pass_only_if_policy_and_route_allow() {
    for flow in flows() {
        let mut m = Multihomed::new([ISP1; 3]);
        m.open(&flow);
        let wrong = Verdict::Drop(Reason::WrongZone);
        // A stranger in another zone with the server's address, and one with the client's.
        assert_eq!(m.at(A, ISP2, &flow.reply), wrong);
        assert_eq!(m.at(A, LEAK, &flow.reply), wrong);
        assert_eq!(m.at(A, ISP2, &flow.more), wrong);
        // Where sources are not checked, the policy decides alone.
        assert_eq!(m.unchecked(A, ISP2, &flow.reply), FORWARD);
        assert_eq!(m.unchecked(A, LEAK, &flow.reply), wrong);
        assert_eq!(m.unchecked(A, LEAK, &flow.more), wrong);
        assert_eq!(m.unchecked(A, ZoneId::UNKNOWN, &flow.reply), wrong);
        // What was found to pass unchecked at one interface is not let in at another one that checks: both are of isp2.
        assert_eq!(m.unchecked(A, ISP2, &flow.reply), FORWARD);
        assert_eq!(m.at(A, ISP2, &flow.reply), wrong);
    }
}

#[test]
fn replies_go_to_an_allowed_zone_only() {
    for flow in flows() {
        let mut m = Multihomed::new([ISP1; 3]);
        m.open(&flow);
        m.routes[B].client = Some(LEAK);
        m.routes[B].topology += 1;
        assert_eq!(m.at(B, ISP1, &flow.reply), Verdict::Drop(Reason::Policy));
        m.routes[B].client = Some(INSIDE);
        m.routes[B].topology += 1;
        assert_eq!(m.at(B, ISP1, &flow.reply), FORWARD);
    }
}

#[test]
fn half_open_session_follows_routes_too() {
    for flow in flows() {
        let mut m = Multihomed::new([ISP1; 3]);
        assert_eq!(m.at(A, INSIDE, &flow.first), FORWARD);
        m.cluster.deliver();
        m.routes[B].move_server(Some(ISP2));
        assert_eq!(m.at(B, ISP1, &flow.answer), FORWARD, "under way by the old uplink");
        assert_ne!(m.at(B, LEAK, &flow.answer), FORWARD);
        assert_eq!(m.at(B, ISP2, &flow.answer), FORWARD);
        m.routes[A].move_server(Some(LEAK));
        assert_eq!(m.at(A, INSIDE, &flow.first), Verdict::Drop(Reason::Policy), "{flow:?}");
        m.routes[A].move_server(Some(ISP2));
        assert_eq!(m.at(A, INSIDE, &flow.first), FORWARD);
    }
}

#[test]
fn icmp_errors_come_from_where_answers_may() {
    let [tcp, ..] = flows();
    let Kind::Tcp(sent) = tcp.more.kind else { panic!() };
    let (router, quoted) = (Ip::V4([198, 51, 100, 1]), Embedded { tuple: tcp.more.tuple, seq: Some(sent.seq) });
    let tuple = Tuple { src: router, dst: CLIENT, src_port: 0, dst_port: 0, protocol: Protocol::ICMP };
    let error = other(tuple, Kind::IcmpError(quoted));
    let mut m = Multihomed::new([ISP1; 3]);
    m.open(&tcp);
    assert_eq!(m.at(A, ISP1, &error), FORWARD);
    assert_eq!(m.at(A, ISP2, &error), Verdict::Drop(Reason::WrongZone));
    m.routes[A].move_server(Some(ISP2));
    assert_eq!(m.at(A, ISP2, &error), FORWARD);
    assert_eq!(m.at(A, LEAK, &error), Verdict::Drop(Reason::WrongZone));
}

#[test]
fn new_sessions_do_not_leave_by_interfaces_without_a_zone() {
    let mut m = Multihomed::new([ISP1; 3]);
    m.cluster.policy("zone inside, isp1\n\ndefault drop\n\naccept \"all\" from any to any: any -> any\n");
    let [tcp, ..] = flows();
    m.routes[A].move_server(Some(ZoneId::UNKNOWN));
    assert_eq!(m.at(A, INSIDE, &tcp.first), Verdict::Drop(Reason::NoDataInterface));
    m.routes[A].move_server(Some(ISP1));
    assert_eq!(m.at(A, ZoneId::UNKNOWN, &tcp.first), Verdict::Drop(Reason::NoDataInterface));
    assert_eq!(m.at(A, INSIDE, &tcp.first), FORWARD);
}

#[test]
fn routes_are_asked_once_a_direction_and_change() {
    for flow in flows() {
        let mut m = Multihomed::new([ISP1, ISP1, ISP2]);
        m.open(&flow);
        m.routes[C].asked = 0;
        for _ in 0..5 {
            assert_eq!(m.at(C, INSIDE, &flow.more), FORWARD);
            assert_eq!(m.at(C, ISP2, &flow.reply), FORWARD);
            assert_eq!(m.at(C, ISP1, &flow.reply), FORWARD, "both of a multipath route's zones are remembered");
        }
        // Twice for the exit, and once for the source of what comes from elsewhere.
        assert_eq!(m.routes[C].asked, 3, "{flow:?}");
        m.cluster.policy(&format!("{POLICY}accept \"other\" from leak to isp1: any -> any\n"));
        assert_eq!(m.at(C, INSIDE, &flow.more), FORWARD);
        assert_eq!(m.routes[C].asked, 4, "a new policy is a change");
        m.cluster.policy(&POLICY.replace("isp1, isp2:", "isp1:"));
        assert_eq!(m.at(C, INSIDE, &flow.more), Verdict::Drop(Reason::Policy));
        assert_eq!(m.at(A, INSIDE, &flow.more), FORWARD);
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Route { at: usize, server: Option<ZoneId>, client: Option<ZoneId> },
    Policy(usize),
    Packet { at: usize, ingress: ZoneId, antispoof: bool, direction: Direction },
}

const POLICIES: [&str; 3] = [
    POLICY,
    "zone inside, isp1, isp2, leak\n\ndefault drop\n\naccept \"out\" from inside to isp2: any -> any\n",
    "zone inside, isp1, isp2, leak\n\ndefault drop\n\naccept \"out\" from inside, leak to any: any -> any\n",
];

fn zones() -> impl Strategy<Value = ZoneId> {
    prop::sample::select(vec![ZoneId::UNKNOWN, INSIDE, ISP1, ISP2, LEAK])
}

fn steps() -> impl Strategy<Value = Step> {
    let routes = (0..3usize, prop::option::weighted(0.9, zones()), prop::option::weighted(0.9, zones()))
        .prop_map(|(at, server, client)| Step::Route { at, server, client });
    let direction = prop::sample::select(vec![Direction::Original, Direction::Reply]);
    let packet = (0..3usize, zones(), any::<bool>(), direction)
        .prop_map(|(at, ingress, antispoof, direction)| Step::Packet { at, ingress, antispoof, direction });
    prop_oneof![2 => routes, 1 => (0..POLICIES.len()).prop_map(Step::Policy), 9 => packet]
}

proptest! {
    /// What is remembered never differs from what a judgement from scratch would say.
    #[test]
    fn zones_are_judged_as_if_nothing_were_remembered(steps in prop::collection::vec(steps(), 1..60)) {
        let [_, flow, _] = flows();
        let mut m = Multihomed::new([ISP1; 3]);
        m.open(&flow);
        let mut policy = 0;
        for step in steps {
            match step {
                Step::Route { at, server, client } => {
                    (m.routes[at].server, m.routes[at].client) = (server, client);
                    m.routes[at].topology += 1;
                }
                Step::Policy(number) => {
                    m.cluster.policy(POLICIES[number]);
                    policy = number;
                }
                Step::Packet { at, ingress, antispoof, direction } => {
                    let routes = m.routes[at];
                    let (packet, egress, source, expected) = match direction {
                        Direction::Original => (flow.more, routes.server, routes.client, INSIDE),
                        Direction::Reply => (flow.reply, routes.client, routes.server, ISP1),
                    };
                    let (from, to) = match direction {
                        Direction::Original => (Some(ingress), egress),
                        Direction::Reply => (egress, Some(ingress)),
                    };
                    let accepts = match policy {
                        0 => from == Some(INSIDE) && (to == Some(ISP1) || to == Some(ISP2)),
                        1 => from == Some(INSIDE) && to == Some(ISP2),
                        _ => from == Some(INSIDE) || from == Some(LEAK),
                    };
                    let known = |zone: Option<ZoneId>| zone.is_some_and(|zone| zone != ZoneId::UNKNOWN);
                    let from_there = ingress == expected || !antispoof || source == Some(ingress);
                    let passes = known(from) && known(to) && accepts && from_there;
                    let verdict = m.cluster.process_by(at, (ingress, antispoof), &mut m.routes[at], &packet);
                    prop_assert_eq!(verdict == FORWARD, passes, "{:?}: {:?}", step, verdict);
                }
            }
        }
    }
}
