use palisade_engine::replica::Applied;
use tokio::sync::oneshot;

use super::in_flight::{
    Action, BatchEvent, FAST_RETRANSMIT_DELAY, MAX_RETRANSMIT_INTERVAL, RETRANSMIT_INTERVAL, Retransmission,
};
use super::*;

const NOW: Time = Time(1_000_000_000_000);

fn at(delay: Duration, interval: Duration) -> Retransmission {
    Retransmission { at: NOW + delay, interval }
}

/// Every state × every event: the next state, and what is to be done.
#[test]
fn batch_state_transitions_are_exhaustive_and_correct() {
    let (interval, doubled) = (RETRANSMIT_INTERVAL, RETRANSMIT_INTERVAL * 2);
    let (fast, polling) = (FAST_RETRANSMIT_DELAY, FAST_RETRANSMIT_DELAY / 2);
    let next = at(Duration::from_millis(50), interval);
    let open = [BatchState::Sent(next), BatchState::Refused(next), BatchState::Unrouted(next)];
    for state in open {
        for (event, expected, action) in [
            (BatchEvent::LeaderChanged { routed: true }, BatchState::Sent(at(fast, fast)), Action::Transmit),
            (BatchEvent::LeaderChanged { routed: false }, BatchState::Unrouted(at(polling, polling)), Action::None),
            (BatchEvent::RetransmissionDue { routed: true }, BatchState::Sent(at(doubled, doubled)), Action::Transmit),
            (
                BatchEvent::RetransmissionDue { routed: false },
                BatchState::Unrouted(at(interval, interval)),
                Action::None,
            ),
            (BatchEvent::Refused, BatchState::Refused(at(fast, interval)), Action::None),
            (BatchEvent::StreamEnded, BatchState::Refused(at(fast, interval)), Action::None),
            (BatchEvent::Applied, BatchState::Applied, Action::Complete),
            (BatchEvent::DeadlinePassed, BatchState::TimedOut, Action::GiveUp),
        ] {
            assert_eq!(state.on(event, NOW), (expected, action), "{state:?} {event:?}");
            for end in [BatchState::Applied, BatchState::TimedOut] {
                assert_eq!(end.on(event, NOW), (end, Action::None), "{end:?} {event:?}");
            }
        }
    }
}

#[test]
fn batch_refused_twice_keeps_the_earlier_retransmission() {
    let soon = BatchState::Sent(at(Duration::from_millis(1), RETRANSMIT_INTERVAL));
    let expected = BatchState::Refused(at(Duration::from_millis(1), RETRANSMIT_INTERVAL));
    assert_eq!(soon.on(BatchEvent::Refused, NOW), (expected, Action::None));
    assert_eq!(expected.on(BatchEvent::Refused, NOW), (expected, Action::None));
}

#[test]
fn batch_retransmission_interval_doubles_up_to_the_maximum_and_starts_over_with_a_new_leader() {
    let mut state = BatchState::new(NOW, true);
    let mut intervals = Vec::new();
    for _ in 0..6 {
        state = state.on(BatchEvent::RetransmissionDue { routed: true }, NOW).0;
        intervals.push(state.retransmission().unwrap().interval.as_millis());
    }
    assert_eq!(intervals, [200, 400, 800, 1600, 1600, 1600]);
    assert_eq!(MAX_RETRANSMIT_INTERVAL.as_millis(), 1600);
    let (state, action) = state.on(BatchEvent::LeaderChanged { routed: true }, NOW);
    assert_eq!((state, action), (BatchState::Sent(at(FAST_RETRANSMIT_DELAY, FAST_RETRANSMIT_DELAY)), Action::Transmit));
}

fn batch(first: u64, commands: usize, waiters: Vec<Waiter>, deadline: Duration) -> InFlightBatch {
    let batch = Batch {
        proposer: MemberId(1),
        first_serial: first,
        lowest_outstanding: 0,
        unix_ms: 0,
        commands: vec![Command::Resume; commands],
    };
    InFlightBatch { batch, waiters, deadline: NOW + deadline, state: BatchState::new(NOW, true), sent: true }
}

#[test]
fn in_flight_batch_completes_once_however_often_it_is_applied() {
    let mut in_flight = InFlightBatches::new(100);
    in_flight.insert(batch(100, 3, (0..3).map(|_| (NOW, None)).collect(), SESSION_TIMEOUT));
    in_flight.insert(batch(103, 1, vec![(NOW, None)], SESSION_TIMEOUT));
    assert_eq!((in_flight.len(), in_flight.lowest_outstanding(), in_flight.next_number()), (2, 100, 104));
    let applied = in_flight.applied(100, NOW).unwrap();
    assert_eq!((applied.state, applied.waiters.len()), (BatchState::Applied, 3));
    assert!(in_flight.applied(100, NOW).is_none(), "a copy was applied");
    assert_eq!((in_flight.len(), in_flight.lowest_outstanding()), (1, 103));
    // A refusal that comes late changes nothing.
    in_flight.refused(100, NOW);
    assert_eq!(in_flight.len(), 1);
}

#[test]
fn in_flight_batches_are_transmitted_in_order_after_a_leader_change() {
    let mut in_flight = InFlightBatches::new(0);
    [0, 1, 2].into_iter().for_each(|first| in_flight.insert(batch(first, 1, vec![(NOW, None)], SESSION_TIMEOUT)));
    in_flight.applied(0, NOW);
    assert!(in_flight.leader_changed(false, NOW).is_empty(), "nobody leads");
    let sent: Vec<_> = in_flight
        .leader_changed(true, NOW)
        .iter()
        .map(|batch| (batch.first_serial, batch.lowest_outstanding))
        .collect();
    assert_eq!(sent, [(1, 1), (2, 1)], "with the lowest number that is outstanding");
}

#[test]
fn in_flight_batches_are_retransmitted_when_due_and_soon_after_the_stream_ended() {
    let mut in_flight = InFlightBatches::new(0);
    in_flight.insert(batch(0, 1, vec![(NOW, None)], SESSION_TIMEOUT));
    assert_eq!(in_flight.next_due(), Some(NOW + RETRANSMIT_INTERVAL));
    assert!(in_flight.retransmissions(true, NOW).is_empty(), "not due");
    in_flight.stream_ended(NOW);
    assert_eq!(in_flight.next_due(), Some(NOW + FAST_RETRANSMIT_DELAY));
    assert_eq!(in_flight.retransmissions(true, NOW + FAST_RETRANSMIT_DELAY).len(), 1);
}

#[test]
fn in_flight_batch_past_its_deadline_is_given_up_and_its_late_application_is_ignored() {
    let mut in_flight = InFlightBatches::new(0);
    let (reply, mut outcome) = oneshot::channel();
    in_flight.insert(batch(0, 1, vec![(NOW, Some(reply))], Duration::from_millis(50)));
    assert!(in_flight.timed_out(NOW).is_none());
    assert_eq!(in_flight.next_due(), Some(NOW + Duration::from_millis(50)), "the deadline, before the retransmission");
    let given_up = in_flight.timed_out(NOW + Duration::from_millis(50)).unwrap();
    assert_eq!((given_up.state, given_up.batch.first_serial), (BatchState::TimedOut, 0));
    assert!(outcome.try_recv().is_err_and(|e| e == oneshot::error::TryRecvError::Empty), "told by the proposer only");
    assert!(in_flight.applied(0, NOW).is_none() && in_flight.timed_out(NOW + SESSION_TIMEOUT).is_none());
}

#[test]
fn pending_batch_is_reported_once_and_only_when_it_is_waited_for() {
    let pending = PendingBatches::default();
    let (reports, mut queue) = mpsc::channel(1);
    let applied: [Applied; 0] = [];
    pending.report(7, &applied, &reports);
    assert!(queue.try_recv().is_err(), "replayed from the log, or of an earlier start");
    pending.add(7);
    pending.add(8);
    pending.report(7, &applied, &reports);
    pending.report(8, &applied, &reports);
    assert_eq!(queue.try_recv().unwrap().first, 7);
    assert!(queue.try_recv().is_err(), "there was no room");
    pending.report(7, &applied, &reports);
    assert!(queue.try_recv().is_err(), "a copy");
    pending.report(8, &applied, &reports);
    assert_eq!(queue.try_recv().unwrap().first, 8, "the copy reports what had no room");
}
