use super::*;
use crate::testing::{CLIENT, OUTSIDE, SERVER};
use crate::tuple::Protocol;

const NOW: Time = Time(1);
const MS: Duration = Duration::from_millis(1);
const EGRESS: ZoneId = ZoneId(2);

fn first(end: u16) -> FirstFragment {
    FirstFragment { end, egress: EGRESS }
}

fn datagram(id: u32) -> FragmentKey {
    FragmentKey { src: CLIENT, dst: SERVER, protocol: Protocol::UDP, id, ingress: OUTSIDE }
}

/// The fragment from one byte to another.
fn part(begin: u16, end: u16, last: bool) -> Fragment {
    Fragment { id: 1, offset: begin, length: end - begin, more: !last }
}

fn with_forwarded_first() -> FragmentTable {
    let mut table = FragmentTable::default();
    assert!(table.record_first(1, first(80), NOW));
    table
}

#[test]
fn fragments_pass_once_in_any_order() {
    let mut table = with_forwarded_first();
    let mut passes =
        |begin, end, last| table.judge_later(1, &part(begin, end, last), true, NOW) == FragmentOutcome::Pass(EGRESS);
    assert!(passes(160, 240, false));
    assert!(passes(320, 400, true));
    assert!(passes(80, 160, false));
    assert!(!passes(80, 160, false), "a copy");
    assert!(passes(240, 320, false));
    assert!(!passes(240, 320, false), "the datagram is whole, and forgotten");
    assert!(table.forwarded.is_empty());
}

#[test]
fn fragment_that_overlaps_is_invalid() {
    let mut table = with_forwarded_first();
    assert!(!table.record_first(1, first(80), NOW), "a second first one");
    let mut passes =
        |begin, end, last| table.judge_later(1, &part(begin, end, last), true, NOW) == FragmentOutcome::Pass(EGRESS);
    assert!(!passes(72, 160, false));
    assert!(passes(160, 240, false));
    for (begin, end) in [(160, 240), (152, 248), (168, 176), (80, 168), (232, 248), (8, 16)] {
        assert!(!passes(begin, end, false), "{begin}..{end}");
    }
    assert!(!passes(80, 160, true), "more was seen behind this end");
    assert!(passes(240, 250, true));
    assert!(!passes(250, 260, true), "it ends twice");
    assert!(!passes(256, 264, false), "behind the end");
    assert!(!passes(100, 100, false), "empty");
    let beyond = Fragment { id: 1, offset: 65_528, length: 80, more: false };
    assert_eq!(table.judge_later(1, &beyond, true, NOW), FragmentOutcome::Invalid);
}

#[test]
fn fragment_table_is_bounded_in_size_and_time() {
    let mut table = with_forwarded_first();
    let mut passes =
        |n: u16| table.judge_later(1, &part(n * 160, n * 160 + 80, false), true, NOW) == FragmentOutcome::Pass(EGRESS);
    assert_eq!((1..20).filter(|&n| passes(n)).count(), MAX_RUNS - 1);
    let late = NOW + FORWARDED_FIRST_TTL + Duration::from_nanos(1);
    let next = part(80, 160, false);
    assert_eq!(table.first(1, NOW), Some(first(80)));
    assert_eq!(table.first(1, late), None);
    assert_eq!(table.judge_later(1, &next, true, late), FragmentOutcome::FirstUnknown);
    assert!(table.record_first(1, first(80), late), "the identification may be used again");
    for key in 2..200 {
        assert!(table.record_first(key, first(80), late));
    }
    assert_eq!(table.forwarded.len(), MAX_FORWARDED_FIRSTS);
    assert_eq!(table.judge_later(1, &next, true, late), FragmentOutcome::FirstUnknown, "the oldest made room");
    assert_eq!(table.judge_later(199, &part(80, 160, true), true, late), FragmentOutcome::Pass(EGRESS));
    assert_eq!(table.forwarded.len(), MAX_FORWARDED_FIRSTS - 1);
}

#[test]
fn fragment_after_first_at_a_peer_needs_trust_in_hints() {
    let mut table = with_forwarded_first();
    table.record_peer_first(1, first(800), NOW);
    assert_eq!(table.first(1, NOW), Some(first(80)));
    table.record_peer_first(2, first(80), NOW);
    assert!(!table.record_first(2, first(88), NOW), "a second first one, at another member");
    let next = part(80, 160, false);
    assert_eq!(table.judge_later(2, &next, false, NOW), FragmentOutcome::FirstElsewhere);
    assert_eq!(
        table.judge_later(2, &part(72, 160, false), true, NOW),
        FragmentOutcome::Invalid,
        "it overlaps the first one"
    );
    assert_eq!(table.judge_later(2, &next, true, NOW), FragmentOutcome::Pass(EGRESS));
    assert_eq!(table.judge_later(1, &next, false, NOW), FragmentOutcome::Pass(EGRESS));
}

#[test]
fn fragment_query_is_sent_once_and_workers_are_woken_once() {
    let mut table = FragmentTable::default();
    assert_eq!(table.wait(1, &datagram(1), 0, NOW), WaitOutcome::Registered);
    assert_eq!(table.wait(1, &datagram(1), 5, NOW + MS), WaitOutcome::Registered);
    let mut events = Vec::new();
    table.send_queries(NOW + 19 * MS, &mut events);
    assert_eq!(events, []);
    table.send_queries(NOW + 20 * MS, &mut events);
    table.send_queries(NOW + 40 * MS, &mut events);
    assert_eq!(events, [Event::Hint(Hint::FragmentQuery(datagram(1)))]);
    assert_eq!(table.take(1), WorkerSet::from([0, 5]));
    assert_eq!(table.take(1), WorkerSet::EMPTY);
    assert_eq!(table.wait(2, &datagram(2), 0, NOW), WaitOutcome::Registered);
    table.send_queries(NOW + PENDING_TTL + MS, &mut events);
    assert_eq!((events.len(), table.take(2)), (1, WorkerSet::EMPTY), "nobody can wait any more");
}

#[test]
fn fragment_after_dropped_first_does_not_wait() {
    let mut table = FragmentTable::default();
    assert_eq!(table.wait(1, &datagram(1), 3, NOW), WaitOutcome::Registered);
    assert_eq!(table.record_first_dropped(1, &datagram(1), NOW), WorkerSet::of(3));
    assert_eq!(table.wait(1, &datagram(1), 3, NOW), WaitOutcome::FirstDropped);
    assert_eq!(table.record_first_dropped(2, &datagram(2), NOW), WorkerSet::EMPTY);
    assert_eq!(table.wait(2, &datagram(2), 3, NOW), WaitOutcome::FirstDropped);
    let mut events = Vec::new();
    table.send_queries(NOW + 40 * MS, &mut events);
    assert_eq!(events, []);
    // One that passes counts more.
    assert!(table.record_first(1, first(80), NOW));
    assert_eq!(table.take(1), WorkerSet::EMPTY);
    assert_eq!(table.record_first_dropped(1, &datagram(1), NOW), WorkerSet::EMPTY);
    assert_eq!(table.judge_later(1, &part(80, 160, false), true, NOW), FragmentOutcome::Pass(EGRESS));
}

#[test]
fn fragment_flood_evicts_no_recent_wait() {
    let mut table = FragmentTable::default();
    for n in 0..MAX_PENDING as u32 {
        assert_eq!(table.wait(n.into(), &datagram(n), 1, NOW), WaitOutcome::Registered);
    }
    for n in 100..1000 {
        assert_eq!(table.wait(n.into(), &datagram(n), 1, NOW + 100 * MS), WaitOutcome::Full);
        assert_eq!(table.record_first_dropped(n.into(), &datagram(n), NOW + 100 * MS), WorkerSet::EMPTY);
    }
    assert_eq!(table.wait(0, &datagram(0), 2, NOW + 100 * MS), WaitOutcome::Registered);
    assert_eq!(table.take(0), WorkerSet::from([1, 2]));
    assert_eq!(table.wait(2000, &datagram(2000), 1, NOW), WaitOutcome::Registered);
    assert_eq!(
        table.wait(2001, &datagram(2001), 1, NOW + 251 * MS),
        WaitOutcome::Registered,
        "the oldest waits in vain"
    );
    assert_eq!((table.take(1), table.take(2)), (WorkerSet::EMPTY, WorkerSet::of(1)));
}
