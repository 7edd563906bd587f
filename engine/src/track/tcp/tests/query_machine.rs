//! The state table of [`snapshot_query`](super::snapshot_query): every state, every event.

use super::snapshot_query::{Evidence, InconclusiveSegment, SnapshotQuery, SnapshotQueryState};
use super::*;
use crate::time::Stamp4ms;
use Evidence::{Complete, Incomplete, Live};
use Resolution::{AwaitReplies, Provisional, QueryPeers, Strict};
use SnapshotQueryState::{Idle, Outstanding, Settled, Unanswered};

const EVIDENCE: [Evidence; 3] = [Complete, Incomplete, Live];
const BOOLS: [bool; 2] = [false, true];

/// When the query was sent, or timed out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Age {
    /// Less than 250 ms ago.
    Current,
    /// Less than 10 s ago.
    Overdue,
    Old,
}
use Age::{Current, Old, Overdue};

/// How many peers are reachable, besides those that are silent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reachable {
    Nobody,
    /// As many as have replied.
    ThoseThatReplied,
    /// More than have replied.
    Others,
}
use Reachable::{Nobody, Others, ThoseThatReplied};

#[derive(Clone, Copy, Debug)]
enum Event {
    /// A segment for which the relaxed check was inconclusive.
    Segment { reachable: Reachable, lost: bool, incomplete: bool, same_numbers: bool, confirmed_since: bool },
    /// A peer's reply.
    Reply { shows: Evidence, is_last: bool },
}

/// What follows from an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Effect {
    Resolved(Resolution),
    /// Whether all reachable peers have replied.
    Replied(bool),
}

/// All states. One that is missing here is missing in `decided`, which does not compile without it.
fn states() -> Vec<SnapshotQueryState> {
    let with_evidence =
        EVIDENCE.into_iter().flat_map(|evidence| [Idle(evidence), Outstanding(evidence), Settled(evidence)]);
    with_evidence.chain([Unanswered]).collect()
}

fn events() -> Vec<Event> {
    let mut events = Vec::new();
    for reachable in [Nobody, ThoseThatReplied, Others] {
        for flags in 0..16_u8 {
            let [lost, incomplete, same_numbers, confirmed_since] = [1, 2, 4, 8].map(|bit| flags & bit != 0);
            events.push(Event::Segment { reachable, lost, incomplete, same_numbers, confirmed_since });
        }
    }
    for shows in EVIDENCE {
        events.extend(BOOLS.map(|is_last| Event::Reply { shows, is_last }));
    }
    events
}

/// The decision on every combination: the next state, and the effect.
fn decided(state: SnapshotQueryState, age: Age, event: Event) -> (SnapshotQueryState, Effect) {
    match event {
        Event::Segment { reachable, lost, incomplete, same_numbers, confirmed_since } => {
            let unknown = lost
                || match state {
                    Idle(Live) | Outstanding(Live) | Settled(Live) => false,
                    Idle(Incomplete) | Outstanding(Incomplete) | Settled(Incomplete) | Unanswered => true,
                    Idle(Complete) | Outstanding(Complete) | Settled(Complete) => incomplete,
                };
            let (next, resolution) = match (reachable, unknown) {
                // What this member knows is all there is to know.
                (Nobody, false) => (state, Strict),
                (Nobody, true) => resolved_without_peers(state, age),
                (ThoseThatReplied | Others, _) => {
                    resolved_with_peers(state, age, reachable, unknown, same_numbers, confirmed_since)
                }
            };
            (next, Effect::Resolved(resolution))
        }
        Event::Reply { shows, is_last } => (after_reply(state, shows, is_last), Effect::Replied(is_last)),
    }
}

fn resolved_without_peers(state: SnapshotQueryState, age: Age) -> (SnapshotQueryState, Resolution) {
    match (state, age) {
        // The silent peers are not waited for.
        (Outstanding(evidence), Current) => (Settled(evidence), Provisional),
        (Settled(_) | Unanswered, Current) => (state, Provisional),
        (Idle(_), _) | (Outstanding(_) | Settled(_) | Unanswered, Overdue | Old) => (Settled(Complete), Provisional),
    }
}

fn resolved_with_peers(
    state: SnapshotQueryState,
    age: Age,
    reachable: Reachable,
    unknown: bool,
    same_numbers: bool,
    confirmed_since: bool,
) -> (SnapshotQueryState, Resolution) {
    let settled = match (state, reachable) {
        (Outstanding(evidence), ThoseThatReplied) => Settled(evidence),
        (Outstanding(_), Others | Nobody) | (Idle(_) | Settled(_) | Unanswered, _) => state,
    };
    match (settled, age) {
        (Outstanding(_), Current) => (settled, AwaitReplies),
        (Outstanding(_), Overdue) if !confirmed_since => (Unanswered, Provisional),
        (Settled(_) | Unanswered, Current) if unknown => (settled, Provisional),
        (Settled(_) | Unanswered, Current) if same_numbers => (settled, Strict),
        (Idle(_) | Outstanding(_) | Settled(_) | Unanswered, _) => (Outstanding(Complete), QueryPeers),
    }
}

fn after_reply(state: SnapshotQueryState, shows: Evidence, is_last: bool) -> SnapshotQueryState {
    let stronger = |evidence: Evidence| match (evidence, shows) {
        (Live, _) | (_, Live) => Live,
        (Incomplete, _) | (_, Incomplete) => Incomplete,
        (Complete, Complete) => Complete,
    };
    match state {
        Idle(evidence) => Idle(stronger(evidence)),
        Outstanding(evidence) if is_last => Settled(stronger(evidence)),
        Outstanding(evidence) => Outstanding(stronger(evidence)),
        Settled(evidence) => Settled(stronger(evidence)),
        Unanswered if shows == Live => Settled(Live),
        Unanswered => Unanswered,
    }
}

const NOW: Time = Time(1_000_000_000_000);
const ABOUT: u32 = 77;

/// A query in this state, to which one peer has replied, and during which a segment of the original direction has passed.
fn query(state: SnapshotQueryState, age: Age) -> SnapshotQuery {
    let since = match (state, age) {
        (Idle(_), _) => Stamp4ms::NEVER,
        (Outstanding(_) | Settled(_) | Unanswered, Current) => Stamp4ms::new(NOW - 240 * MS),
        (Outstanding(_) | Settled(_) | Unanswered, Overdue) => Stamp4ms::new(NOW - 250 * MS),
        (Outstanding(_) | Settled(_) | Unanswered, Old) => Stamp4ms::new(NOW - 10_000 * MS),
    };
    let mut query = SnapshotQuery { since, about: ABOUT, packed: 0 };
    query.record_reply(0, Complete, u32::MAX);
    query.allow_provisional(Original);
    query.set_state(state);
    assert_eq!(query.state(), state, "packed and unpacked");
    query
}

/// The effect of the code.
fn done(query: &mut SnapshotQuery, event: Event) -> Effect {
    match event {
        Event::Segment { reachable, lost, incomplete, same_numbers, confirmed_since } => {
            let segment = InconclusiveSegment {
                digest: if same_numbers { ABOUT } else { ABOUT + 1 },
                reachable_peers: match reachable {
                    Nobody => 0,
                    ThoseThatReplied => 1,
                    Others => 2,
                },
                lost_with_silent_peers: lost,
                history_incomplete: incomplete,
                confirmed: confirmed_since.then_some(200 * MS),
            };
            Effect::Resolved(query.resolve(&segment, NOW))
        }
        Event::Reply { shows, is_last } => Effect::Replied(query.record_reply(1, shows, if is_last { 2 } else { 3 })),
    }
}

#[test]
fn snapshot_query_decides_every_state_and_event() {
    let mut resolutions = [0; 4];
    for state in states() {
        for age in [Current, Overdue, Old] {
            for event in events() {
                let (next, effect) = decided(state, age, event);
                let mut query = query(state, age);
                assert_eq!(done(&mut query, event), effect, "{state:?}, {age:?}, {event:?}");
                assert_eq!(query.state(), next, "{state:?}, {age:?}, {event:?}");
                if let Effect::Resolved(resolution) = effect {
                    resolutions[resolution as usize] += 1;
                }
            }
        }
    }
    assert!(resolutions.iter().all(|n| *n > 0), "each resolution occurs: {resolutions:?}");
}

#[test]
fn snapshot_query_lets_one_segment_of_each_direction_pass_provisionally() {
    let segment = |reachable| Event::Segment {
        reachable,
        lost: true,
        incomplete: false,
        same_numbers: true,
        confirmed_since: false,
    };
    // The same query: the original direction has had its segment.
    let mut same = query(Settled(Complete), Current);
    assert_eq!(done(&mut same, segment(Others)), Effect::Resolved(Provisional));
    assert!(!same.allow_provisional(Original));
    assert!(same.allow_provisional(Reply) && !same.allow_provisional(Reply));
    // After a timeout, or with a new query, both directions may pass a segment again.
    for (state, reachable) in [(Outstanding(Complete), Others), (Settled(Complete), Nobody)] {
        let mut other = query(state, Overdue);
        assert_eq!(done(&mut other, segment(reachable)), Effect::Resolved(Provisional));
        assert!(other.allow_provisional(Original) && !other.allow_provisional(Original));
        assert!(other.allow_provisional(Reply) && !other.allow_provisional(Reply));
    }
}

#[test]
fn snapshot_query_counts_each_peer_once_and_a_new_query_forgets_them() {
    let mut query = query(Outstanding(Complete), Current);
    assert!(!query.record_reply(0, Complete, 2), "the same peer again");
    assert!(query.record_reply(26, Complete, 2));
    assert_eq!(query.state(), Settled(Complete));
    let other = Event::Segment {
        reachable: Others,
        lost: false,
        incomplete: false,
        same_numbers: false,
        confirmed_since: false,
    };
    assert_eq!(done(&mut query, other), Effect::Resolved(QueryPeers));
    assert!(!query.record_reply(0, Complete, 2));
    assert_eq!(query.state(), Outstanding(Complete));
}
