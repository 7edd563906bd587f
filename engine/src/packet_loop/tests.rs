use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use parking_lot::Mutex;

use super::*;
use crate::event::FragmentKey;
use crate::id::{MemberId, SessionId};
use crate::parse::build;
use crate::testing::{CLIENT, INSIDE, OUTSIDE, SERVER};
use crate::tuple::Protocol;

const MS: Duration = Duration::from_millis(1);
const KEY: HoldKey = HoldKey(7);
const START: Time = Time(1_000_000_000);
const HOLD: Verdict = Verdict::Hold(KEY, HoldClass::Matched);

/// Answers with what a test has put into it.
struct Script {
    verdicts: Mutex<VecDeque<Verdict>>,
    events: Mutex<Vec<Event>>,
    generation: Mutex<Generation>,
    ingress: Mutex<Vec<ZoneId>>,
}

impl Judge for Script {
    fn judge(&self, _: &Packet, context: &mut Context<'_>, events: &mut Vec<Event>) -> Verdict {
        self.ingress.lock().push(context.ingress);
        events.append(&mut self.events.lock());
        self.verdicts.lock().pop_front().expect("a verdict for each packet")
    }

    fn generation(&self) -> Generation {
        *self.generation.lock()
    }

    fn zone(&self, name: &str) -> ZoneId {
        match (name, self.generation().0) {
            ("outside", _) => OUTSIDE,
            ("inside", 1..) => INSIDE,
            _ => ZoneId::UNKNOWN,
        }
    }
}

struct Everywhere;

impl Routes for Everywhere {
    fn zone(&mut self, _: Ip) -> Option<ZoneId> {
        Some(INSIDE)
    }
}

impl Environment for Everywhere {
    fn lease_state(&self, _: Time) -> LeaseState {
        LeaseState::Valid
    }

    fn routes(&mut self, _: &Packet) -> &mut dyn Routes {
        self
    }

    fn router_address(&self, port: usize, _: &Tuple) -> Option<Ip> {
        (port == 1).then_some(SERVER)
    }

    fn zones_outdated(&mut self) -> bool {
        false
    }

    fn set_zones(&mut self, _: &[ZoneId]) {}
}

/// Packets in `u8` carry their number, and are of as many segments.
impl PacketMeta for u8 {
    fn checksum(&self) -> Checksum {
        Checksum::Complete
    }

    fn segments(&self, _: u32) -> u64 {
        u64::from(*self)
    }
}

/// What a sink was told.
#[derive(Default)]
struct Seen {
    outcomes: Vec<(u8, PacketOutcome, u64)>,
    sent: Vec<(u8, usize)>,
    rejects: Vec<(usize, Option<Ip>)>,
    hints: usize,
    lost: (usize, usize),
    proposals: usize,
    logged: Vec<LoggedDecision>,
    woken: Vec<(WorkerSet, HoldKey)>,
    hold_times: Vec<Duration>,
    held: Option<HoldCounts>,
}

#[derive(Clone, Default)]
struct Sink(Rc<RefCell<Seen>>);

/// Places in the queue of hints, and of proposals.
const HINTS: usize = 4;
const PROPOSALS: usize = 1;

impl PacketSink<u8> for Sink {
    fn forward(&mut self, _: &Packet, meta: &u8, bytes: &[u8], _: Option<ZoneId>) -> Result<(), Reason> {
        self.0.borrow_mut().sent.push((*meta, bytes.len()));
        if *meta == 99 { Err(Reason::InjectFailed) } else { Ok(()) }
    }

    fn reject(&mut self, _: Time, _: &Packet, bytes: &[u8], router: Option<Ip>) {
        self.0.borrow_mut().rejects.push((bytes.len(), router));
    }

    fn hint_room(&self) -> QueueRoom {
        QueueRoom { free: HINTS - self.0.borrow().hints, capacity: HINTS }
    }

    fn send_hint(&mut self, _: Hint) -> bool {
        let seen = &mut *self.0.borrow_mut();
        seen.hints += 1;
        seen.hints <= HINTS
    }

    fn send_proposal(&mut self, _: Proposal) -> bool {
        let seen = &mut *self.0.borrow_mut();
        seen.proposals += 1;
        seen.proposals <= PROPOSALS
    }

    fn log(&mut self, _: Time, decision: &LoggedDecision) {
        self.0.borrow_mut().logged.push(*decision);
    }

    fn wake(&mut self, workers: WorkerSet, key: HoldKey) {
        self.0.borrow_mut().woken.push((workers, key));
    }

    fn record(&mut self, outcome: PacketOutcome, meta: &u8, traffic: Traffic) {
        self.0.borrow_mut().outcomes.push((*meta, outcome, traffic.packets));
    }

    fn record_hold_time(&mut self, time: Duration) {
        self.0.borrow_mut().hold_times.push(time);
    }

    fn record_lost_hint(&mut self) {
        self.0.borrow_mut().lost.0 += 1;
    }

    fn record_lost_proposal(&mut self) {
        self.0.borrow_mut().lost.1 += 1;
    }

    fn record_held_now(&mut self, held: HoldCounts) {
        self.0.borrow_mut().held = Some(held);
    }
}

/// A source in memory.
struct Source {
    now: Time,
    woken: Option<Vec<HoldKey>>,
    all: bool,
    packets: Vec<(Time, usize, u8, Vec<u8>)>,
}

impl PacketSource<u8> for Source {
    fn now(&self) -> Time {
        self.now
    }

    fn take_woken(&mut self, keys: &mut Vec<HoldKey>) -> WokenKeys {
        if std::mem::take(&mut self.all) {
            return WokenKeys::All;
        }
        match self.woken.take() {
            None => WokenKeys::None,
            Some(woken) => {
                *keys = woken;
                WokenKeys::Listed
            }
        }
    }

    fn receive(&mut self, mut process: impl FnMut(ReceivedPacket<'_, u8>)) -> u64 {
        let packets = std::mem::take(&mut self.packets);
        for (captured, port, meta, bytes) in &packets {
            process(ReceivedPacket { now: self.now, captured: *captured, port: *port, meta: *meta, bytes });
        }
        packets.len() as u64
    }
}

/// A loop of two ports, `outside` and `inside`, that may hold two packets for 250 ms.
struct Bench {
    packet_loop: PacketLoop<Script, Everywhere, Sink, u8>,
    judge: Arc<Script>,
    source: Source,
    sink: Sink,
}

impl Bench {
    fn new() -> Bench {
        let judge = Arc::new(Script {
            verdicts: Mutex::default(),
            events: Mutex::default(),
            generation: Mutex::new(Generation(1)),
            ingress: Mutex::default(),
        });
        let sink = Sink::default();
        let ports = ["outside", "inside"].map(|zone| PacketPort { zone_name: zone.to_owned(), antispoof: true });
        let budget = crate::hold::HoldBudget { packets: 2, bytes: 1000 };
        let limits = HoldLimits { matched: budget, unmatched: budget, max_time: 250 * MS };
        let packet_loop = PacketLoop::new(3, judge.clone(), Everywhere, sink.clone(), ports.into(), limits);
        let source = Source { now: START, woken: None, all: false, packets: Vec::new() };
        Bench { packet_loop, judge, source, sink }
    }

    /// A turn in which these packets of port 0 arrive now, and get these verdicts; what is woken comes first.
    fn turn(&mut self, metas: &[u8], verdicts: &[Verdict]) {
        self.source.packets = metas.iter().map(|meta| (self.source.now, 0, *meta, bytes())).collect();
        self.turn_received(verdicts);
    }

    /// A turn with the packets that are in the source already.
    fn turn_received(&mut self, verdicts: &[Verdict]) {
        self.judge.verdicts.lock().extend(verdicts);
        self.packet_loop.turn(&mut self.source);
        assert!(self.judge.verdicts.lock().is_empty(), "every verdict was asked for");
    }

    fn outcomes(&self) -> Vec<(u8, PacketOutcome)> {
        self.sink.0.borrow_mut().outcomes.drain(..).map(|(meta, outcome, _)| (meta, outcome)).collect()
    }

    fn held(&self) -> usize {
        self.sink.0.borrow().held.map_or(0, |held| held.matched)
    }
}

/// A UDP packet, and two bytes of padding behind it.
fn bytes() -> Vec<u8> {
    let tuple = Tuple { src: CLIENT, dst: SERVER, src_port: 1000, dst_port: 53, protocol: Protocol::UDP };
    let mut bytes = build::udp(&tuple, &[0; 20]).expect("a packet");
    bytes.extend([0, 0]);
    bytes
}

use PacketOutcome::{Dropped, Forwarded, Held, Rejected};

#[test]
fn packet_loop_sends_each_packet_where_its_verdict_says() {
    let mut b = Bench::new();
    let drop = Verdict::Drop(Reason::Policy);
    let reject = Verdict::Reject(Reason::PolicyReject);
    b.turn(&[1, 2, 3, 99], &[Verdict::Forward, drop, reject, Verdict::Forward]);
    let expected = [
        (1, Forwarded),
        (2, Dropped(Reason::Policy)),
        (3, Rejected(Reason::PolicyReject)),
        (99, Dropped(Reason::InjectFailed)),
    ];
    assert_eq!(b.sink.0.borrow().outcomes.iter().map(|(_, _, packets)| *packets).collect::<Vec<_>>(), [1, 2, 3, 99]);
    assert_eq!(b.outcomes(), expected);
    let without_padding = bytes().len() - 2;
    assert_eq!(b.sink.0.borrow().sent, [(1, without_padding), (99, without_padding)]);
    assert_eq!(b.sink.0.borrow().rejects, [(without_padding, None)]);
    b.source.packets = vec![(START, 1, 4, bytes())];
    b.judge.verdicts.lock().push_back(reject);
    assert_eq!(b.packet_loop.turn(&mut b.source), 1);
    assert_eq!(b.sink.0.borrow().rejects[1], (without_padding, Some(SERVER)), "from the port that it came in by");
}

#[test]
fn packet_loop_drops_stale_and_malformed_packets_unjudged() {
    let mut b = Bench::new();
    let cut = bytes()[..10].to_vec();
    let fresh = START - 250 * MS;
    b.source.packets =
        vec![(fresh - Duration::from_nanos(1), 0, 5, bytes()), (START, 0, 6, cut), (fresh, 0, 7, bytes())];
    b.turn_received(&[Verdict::Forward]);
    let counted: Vec<_> = b.sink.0.borrow_mut().outcomes.drain(..).collect();
    assert_eq!(counted, [(5, Dropped(Reason::Stale), 1), (6, Dropped(Reason::Truncated), 1), (7, Forwarded, 7)]);
}

/// A short hold, for connections that should fail soon, makes no fresh packet stale, and a long one no stale packet fresh.
#[test]
fn packet_loop_has_an_age_for_captured_packets_and_another_for_held_ones() {
    let mut b = Bench::new();
    b.packet_loop = b.packet_loop.with_stale_after(20 * MS);
    b.source.packets = vec![(START - 21 * MS, 0, 1, bytes()), (START - 20 * MS, 0, 2, bytes())];
    b.turn_received(&[HOLD]);
    assert_eq!(b.outcomes(), [(1, Dropped(Reason::Stale)), (2, Held)]);
    b.source.now = START + 200 * MS;
    b.source.woken = Some(vec![KEY]);
    b.turn(&[], &[Verdict::Forward]);
    assert_eq!(b.outcomes(), [(2, Forwarded)]);
    b.packet_loop = b.packet_loop.with_stale_after(1000 * MS);
    b.source.packets = vec![(START - 700 * MS, 0, 3, bytes())];
    b.turn_received(&[Verdict::Forward]);
    assert_eq!(b.outcomes(), [(3, Forwarded)]);
}

#[test]
fn held_packet_goes_on_when_its_key_is_woken() {
    let mut b = Bench::new();
    b.turn(&[1, 2], &[HOLD, HOLD]);
    assert_eq!((b.outcomes(), b.held()), (vec![(1, Held), (2, Held)], 2));
    b.source.now = START + 10 * MS;
    b.source.woken = Some(vec![HoldKey(8)]);
    b.turn(&[], &[]);
    assert_eq!(b.held(), 2, "another key");
    b.source.woken = Some(vec![KEY]);
    b.turn(&[3], &[Verdict::Forward, HOLD, Verdict::Forward]);
    assert_eq!(b.outcomes(), [(1, Forwarded), (3, Forwarded)], "a second hold is not reported");
    assert_eq!((b.held(), b.sink.0.borrow().hold_times.clone()), (1, vec![10 * MS]));
    assert_eq!(b.packet_loop.deadline(), Some(START + 250 * MS), "it keeps the time of its first hold");
}

#[test]
fn held_packets_all_go_on_in_order_after_an_overflow_of_the_mailbox() {
    let mut b = Bench::new();
    let other = Verdict::Hold(HoldKey(8), HoldClass::Unmatched);
    b.turn(&[1, 2, 3], &[HOLD, other, HOLD]);
    b.outcomes();
    b.source.all = true;
    b.turn(&[], &[Verdict::Forward, Verdict::Forward, Verdict::Forward]);
    assert_eq!(b.outcomes(), [(1, Forwarded), (2, Forwarded), (3, Forwarded)]);
    assert_eq!((b.held(), b.packet_loop.deadline()), (0, None));
}

#[test]
fn held_packet_expires() {
    let mut b = Bench::new();
    b.turn(&[1], &[HOLD]);
    b.source.now = START + 249 * MS;
    b.turn(&[], &[]);
    assert_eq!(b.outcomes(), [(1, Held)]);
    b.source.now = START + 250 * MS;
    b.turn(&[], &[]);
    assert_eq!((b.outcomes(), b.held()), (vec![(1, Dropped(Reason::HoldExpired))], 0));
    // A worker that was stopped finds it woken too late, and does not ask.
    b.turn(&[2], &[HOLD]);
    b.source.now = START + 501 * MS;
    b.source.woken = Some(vec![KEY]);
    b.turn(&[], &[]);
    assert_eq!(b.outcomes(), [(2, Held), (2, Dropped(Reason::HoldExpired))]);
    assert!(b.sink.0.borrow().hold_times.is_empty(), "only those count that went on");
}

#[test]
fn held_packet_that_does_not_fit_is_dropped() {
    let mut b = Bench::new();
    b.turn(&[1, 2, 3], &[HOLD; 3]);
    assert_eq!(b.outcomes(), [(1, Held), (2, Held), (3, Held), (3, Dropped(Reason::HoldFull))]);
    assert_eq!(b.held(), 2);
}

#[test]
fn hints_about_fragments_leave_half_of_the_queue_to_others() {
    let mut b = Bench::new();
    let key = FragmentKey { src: CLIENT, dst: SERVER, protocol: Protocol::UDP, id: 7, ingress: OUTSIDE };
    let fragment = || Event::Hint(Hint::FirstFragment { datagram: key, end: 1480, egress: ZoneId(2) });
    let abort = || Event::Hint(Hint::Abort(SessionId { member: MemberId(1), counter: 1 }));
    b.judge.events.lock().extend((0..HINTS).map(|_| fragment()));
    b.turn(&[1], &[Verdict::Forward]);
    assert_eq!((b.sink.0.borrow().hints, b.sink.0.borrow().lost), (HINTS / 2, (HINTS / 2, 0)));
    b.judge.events.lock().extend((0..HINTS).map(|_| abort()));
    b.turn(&[2], &[Verdict::Forward]);
    assert_eq!((b.sink.0.borrow().hints, b.sink.0.borrow().lost), (HINTS, (HINTS, 0)));
}

#[test]
fn proposals_and_wakes_go_to_the_sink() {
    let mut b = Bench::new();
    let refresh = || Event::Propose(Proposal::Refresh(SessionId { member: MemberId(1), counter: 1 }));
    let wake = Event::Wake { workers: WorkerSet::of(3), key: KEY };
    b.judge.events.lock().extend([refresh(), wake, refresh()]);
    b.turn(&[1], &[Verdict::Forward]);
    let seen = b.sink.0.borrow();
    assert_eq!((seen.proposals, seen.lost), (2, (0, 1)), "the second one found the queue full");
    assert_eq!(seen.woken, [(WorkerSet::of(3), KEY)]);
}

#[test]
fn zones_of_ports_follow_the_policy() {
    let mut b = Bench::new();
    *b.judge.generation.lock() = Generation(0);
    b.source.packets = vec![(START, 1, 1, bytes()), (START, 0, 1, bytes()), (START, 2, 1, bytes())];
    b.turn_received(&[Verdict::Forward; 3]);
    assert_eq!(std::mem::take(&mut *b.judge.ingress.lock()), [ZoneId::UNKNOWN, OUTSIDE, ZoneId::UNKNOWN]);
    *b.judge.generation.lock() = Generation(1);
    b.source.packets = vec![(START, 1, 1, bytes())];
    b.turn_received(&[Verdict::Forward]);
    assert_eq!(*b.judge.ingress.lock(), [INSIDE]);
}
