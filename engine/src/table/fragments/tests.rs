use super::*;
use crate::testing::{CLIENT, OUTSIDE, SERVER};
use crate::tuple::Protocol;

const NOW: Time = Time(1);
const MS: Duration = Duration::from_millis(1);

fn datagram(id: u32) -> FragmentKey {
    FragmentKey { src: CLIENT, dst: SERVER, protocol: Protocol::UDP, id, ingress: OUTSIDE }
}

/// The fragment from one byte to another.
fn part(begin: u16, end: u16, last: bool) -> Fragment {
    Fragment { id: 1, offset: begin, length: end - begin, more: !last }
}

fn begun() -> FragmentTable {
    let mut all = FragmentTable::default();
    assert!(all.first(1, 80, NOW));
    all
}

#[test]
fn any_order_passes_once() {
    let mut all = begun();
    let mut follows = |begin, end, last| all.follows(1, &part(begin, end, last), true, NOW) == FragmentOutcome::Pass;
    assert!(follows(160, 240, false));
    assert!(follows(320, 400, true));
    assert!(follows(80, 160, false));
    assert!(!follows(80, 160, false), "a copy");
    assert!(follows(240, 320, false));
    assert!(!follows(240, 320, false), "the datagram is whole, and forgotten");
    assert!(all.begun.is_empty());
}

#[test]
fn nothing_overlaps() {
    let mut all = begun();
    assert!(!all.first(1, 80, NOW), "a second first one");
    let mut follows = |begin, end, last| all.follows(1, &part(begin, end, last), true, NOW) == FragmentOutcome::Pass;
    assert!(!follows(72, 160, false));
    assert!(follows(160, 240, false));
    for (begin, end) in [(160, 240), (152, 248), (168, 176), (80, 168), (232, 248), (8, 16)] {
        assert!(!follows(begin, end, false), "{begin}..{end}");
    }
    assert!(!follows(80, 160, true), "more was seen behind this end");
    assert!(follows(240, 250, true));
    assert!(!follows(250, 260, true), "it ends twice");
    assert!(!follows(256, 264, false), "behind the end");
    assert!(!follows(100, 100, false), "empty");
    let beyond = Fragment { id: 1, offset: 65_528, length: 80, more: false };
    assert_eq!(all.follows(1, &beyond, true, NOW), FragmentOutcome::Invalid);
}

#[test]
fn sizes_and_times_are_bounded() {
    let mut all = begun();
    let mut passes = |n: u16| all.follows(1, &part(n * 160, n * 160 + 80, false), true, NOW) == FragmentOutcome::Pass;
    assert_eq!((1..20).filter(|&n| passes(n)).count(), MAX_RUNS - 1);
    let late = NOW + FORWARDED_FIRST_TTL + Duration::from_nanos(1);
    let next = part(80, 160, false);
    assert_eq!(all.first_end(1, NOW), Some(80));
    assert_eq!(all.first_end(1, late), None);
    assert_eq!(all.follows(1, &next, true, late), FragmentOutcome::FirstUnknown);
    assert!(all.first(1, 80, late), "the identification may be used again");
    for key in 2..200 {
        assert!(all.first(key, 80, late));
    }
    assert_eq!(all.begun.len(), MAX_FORWARDED_FIRSTS);
    assert_eq!(all.follows(1, &next, true, late), FragmentOutcome::FirstUnknown, "the oldest made room");
    assert_eq!(all.follows(199, &part(80, 160, true), true, late), FragmentOutcome::Pass);
    assert_eq!(all.begun.len(), MAX_FORWARDED_FIRSTS - 1);
}

#[test]
fn what_began_elsewhere_needs_trust_and_changes_nothing_that_began_here() {
    let mut all = begun();
    all.elsewhere(1, 800, NOW);
    assert_eq!(all.first_end(1, NOW), Some(80));
    all.elsewhere(2, 80, NOW);
    assert!(!all.first(2, 88, NOW), "a second first one, at another member");
    let next = part(80, 160, false);
    assert_eq!(all.follows(2, &next, false, NOW), FragmentOutcome::FirstElsewhere);
    assert_eq!(all.follows(2, &part(72, 160, false), true, NOW), FragmentOutcome::Invalid, "it overlaps the first one");
    assert_eq!(all.follows(2, &next, true, NOW), FragmentOutcome::Pass);
    assert_eq!(all.follows(1, &next, false, NOW), FragmentOutcome::Pass);
}

#[test]
fn those_that_wait_are_woken_once_and_asked_for_once() {
    let mut all = FragmentTable::default();
    assert_eq!(all.wait(1, &datagram(1), 0, NOW), WaitOutcome::Registered);
    assert_eq!(all.wait(1, &datagram(1), 5, NOW + MS), WaitOutcome::Registered);
    let mut events = Vec::new();
    all.ask(NOW + 19 * MS, &mut events);
    assert_eq!(events, []);
    all.ask(NOW + 20 * MS, &mut events);
    all.ask(NOW + 40 * MS, &mut events);
    assert_eq!(events, [Event::Hint(Hint::FragmentQuery(datagram(1)))]);
    assert_eq!(all.take(1), WorkerSet::from([0, 5]));
    assert_eq!(all.take(1), WorkerSet::EMPTY);
    assert_eq!(all.wait(2, &datagram(2), 0, NOW), WaitOutcome::Registered);
    all.ask(NOW + PENDING_TTL + MS, &mut events);
    assert_eq!((events.len(), all.take(2)), (1, WorkerSet::EMPTY), "nobody can wait any more");
}

#[test]
fn after_the_first_one_was_dropped_nobody_waits() {
    let mut all = FragmentTable::default();
    assert_eq!(all.wait(1, &datagram(1), 3, NOW), WaitOutcome::Registered);
    assert_eq!(all.dropped(1, &datagram(1), NOW), WorkerSet::of(3));
    assert_eq!(all.wait(1, &datagram(1), 3, NOW), WaitOutcome::FirstDropped);
    assert_eq!(all.dropped(2, &datagram(2), NOW), WorkerSet::EMPTY);
    assert_eq!(all.wait(2, &datagram(2), 3, NOW), WaitOutcome::FirstDropped);
    let mut events = Vec::new();
    all.ask(NOW + 40 * MS, &mut events);
    assert_eq!(events, []);
    // One that passes counts more.
    assert!(all.first(1, 80, NOW));
    assert_eq!(all.take(1), WorkerSet::EMPTY);
    assert_eq!(all.dropped(1, &datagram(1), NOW), WorkerSet::EMPTY);
    assert_eq!(all.follows(1, &part(80, 160, false), true, NOW), FragmentOutcome::Pass);
}

#[test]
fn a_flood_pushes_out_nobody_who_waits() {
    let mut all = FragmentTable::default();
    for n in 0..MAX_PENDING as u32 {
        assert_eq!(all.wait(n.into(), &datagram(n), 1, NOW), WaitOutcome::Registered);
    }
    for n in 100..1000 {
        assert_eq!(all.wait(n.into(), &datagram(n), 1, NOW + 100 * MS), WaitOutcome::Full);
        assert_eq!(all.dropped(n.into(), &datagram(n), NOW + 100 * MS), WorkerSet::EMPTY);
    }
    assert_eq!(all.wait(0, &datagram(0), 2, NOW + 100 * MS), WaitOutcome::Registered);
    assert_eq!(all.take(0), WorkerSet::from([1, 2]));
    assert_eq!(all.wait(2000, &datagram(2000), 1, NOW), WaitOutcome::Registered);
    assert_eq!(all.wait(2001, &datagram(2001), 1, NOW + 251 * MS), WaitOutcome::Registered, "the oldest waits in vain");
    assert_eq!((all.take(1), all.take(2)), (WorkerSet::EMPTY, WorkerSet::of(1)));
}
