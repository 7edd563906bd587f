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

mod background {
    use palisade_engine::replica::ForbiddenSessions;
    use palisade_engine::{Generation, SessionId};

    use super::super::waiting::{PendingCommand, WaitingCommands};
    use super::super::{MAX_BATCH_BYTES, MAX_BATCH_COMMANDS};
    use super::*;
    use crate::raft::requests::Precedence;

    fn waiting(command: Command) -> PendingCommand {
        PendingCommand { command, queued: NOW, deadline: NOW + SESSION_TIMEOUT, reply: None }
    }

    fn revoke(sessions: usize) -> Command {
        let sessions = vec![SessionId::default(); sessions];
        Command::RevokeForbidden(ForbiddenSessions { generation: Generation(1), sessions })
    }

    fn is_revocation(pending: &PendingCommand) -> bool {
        matches!(pending.command, Command::RevokeForbidden(_))
    }

    #[test]
    fn background_commands_are_behind_all_others_but_not_for_ever() {
        let mut all = WaitingCommands::default();
        all.push(waiting(revoke(1)), Precedence::Background);
        all.push(waiting(revoke(1)), Precedence::Background);
        for _ in 0..5 * MAX_BATCH_COMMANDS {
            all.push(waiting(Command::Resume), Precedence::Ordinary);
        }
        let batches: Vec<(usize, usize)> = std::iter::from_fn(|| (!all.is_empty()).then(|| all.take_batch()))
            .map(|batch| (batch.len(), batch.iter().filter(|pending| is_revocation(pending)).count()))
            .collect();
        assert_eq!(batches, [(64, 0), (64, 0), (64, 0), (64, 1), (64, 0), (2, 1)]);
    }

    #[test]
    fn background_commands_fill_a_batch_that_has_room() {
        let mut all = WaitingCommands::default();
        for _ in 0..6 {
            all.push(waiting(revoke(128)), Precedence::Background);
        }
        all.push(waiting(Command::Resume), Precedence::Ordinary);
        let batch = all.take_batch();
        assert_eq!(batch.iter().map(is_revocation).collect::<Vec<_>>(), [false, true, true, true, true]);
        let bytes: usize = batch.iter().map(|pending| pending.command.size().encoded).sum();
        assert!(bytes <= MAX_BATCH_BYTES, "{bytes}");
        assert_eq!((all.take_batch().len(), all.len()), (2, 0));
        // One that does not fit goes alone.
        all.push(waiting(revoke(10_000)), Precedence::Background);
        all.push(waiting(revoke(1)), Precedence::Background);
        assert_eq!((all.take_batch().len(), all.take_batch().len()), (1, 1));
    }

    #[test]
    fn late_commands_are_found_in_both_queues() {
        let mut all = WaitingCommands::default();
        for (precedence, after) in [(Precedence::Ordinary, 2), (Precedence::Background, 1)] {
            let deadline = NOW + Duration::from_secs(after);
            all.push(PendingCommand { deadline, ..waiting(Command::Resume) }, precedence);
        }
        assert_eq!(all.deadlines().min(), Some(NOW + Duration::from_secs(1)));
        assert!(all.pop_late(NOW).is_none());
        assert!(all.pop_late(NOW + Duration::from_secs(1)).is_some());
        assert!(all.pop_late(NOW + Duration::from_secs(1)).is_none());
        assert_eq!(all.len(), 1);
    }
}
